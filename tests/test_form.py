from __future__ import annotations

from types import SimpleNamespace

import pytest

from pytorch_spawner.core.request import Offer
from pytorch_spawner.form import render_form


def spawner(offer: Offer, ask: str = "auto") -> SimpleNamespace:
    async def offered() -> Offer:
        return offer

    return SimpleNamespace(offer=offered, ask_options=ask)


ONE = Offer({"Small": "i"}, max_gpus=1)
MANY = Offer({'<b>"Big"</b>': "i", "Small": "j"}, max_gpus=2, pools=("a100", "t4"))


@pytest.mark.parametrize(
    ("offer", "ask", "asks"),
    [
        (ONE, "auto", False),
        (ONE, "always", True),
        (MANY, "auto", True),
        (MANY, "never", False),
        (Offer({"Small": "i"}, max_gpus=0, default_gpus=0), "always", True),
    ],
)
async def test_a_form_is_shown_where_there_is_a_choice(offer: Offer, ask: str, asks: bool) -> None:
    assert bool(await render_form(spawner(offer, ask))) == asks


async def test_names_are_escaped_and_every_field_has_its_label() -> None:
    page = await render_form(spawner(MANY))
    assert "<b>" not in page
    assert "&lt;b&gt;&quot;Big&quot;" in page
    for field in ("image", "gpus", "pool"):
        assert f'for="{field}"' in page
        assert f'name="{field}"' in page
