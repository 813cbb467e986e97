from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab_driver import Lab, running_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A hub with two simulated GPUs, warm-up off, for one module's tests."""
    with running_lab(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture
def stopped(lab: Lab) -> Iterator[None]:
    """Afterwards nothing of this test runs or is held."""
    yield
    for user in lab.api("GET", "users?state=active").json():
        for name in user["servers"]:
            lab.stop_server(user["name"], name)
    lab.wait_until(lambda: not lab.leases(), 35, "a lease was left over")
