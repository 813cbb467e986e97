"""Taking back what an admin changed, by table, and by property."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytorch_spawner.core.gpus import GpuUuid
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.placement import DeviceSetting
from pytorch_spawner.errors import BadRequest, ChangedMeanwhile

HUB = "lab"
UUID, OTHER = GpuUuid("GPU-1234"), GpuUuid("GPU-5678")
ANA = Grant("a", "user", "ana", priority=5)


def write(ledger, *grants):
    return ledger.edit_grants(HUB, "root", lambda _: grants)[1]


def test_an_added_a_changed_and_a_removed_grant_come_back(ledger):
    (added,) = write(ledger, ANA)
    (changed,) = write(ledger, replace(ANA, priority=7, images=("lab:1",)))
    ledger.undo(HUB, changed, "kim")
    assert ledger.grants(HUB) == (ANA,)
    (removed,) = write(ledger)
    ledger.undo(HUB, removed, "kim")
    assert ledger.grants(HUB) == (ANA,)
    with pytest.raises(BadRequest, match="taken back before"):
        ledger.undo(HUB, removed, "kim")
    ledger.undo(HUB, added, "kim")
    assert ledger.grants(HUB) == ()


def test_what_took_back_is_a_line_of_its_own_and_can_be_taken_back(ledger):
    (added,) = write(ledger, ANA)
    undone = ledger.undo(HUB, added, "kim")
    line, first = ledger.changes(HUB)
    assert (line.id, line.by, line.undoes, first.undone_by) == (undone, "kim", added, undone)
    ledger.undo(HUB, undone, "root")
    assert ledger.grants(HUB) == (ANA,)


def test_what_was_changed_again_is_left_alone_and_said_by_whom(ledger):
    (added,) = write(ledger, ANA)
    ledger.edit_grants(HUB, "bo", lambda _: [replace(ANA, priority=9)])
    with pytest.raises(ChangedMeanwhile, match="changed again since by bo") as moved:
        ledger.undo(HUB, added, "kim")
    assert moved.value.now["priority"] == 9
    assert ledger.grants(HUB)[0].priority == 9
    assert len(ledger.changes(HUB)) == 2


def test_a_grant_does_not_come_back_where_another_pins_its_gpu_by_now(ledger):
    pin = Grant("p", "user", "ana", gpus=(UUID,))
    write(ledger, pin)
    (removed,) = write(ledger)
    write(ledger, replace(pin, id="q", subject="bo"))
    with pytest.raises(BadRequest, match="is pinned to"):
        ledger.undo(HUB, removed, "kim")
    assert [grant.id for grant in ledger.grants(HUB)] == ["q"]


@pytest.mark.parametrize("change", [{"drained": "fan"}, {"mode": "shared:4"}, {"pool": "research"}])
def test_what_was_decided_about_a_device_comes_back(ledger, change):
    before = DeviceSetting(UUID, pool="a", mode="exclusive")
    ledger.change_setting(HUB, UUID, "root", lambda _: before)
    line = ledger.change_setting(HUB, UUID, "root", lambda was: replace(was, **change))
    ledger.undo(HUB, line, "kim")
    assert ledger.settings(HUB) == (before,)


def test_lines_that_were_written_together_are_taken_back_together(ledger):
    pins = [Grant("a", "user", "ana", gpus=(UUID,)), Grant("b", "user", "bo", gpus=(OTHER,))]
    write(ledger, *pins)
    swapped = write(ledger, replace(pins[0], gpus=(OTHER,)), replace(pins[1], gpus=(UUID,)))
    ledger.undo(HUB, swapped[1], "kim")
    assert ledger.grants(HUB) == tuple(pins)
    lines = ledger.changes(HUB, 4)
    assert [line.undoes for line in lines[:2]] == list(reversed(swapped))
    assert all(line.undone_by for line in lines[2:])


def test_a_change_that_changes_nothing_is_no_line(ledger):
    assert ledger.change_setting(HUB, UUID, "root", lambda was: was) is None
    assert write(ledger) == ()
    assert ledger.changes(HUB) == ()


def test_a_boost_comes_back_while_the_start_waits_and_not_after(ledger):
    start = ledger.begin_start(HUB, "ana", "", {"image": "i", "gpus": 1})
    ledger.join(start)
    line = ledger.boost(HUB, "ana", "", 10, "root")
    ledger.undo(HUB, line, "kim")
    assert ledger.queue(HUB)[0].ticket.boost == 0
    line = ledger.boost(HUB, "ana", "", 10, "root")
    removed = ledger.remove_ticket(HUB, "ana", "", "root")
    with pytest.raises(ChangedMeanwhile):
        ledger.undo(HUB, line, "kim")
    with pytest.raises(BadRequest, match="cannot be taken back"):
        ledger.undo(HUB, removed, "kim")


def test_a_line_of_another_hub_is_none(ledger):
    (added,) = write(ledger, ANA)
    with pytest.raises(BadRequest, match="no such line"):
        ledger.undo("other", added, "kim")


def test_the_log_is_read_in_pages_and_searched(ledger):
    for number in range(5):
        ledger.edit_grants(HUB, f"by{number}", lambda was, n=number: [*was, Grant(f"g{n}")])
    ledger.note(HUB, "eve", "refused", "PUT api/grants", {"code": "forbidden"})
    newest = ledger.changes(HUB, 2)
    assert [one.by for one in newest] == ["eve", "by4"]
    assert [one.by for one in ledger.changes(HUB, 2, before=newest[-1].id)] == ["by3", "by2"]
    assert [one.subject for one in ledger.changes(HUB, search="G3")] == ["g3"]
    assert ledger.changes(HUB, search="100%") == ()
    assert [one.by for one in ledger.changes(HUB, search="forbidden")] == ["eve"]


def test_lines_of_one_change_know_how_many_they_are_also_when_one_is_looked_for(ledger):
    write(ledger, *(Grant(f"g{number}") for number in range(4)))
    write(ledger, *(Grant(f"g{number}") for number in range(5)))
    assert [one.together for one in ledger.changes(HUB, search="g2")] == [4]
    assert [one.together for one in ledger.changes(HUB, 1)] == [1]


def test_a_line_that_decides_nothing_wakes_no_scheduler(ledger):
    before = ledger.version(HUB)
    ledger.note(HUB, "eve", "refused", "PUT api/grants", {})
    assert ledger.version(HUB) == before


def test_measured_time_is_added_up_by_day(ledger):
    ledger.add_busy(HUB, [(0.0, "ana", "cv", UUID, 10.0), (86_400.0, "ana", "cv", UUID, 1.0)])
    ledger.add_busy(HUB, [(0.0, "ana", "cv", UUID, 5.0)])
    _, busy = ledger.used(HUB, 0.0, 0.0)
    assert [(one.day, one.busy_s) for one in busy] == [(0.0, 15.0)]
    assert ledger.used("other", 0.0, 0.0) == ([], [])
