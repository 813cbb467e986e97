"""What names no ledger that can be opened is a sentence with the remedy, without the password."""

from __future__ import annotations

import sys

import pytest

from pytorch_spawner.errors import LedgerUnavailable
from pytorch_spawner.ledger.store import Ledger


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("/srv/lab/ledger.sqlite", "'/srv/lab/ledger.sqlite' is no SQLAlchemy URL, such as sqlite"),
        ("", "'' is no SQLAlchemy URL"),
        ("postgresql://db:port/lab", "'postgresql://db:port/lab' is no SQLAlchemy URL"),
        ("lab:secret@db/lab", "the ledger's address is no SQLAlchemy URL"),
        ("postgresql://lab:an@other:secret@db/lab", "the ledger's address is no SQLAlchemy URL"),
        ("postgresql:db?password=secret", "the ledger's address is no SQLAlchemy URL"),
    ],
)
def test_what_is_no_url(url: str, said: str) -> None:
    with pytest.raises(LedgerUnavailable) as caught:
        Ledger.open(url)
    assert said in caught.value.detail
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__, "a traceback in the log would show the password"


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("mysql://lab:secret@db/lab", "MySQLdb"),
        ("postgresql+psycopg2://lab:secret@db/lab", "psycopg2"),
        ("postgresql+psycopg2://lab@db/lab?password=secret", "psycopg2"),
    ],
)
def test_a_driver_that_is_not_installed(
    url: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(LedgerUnavailable) as caught:
        Ledger.open(url)
    assert f"import of {driver}" in caught.value.detail
    assert "install pytorch_spawner[postgresql]" in caught.value.detail
    assert "secret" not in str(caught.value)


def test_a_password_among_the_options_is_not_shown() -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed (the extra postgresql)")
    with pytest.raises(LedgerUnavailable) as caught:
        Ledger.open("postgresql+psycopg://127.0.0.1:1/lab?user=lab&password=secret")
    assert "secret" not in str(caught.value)
