from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytorch_spawner.core.identity import (
    Identity,
    group_with,
    home_path,
    identity_from_mapping,
    login_name,
    next_uid,
    passwd_with,
    server_slug,
    slug,
)
from pytorch_spawner.errors import IdentityConflict

HOSTILE = [
    "../../x",
    "-rf",
    "a;b",
    "<b>",
    "n" * 255,
    "ANA",
    "ana",
    "ß",
    "ss",
    "🐍",
    "a.b",
    "a-b",
    "a_b",
    "a--b",
    "",
    " ",
    "{x}",
    "ana-1",
    "u-",
    "0",
    "root",
]


def test_no_two_hostile_names_share_a_slug() -> None:
    assert len({slug(name) for name in HOSTILE}) == len(HOSTILE)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_slug_is_a_valid_container_volume_and_directory_name(name: str) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,40}", slug(name))
    assert "--" not in slug(name)


@given(st.text(max_size=255), st.text(max_size=255))
def test_different_names_have_different_slugs(one: str, other: str) -> None:
    assert (slug(one) == slug(other)) == (one == other)


@given(
    st.tuples(st.text(max_size=60), st.text("abc-", max_size=8)),
    st.tuples(st.text(max_size=60), st.text("abc-", max_size=8)),
)
def test_different_servers_have_different_slugs(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    assert (server_slug(*one) == server_slug(*other)) == (one == other)


@given(st.text(max_size=255))
def test_a_login_name_is_what_useradd_accepts(name: str) -> None:
    assert re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", login_name(name))


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("/home/lab", "/home/lab"),
        ("/home/{login}", "/home/ana"),
        ("/homes/{login}.d", "/homes/ana.d"),
        ("/home/{login}/work", "/home/ana/work"),
    ],
)
def test_a_home_is_where_the_site_wants_it(template: str, path: str) -> None:
    assert home_path(template, "ana") == path


@pytest.mark.parametrize(
    "template",
    [
        "", "home/lab", "/", "/home/", "/home//lab", "/home/../etc", "/home/./lab", "/home/.ssh",
        "/home/{username}", "/home/a:b", "/home/a b", "/home/lab\n", "/etc", "/usr/home/{login}",
        "/home", "/{login}", "/{login}/home", "/srv/homes/{login}", "/data/lab", "/mnt/home",
        "/opt/pytorch-spawner", "/var/cache/pytorch-spawner", "/proc/1/cwd", "/tmp/{login}",
    ],
)  # fmt: skip
def test_a_home_hides_nothing_that_containers_need(template: str) -> None:
    with pytest.raises(ValueError, match="such as /home/lab"):
        home_path(template, "ana")


@given(st.text(max_size=255))
def test_every_login_name_fits_into_a_homes_path(name: str) -> None:
    assert home_path("/home/{login}", login_name(name)) == f"/home/{login_name(name)}"


def test_the_user_replaces_an_entry_of_the_same_uid_and_of_the_same_name() -> None:
    passwd = (
        "root:x:0:0::/root:/bin/sh\njovyan:x:1000:100::/home/jovyan:/bin/sh\nana:x:7:7::/:/bin/sh\n"
    )
    said = passwd_with(passwd, Identity(1000, 1000, "ledger"), "ana", "/home/ana")
    assert said == "root:x:0:0::/root:/bin/sh\nana:x:1000:1000::/home/ana:/bin/bash\n"
    assert group_with("root:x:0:\nusers:x:1000:\n", Identity(1000, 1000, ""), "ana") == (
        "root:x:0:\nana:x:1000:\n"
    )


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (None, None),
        ({}, None),
        (1005, Identity(1005, 1005, "auth_state")),
        ("1005", Identity(1005, 1005, "auth_state")),
        ({"uid": 1005, "gid": 100}, Identity(1005, 100, "auth_state")),
    ],
)
def test_a_source_names_a_uid(said: object, expected: Identity | None) -> None:
    assert identity_from_mapping(said, "auth_state", "ana") == expected


@pytest.mark.parametrize("said", [0, 999, -1, 2**31, "root", {"uid": 1005, "gid": 0}, [1], True])
def test_a_uid_of_the_system_or_no_number_is_refused(said: object) -> None:
    with pytest.raises(IdentityConflict):
        identity_from_mapping(said, "auth_state", "ana")


def test_uids_are_given_upwards_and_never_again() -> None:
    assert next_uid([], 20000, 20002) == 20000
    assert next_uid([20001, 5], 20000, 20002) == 20002
    with pytest.raises(IdentityConflict, match="widen"):
        next_uid([20002], 20000, 20002)
    with pytest.raises(IdentityConflict, match="below 1000"):
        next_uid([], 999, 2000)
