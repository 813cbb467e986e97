"""Images on offer are fetched in the background, each once a process."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pytorch_spawner.shared import Lab


async def test_each_image_is_pulled_once_one_after_the_other(tmp_path: Path) -> None:
    lab = Lab(f"sqlite:///{tmp_path / 'ledger.sqlite'}", "lab", {})
    pulled: list[str] = []
    at_once = 0

    async def pull(image: str) -> None:
        nonlocal at_once
        at_once += 1
        assert at_once == 1
        await asyncio.sleep(0.01)
        at_once -= 1
        pulled.append(image)

    lab.prepull(["a", "b", "a"], pull)
    lab.prepull(["b", "a"], pull)
    assert pulled == []  # nobody waits for it
    for _ in range(100):
        await asyncio.sleep(0.01)
        if len(pulled) == 2:
            break
    assert pulled == ["a", "b"]
