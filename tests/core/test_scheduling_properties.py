"""Random stories of a small lab: what must hold whatever happens. See ``lab_model``."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytorch_spawner.core import scheduling
from pytorch_spawner.core.gpus import GpuUuid
from pytorch_spawner.core.placement import Holding
from pytorch_spawner.core.reservation import Reservations
from pytorch_spawner.core.tickets import Held
from tests.core import soak
from tests.core.lab_model import HEAD, LABS, OPERATIONS, START, USERS, Broken, Lab, play
from tests.examples import examples

# Long enough for something to happen; whoever shrinks fills with zeros, which is quiet.
STORIES = st.binary(min_size=HEAD + 24, max_size=HEAD + 80)
QUIETLY = [HealthCheck.too_slow, HealthCheck.data_too_large]


@given(STORIES)
@settings(max_examples=examples(300), deadline=None, suppress_health_check=QUIETLY)
def test_whatever_happens_nobody_gets_too_much_and_everybody_is_served(story: bytes) -> None:
    assert soak.fault(story) == ""


@pytest.mark.slow
@given(STORIES)
@settings(max_examples=10_000, deadline=None, suppress_health_check=QUIETLY)
def test_the_same_ten_thousand_times(story: bytes) -> None:
    assert soak.fault(story) == ""


@pytest.mark.parametrize(
    "story",
    [
        # Found by the soak: what was said depended on the order of the input.
        "0c00e68007002c093a8055",
        # A pool with a drained device kept its other one for two GPUs, while another pool had two.
        "05800500051507ad0000ab9d29",
        # Who waited for two was promised the end of a kept lease, which its own server took up
        # again in the same decision.
        "53e914009a7a000000002f0001",
        # The promised time was the very one at which the grant ended.
        "0304a000018003000215020000",
        # Promised a time at which the person's other servers have used up the week's hours.
        "0c0a58000b00510080000000000029007517010011630400009d1ce600",
    ],
)
def test_a_story_that_once_failed(story: str) -> None:
    assert soak.fault(bytes.fromhex(story)) == ""


# The grants that pin GPUs, which in a small lab leave nothing for those they do not name.
PINS = 8 + 64


def test_every_lab_serves_everybody_with_every_grant_and_both_ways_of_waiting() -> None:
    crowd = bytes(byte for arg in range(0, 120, 3) for byte in (0, arg))
    overtaking = False
    for lab in range(2 * len(LABS)):
        for policy in (0, 64, 128 + 16, 128 + 4 + 3):
            play(bytes([lab, policy, 255]) + crowd)
            it = play(bytes([lab, policy, 255 - PINS]) + crowd)
            assert it.has_endless or set(USERS) <= set(it.served), (lab, policy)
            rivals = [name for name in it.served if name.startswith("r")]
            assert it.has_rivals or not rivals, (lab, policy)
            overtaking |= bool(rivals)
    assert overtaking, "no rival was ever served"


def test_the_model_notices_what_it_is_there_for() -> None:
    lab = Lab(0, 0, 1)
    lab.arrive(3)
    lab.decide()
    lab.check_state()
    (held,) = lab.leases.values()
    lab.leases["again"] = held
    with pytest.raises(Broken, match="held twice"):
        lab.check_state()


def _starving(policy: int) -> Lab:
    """Two pools of two: one device of zeta is held for ever, those of alpha in turn by rivals."""
    lab = Lab(5 + 8, policy, 1 + 4)
    for name, number, since_s in (("eve", 3, 60.0), ("zoe", 0, 60.0), ("fay", 1, 3660.0)):
        slot = Holding(GpuUuid(f"GPU-{number:04d}"))
        lab.leases[f"l-{name}"] = Held(f"l-{name}", name, "", (slot,), "all", START - since_s)
    lab.arrive(5)  # ana wants two, by her group's grant
    return lab


@pytest.mark.parametrize("policy", [128, 128 + 32], ids=["no end is known", "leases have an end"])
def test_who_wants_two_is_served_though_one_pool_is_held_for_ever(policy: int) -> None:
    it = _starving(policy)
    it.settle()
    assert it.served["ana"] == 1
    assert sum(it.served.values()) > 3, "rivals came in between"


def test_the_model_notices_who_starves(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what was once done: only the pool with the most free devices is ever kept."""
    monkeypatch.setattr(
        Reservations,
        "_soonest",
        lambda _, places: max(places, key=lambda place: len(place.free))._replace(told=None),
    )
    monkeypatch.setattr(scheduling._Pass, "_is_past", lambda *_: False)
    with pytest.raises(Broken, match="t1 waited beyond the bound"):
        _starving(128).settle()


def test_every_operation_is_played() -> None:
    lab = Lab(3, 0, 255)
    for operation in OPERATIONS:
        for arg in (0, 1, 37):
            operation(lab, arg)
            lab.decide()
            lab.check_state()


def test_the_soak_replays_and_shrinks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert soak.story(1, 2) == soak.story(1, 2) != soak.story(1, 3)
    assert soak.main(["--sequences", "3", "--workers", "1"]) == 0
    assert "3 sequences, no fault" in capsys.readouterr().out

    def breaks(data: bytes, told: list[str] | None = None) -> None:
        if 33 in data[HEAD::2]:
            raise Broken("there it is")

    monkeypatch.setattr(soak, "play", breaks)
    number = next(number for number in range(1000) if soak.fault(soak.story(1, number)))
    assert soak.shrink(soak.story(1, number)) in (b"\0\0\0\x21\0", b"\0\0\0\x21")
    assert soak.report(1, number) == 1
    assert "there it is" in capsys.readouterr().out
