"""What a real GPU host's checks found, shown in the page: all fine, and faults provoked there.

``gpu_checks.json`` holds what ``tests/gpu/checks_run.py`` saw, machine and seconds included.
"""

from __future__ import annotations

import json
from pathlib import Path

import lab_journals as journals
import pytest
from lab_browser import (
    MARKS,
    expect,
    new_page,
    open_page,
    shoot,
    tell,
    too_wide,
    verdict,
)

from pytorch_spawner.agent.codes import CODES

pytestmark = MARKS

SEEN = json.loads(Path(__file__).with_name("gpu_checks.json").read_text())["scenes"]
FAULTS = {
    "no-shm": "Shared memory is too small, so loading data with workers stops with an error.",
    "full-home": "Your home directory is full, so nothing can be saved.",
    "full-gpu": "The GPU's memory is full.",
    "other-cards": "This image's PyTorch has no code for the NVIDIA H100 80GB HBM3.",
    "no-libcuda": "The NVIDIA driver is there, but CUDA does not start.",
    "no-driver": "The NVIDIA driver is there, but CUDA does not start.",
    "no-compiler": "This image has no C compiler, which torch.compile needs.",
}


def story(scene: str) -> journals.Story:
    """The scene's checks, as its agent told them."""
    told: journals.Story = [(1.0, "check", {"code": "", "phase": "plan", "codes": list(CODES)})]
    at = 1.0
    for row in SEEN[scene]:
        at += row["seconds"]
        told.append((at, *journals.check(**row)))
    done = {"part": "checks", "seconds": round(at - 1, 3), "level": "ok"}
    return [*journals.hub_until("lab"), *told, (at, "done", done)]


@pytest.mark.parametrize("scene", SEEN)
async def test_a_real_host_ran_every_check_that_there_is(scene):
    assert [row["code"] for row in SEEN[scene]] == list(CODES)


@pytest.mark.parametrize("look", ["1280 light", "390 dark"])
@pytest.mark.parametrize("scene", FAULTS)
async def test_a_fault_of_a_real_gpu_host_is_named_and_fits(lab, browser, scene, look):
    failed = [row for row in SEEN[scene] if row["level"] == "fail"]
    width, theme = look.split()
    tell(lab, story(scene))
    async for page in new_page(browser, int(width), theme):
        await open_page(lab, page)
        many = "1 check" if len(failed) == 1 else f"{len(failed)} checks"
        await expect(verdict(page)).to_have_text(f"Your server is ready, but {many} failed.")
        said = page.locator(".lab-verdict").get_by_text(f"{failed[0]['sentence']} See below")
        await expect(said).to_be_visible()
        await expect(
            page.locator(".lab-checks-card").get_by_text(FAULTS[scene]).first
        ).to_be_visible()
        assert await too_wide(page) == []
        await shoot(page, f"gpu-fault-{scene}-{width}-{theme}")


async def test_a_host_where_all_is_well_says_that_the_gpu_is_ready(lab, browser):
    assert {row["level"] for row in SEEN["fine"] if row["code"] != "pip-user"} == {"ok"}
    tell(lab, story("fine"))
    async for page in new_page(browser):
        await open_page(lab, page)
        await expect(verdict(page)).to_have_text("Your GPU is ready.")


async def test_two_gpus_that_compute_together_say_how_fast(lab, browser):
    tell(lab, story("two-gpus"))
    async for page in new_page(browser):
        await open_page(lab, page)
        said = page.locator(".lab-checks-card").get_by_text("Your 2 GPUs compute together, at ")
        await expect(said.first).to_be_attached()
