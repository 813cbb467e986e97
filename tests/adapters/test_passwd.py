from __future__ import annotations

import pytest

from pytorch_spawner.adapters.passwd import read_uid
from pytorch_spawner.core.identity import identity_from_mapping
from pytorch_spawner.errors import IdentityConflict


def test_an_unknown_user_is_none_and_a_hostile_name_too() -> None:
    assert read_uid("no-such-user-here") is None
    assert read_uid("a\x00b") is None


def test_a_system_user_of_the_same_name_never_lends_its_uid() -> None:
    assert read_uid("root") == {"uid": 0, "gid": 0}
    with pytest.raises(IdentityConflict, match="never run as root"):
        identity_from_mapping(read_uid("root"), "passwd", "root")
