"""Warm caches in the ledger: builds in their order, what starts are given, undo, limits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from pytorch_spawner.core.warmcache import CacheKey, Target, choose, currents
from pytorch_spawner.errors import BadRequest, ChangedMeanwhile
from pytorch_spawner.ledger import caches as module

HUB = "lab"
KEY = CacheKey("sha256:1", "NVIDIA H100", "9.0", "580", "ml")
SUITE = {"name": "example", "targets": []}


def ask(ledger, *, hub=HUB, by="ana", scope="ml", archive=b"tar"):
    return ledger.request_cache(
        hub,
        by=by,
        scope=scope,
        image="lab:1",
        pool="research",
        gpus=1,
        suite=SUITE,
        suite_digest="d" * 64,
        archive=archive,
    )


def build(ledger, **said):
    """A published cache, not promoted."""
    asked = ask(ledger, **said)
    begun = ledger.next_cache(HUB)
    assert begun is not None
    assert begun.id == asked.id
    ledger.note_cache(asked.id, state="checking", key=KEY)
    ledger.note_cache(asked.id, state="published", volume=f"warm-{asked.id}", size_bytes=10)
    return asked


def test_what_was_asked_for_is_there_and_its_archive_is_read_by_itself(ledger):
    one = ask(ledger, archive=b"\0tar\xff")
    assert (one.state, one.scope, one.image, one.pool, one.gpus) == (
        "queued",
        "ml",
        "lab:1",
        "research",
        1,
    )
    assert (len(one.id), int(one.id, 16) >= 0, one.suite) == (12, True, SUITE)
    assert ledger.cache(HUB, one.id) == one
    assert ledger.caches(HUB) == (one,)
    assert ledger.suite_archive(HUB, one.id) == b"\0tar\xff"
    assert ledger.cache("other", one.id) is None
    assert ledger.caches("other") == ()
    with pytest.raises(BadRequest, match="no such build"):
        ledger.suite_archive("other", one.id)


def test_builds_begin_one_after_the_other_the_oldest_first(ledger):
    first, second = ask(ledger), ask(ledger)
    assert [one.id for one in ledger.caches(HUB)] == [second.id, first.id]
    assert ledger.cache_under_way(HUB) is None
    begun = ledger.next_cache(HUB)
    assert (begun.id, begun.state) == (first.id, "building")
    assert ledger.next_cache(HUB) is None
    ledger.note_cache(first.id, state="checking")
    assert ledger.next_cache(HUB) is None
    assert ledger.cache_under_way(HUB).id == first.id
    ledger.note_cache(first.id, state="failed", message="It raised.")
    assert ledger.cache_under_way(HUB) is None
    assert ledger.next_cache(HUB).id == second.id
    assert ledger.next_cache("other") is None


def test_one_build_begins_however_many_ask(ledger):
    for _ in range(3):
        ask(ledger)
    with ThreadPoolExecutor(6) as pool:
        begun = list(pool.map(lambda _: ledger.next_cache(HUB), range(12)))
    assert len([one for one in begun if one is not None]) == 1


def test_what_a_build_found_out_is_kept_and_the_rest_stays(ledger):
    one = ask(ledger)
    ledger.next_cache(HUB)
    targets = (Target("gpt", 8, 12.5, 1.25, 3, 0), Target("mlp", None, 2.0, 0.5, 1, 0))
    ledger.note_cache(one.id, key=KEY, torch="2.13.0", triton="3.5", targets=targets)
    ledger.note_cache(one.id, volume="v", digest="a" * 64, size_bytes=5 * 2**32, files=7)
    ledger.note_cache(one.id, state="published", message="Proved.", ended_at=5.0)
    now = ledger.cache(HUB, one.id)
    assert (now.key, now.torch, now.triton, now.targets) == (KEY, "2.13.0", "3.5", targets)
    assert (now.volume, now.size_bytes, now.files, now.ended_at) == ("v", 5 * 2**32, 7, 5.0)
    ledger.note_cache("0" * 12, state="failed")


def test_a_build_that_is_over_stays_over(ledger):
    one = ask(ledger)
    ledger.next_cache(HUB)
    ledger.note_cache(one.id, state="failed", message="It raised.")
    ledger.note_cache(one.id, state="published", message="Proved.")
    now = ledger.cache(HUB, one.id)
    assert (now.state, now.message) == ("failed", "It raised.")
    assert now.ended_at is not None
    ledger.note_cache(one.id, log="a log may come later")
    assert ledger.cache(HUB, one.id).log


def test_a_log_is_cut_at_its_beginning_and_holds_nothing_a_database_refuses(ledger):
    one = ask(ledger)
    ledger.note_cache(one.id, log="\0\ud800" + "é" * 20_000 + "end", message="a\0b")
    now = ledger.cache(HUB, one.id)
    assert len(now.log.encode()) <= module.MAX_LOG_BYTES
    assert now.log.endswith("éend")
    assert "\0" not in now.log + now.message


def test_promote_and_roll_back_choose_what_starts_get(ledger):
    old, new = build(ledger), build(ledger)
    assert ledger.offered_caches(HUB) == ()
    assert ledger.promote_cache(HUB, old.id, "root")
    assert ledger.promote_cache(HUB, new.id, "root")
    assert choose(ledger.offered_caches(HUB), KEY).id == new.id
    built_at = ledger.cache(HUB, new.id).ended_at
    assert ledger.retire_cache(HUB, new.id, "root")
    assert ledger.cache(HUB, new.id).ended_at > built_at, "it is kept from now on"
    assert choose(ledger.offered_caches(HUB), KEY).id == old.id
    assert not ledger.retire_cache(HUB, new.id, "root")
    assert currents(ledger.caches(HUB)) == {old.id}


def test_only_what_is_published_is_promoted(ledger):
    one = ask(ledger)
    assert not ledger.promote_cache(HUB, one.id, "root")
    assert not ledger.promote_cache(HUB, "0" * 12, "root")
    assert not ledger.promote_cache("other", build_first(ledger, one).id, "root")
    ledger.expire_cache(one.id, "Too old.")
    assert not ledger.promote_cache(HUB, one.id, "root")
    assert not ledger.retire_cache(HUB, one.id, "root")


def build_first(ledger, one):
    ledger.next_cache(HUB)
    ledger.note_cache(one.id, state="published", key=KEY)
    return one


def test_a_build_that_waits_is_stopped_at_once_and_one_under_way_is_asked_to(ledger):
    first, second = ask(ledger), ask(ledger)
    ledger.next_cache(HUB)
    assert ledger.cancel_cache(HUB, second.id, "root")
    assert ledger.cache(HUB, second.id).state == "failed"
    assert "root stopped it" in ledger.cache(HUB, second.id).message
    assert not ledger.is_cache_stopped(first.id)
    assert ledger.cancel_cache(HUB, first.id, "root")
    assert ledger.cancel_cache(HUB, first.id, "root"), "asked twice is asked"
    assert ledger.is_cache_stopped(first.id)
    assert ledger.cache(HUB, first.id).state == "building"
    ledger.note_cache(first.id, state="failed", message="Stopped.")
    assert not ledger.cancel_cache(HUB, first.id, "root")
    assert [one.what for one in ledger.changes(HUB)] == ["cache"] * 4
    assert ledger.is_cache_stopped("0" * 12), "one that is gone has nothing to go on for"


def test_removing_says_what_it_was_and_happens_once(ledger):
    one = build(ledger)
    was = ledger.remove_cache(HUB, one.id, "root")
    assert (was.state, was.volume) == ("published", f"warm-{one.id}")
    now = ledger.cache(HUB, one.id)
    assert (now.state, now.volume) == ("expired", was.volume), "a server may have it mounted"
    ledger.expire_cache(one.id, now.message)
    now = ledger.cache(HUB, one.id)
    assert (now.volume, now.message) == ("", "root removed it.")
    assert ledger.remove_cache(HUB, one.id, "root") is None
    waiting = ask(ledger)
    assert ledger.remove_cache(HUB, waiting.id, "root") is None, "it has to be stopped first"
    assert ledger.remove_cache("other", waiting.id, "root") is None


def test_use_is_noted_once_a_minute(tmp_path):
    clock = [1000.0]
    ledger = module_ledger(tmp_path, clock)
    one = build(ledger)
    ledger.use_cache(one.id)
    first = ledger.cache(HUB, one.id).used_at
    shown = ledger.shown_version(HUB)
    clock[0] += 30
    ledger.use_cache(one.id)
    assert (ledger.cache(HUB, one.id).used_at, ledger.shown_version(HUB)) == (first, shown)
    clock[0] += 31
    ledger.use_cache(one.id)
    assert ledger.cache(HUB, one.id).used_at > first
    ledger.use_cache("0" * 12)
    ledger.close()


def module_ledger(tmp_path, clock):
    from pytorch_spawner.ledger.store import Ledger

    return Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}", lambda: clock[0])


def test_every_change_is_shown_and_wakes_no_scheduler(ledger):
    one = ask(ledger)
    steps = [
        lambda: ledger.next_cache(HUB),
        lambda: ledger.note_cache(one.id, state="published", key=KEY),
        lambda: ledger.promote_cache(HUB, one.id, "root"),
        lambda: ledger.retire_cache(HUB, one.id, "root"),
        lambda: ledger.use_cache(one.id),
        lambda: ledger.remove_cache(HUB, one.id, "root"),
        lambda: ask(ledger),
    ]
    decided = ledger.version(HUB)
    for step in steps:
        before = ledger.shown_version(HUB)
        step()
        assert ledger.shown_version(HUB) > before
    assert ledger.version(HUB) == decided


def test_a_promotion_and_a_roll_back_can_be_taken_back(ledger):
    one = build(ledger)
    ledger.promote_cache(HUB, one.id, "root")
    at = ledger.cache(HUB, one.id).promoted_at
    ledger.retire_cache(HUB, one.id, "root")
    line = ledger.latest_change(HUB, "cache", one.id)
    undone = ledger.undo(HUB, line.id, "kim")
    assert ledger.cache(HUB, one.id).promoted_at == at, "with its old place among the others"
    assert ledger.changes(HUB)[0].undoes == line.id
    with pytest.raises(BadRequest, match="taken back before"):
        ledger.undo(HUB, line.id, "kim")
    ledger.undo(HUB, undone, "kim")
    assert ledger.cache(HUB, one.id).promoted_at is None


def test_what_was_promoted_again_or_removed_since_is_left_alone(ledger):
    one = build(ledger)
    ledger.promote_cache(HUB, one.id, "root")
    line = ledger.latest_change(HUB, "cache", one.id)
    ledger.promote_cache(HUB, one.id, "bo")
    with pytest.raises(ChangedMeanwhile, match="changed again since by bo"):
        ledger.undo(HUB, line.id, "kim")
    latest = ledger.latest_change(HUB, "cache", one.id)
    ledger.remove_cache(HUB, one.id, "eve")
    with pytest.raises(ChangedMeanwhile, match="by eve"):
        ledger.undo(HUB, latest.id, "kim")
    with pytest.raises(BadRequest, match="cannot be taken back"):
        ledger.undo(HUB, ledger.latest_change(HUB, "cache", one.id).id, "kim")


def test_too_many_builds_that_wait_are_refused(ledger, monkeypatch):
    monkeypatch.setattr(module, "MAX_QUEUED", 2)
    ask(ledger), ask(ledger)
    with pytest.raises(BadRequest, match="2 builds wait already"):
        ask(ledger)
    assert len(ledger.caches(HUB)) == 2


def test_builds_that_are_long_over_are_forgotten_and_never_what_is_published(ledger, monkeypatch):
    monkeypatch.setattr(module, "KEPT_ENDED", 2)
    kept, removed = build(ledger), build(ledger)
    ledger.remove_cache(HUB, removed.id, "root")
    failed = []
    for _ in range(4):
        failed.append(ask(ledger).id)
        ledger.cancel_cache(HUB, failed[-1], "root")
    last = ask(ledger)
    left = [one.id for one in ledger.caches(HUB)]
    assert left == [last.id, *reversed(failed[2:]), removed.id, kept.id]
    ledger.expire_cache(removed.id, "Its volume is gone, too.")
    ask(ledger)
    assert removed.id not in {one.id for one in ledger.caches(HUB)}
