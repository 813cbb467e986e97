"""The catalog in the ledger: what was scanned, again, forgotten, and what the log says of it."""

from __future__ import annotations

from dataclasses import replace

from pytorch_spawner.core.catalog import Image

HUB = "lab"
IMAGE = Image(
    "lab:1", "sha256:" + "ab" * 32, 123, 1.5, torch="2.6.0", cuda="12.4", archs=("sm_80",)
)


def test_an_image_is_there_after_its_scan(ledger):
    assert ledger.images(HUB) == ()
    assert ledger.save_image(HUB, IMAGE, "ana") is None
    assert ledger.image(HUB, "lab:1") == IMAGE
    assert ledger.images(HUB) == (IMAGE,)
    assert ledger.image("other", "lab:1") is None
    assert ledger.images("other") == ()


def test_a_new_scan_takes_the_place_of_the_old_one_and_the_log_keeps_both(ledger):
    ledger.save_image(HUB, IMAGE, "ana")
    newer = replace(IMAGE, image_id="sha256:" + "cd" * 32, torch="2.8.0", scanned_at=2.5)
    assert ledger.save_image(HUB, newer, "bo") == IMAGE
    assert ledger.images(HUB) == (newer,)
    line = ledger.latest_change(HUB, "image", "lab:1")
    assert (line.by, line.before["image_id"], line.after["image_id"]) == (
        "bo",
        IMAGE.image_id,
        newer.image_id,
    )
    assert line.after["name"] == "PyTorch 2.8.0 with CUDA 12.4"


def test_the_same_image_scanned_again_writes_no_line_and_wakes_no_scheduler(ledger):
    ledger.save_image(HUB, IMAGE, "ana")
    version, shown = ledger.version(HUB), ledger.shown_version(HUB)
    ledger.save_image(HUB, replace(IMAGE, scanned_at=9.0), "bo")
    assert ledger.image(HUB, "lab:1").scanned_at == 9.0
    assert len(ledger.changes(HUB)) == 1
    assert ledger.version(HUB) == version
    assert ledger.shown_version(HUB) > shown


def test_a_forgotten_image_is_gone_and_the_log_says_who(ledger):
    ledger.save_image(HUB, IMAGE, "ana")
    assert ledger.remove_image(HUB, "lab:1", "bo") == IMAGE
    assert ledger.images(HUB) == ()
    line = ledger.latest_change(HUB, "image", "lab:1")
    assert (line.by, line.after) == ("bo", None)
    assert ledger.remove_image(HUB, "lab:1", "bo") is None


def test_whatever_an_image_said_can_be_written_down(ledger):
    odd = replace(IMAGE, problem="a\0b \ud800 c", notes=("<script>\0",), torch=None, archs=None)
    ledger.save_image(HUB, odd, "ana")
    read = ledger.image(HUB, "lab:1")
    assert (read.problem, read.notes, read.torch, read.archs) == (
        "ab ? c",
        ("<script>",),
        None,
        None,
    )
