from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from pytorch_spawner.core.request import CourseChoice, Offer
from pytorch_spawner.form import render_form


def spawner(offer: Offer, ask: str = "auto") -> SimpleNamespace:
    async def offered() -> Offer:
        return offer

    return SimpleNamespace(offer=offered, ask_options=ask)


ONE = Offer({"Small": "i"}, max_gpus=1)
MANY = Offer({'<b>"Big"</b>': "i", "Small": "j"}, max_gpus=2, pools=("a100", "t4"))

CUT = Offer({"Small": "i"}, shares=("whole", "slot", "mig:1g.10gb"), on_busy="cpu")


@pytest.mark.parametrize(
    ("offer", "ask", "asks"),
    [
        (ONE, "auto", False),
        (ONE, "always", True),
        (MANY, "auto", True),
        (MANY, "never", False),
        (CUT, "auto", True),
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


async def test_what_the_form_sends_by_itself_is_what_a_start_without_a_form_asks_for() -> None:
    page = await render_form(spawner(CUT))
    for option in (
        '<option value="1" selected>1</option>',
        '<option value="cpu" selected>start without a GPU</option>',
        '<option value="" selected>what I am granted</option>',
        '<option value="mig:1g.10gb">MIG 1g.10gb</option>',
    ):
        assert option in page


async def test_the_form_offers_no_more_than_the_person_is_granted() -> None:
    page = await render_form(spawner(replace(MANY, granted=1)))
    assert 'value="1"' in page
    assert 'value="2"' not in page
    page = await render_form(spawner(replace(MANY, granted=0)))
    assert "No grant gives you a GPU" in page
    assert 'name="gpus"' not in page


TAUGHT = replace(ONE, courses={"cv": CourseChoice("<i>Vision</i>"), "nlp": CourseChoice("Talking")})


async def test_who_belongs_to_two_courses_is_asked_which_and_else_gets_what_it_uses() -> None:
    page = await render_form(spawner(TAUGHT))
    assert '<option value="cv" selected>&lt;i&gt;Vision&lt;/i&gt;</option>' in page
    assert '<option value="" selected>none</option>' not in page
    for field in ("image", "gpus"):
        start = page.index(f'id="{field}"')
        assert '<option value=""' in page[start : start + 120]


async def test_who_belongs_to_one_course_alone_is_not_asked() -> None:
    assert not await render_form(spawner(replace(ONE, courses={"cv": CourseChoice("Vision")})))


async def test_an_image_that_fits_no_gpu_cannot_be_chosen_and_says_why() -> None:
    offer = replace(MANY, unfit={"Small": "It has no code for <this> GPU."}, has_auto=True)
    page = await render_form(spawner(offer))
    assert '<option value="Small" disabled>Small</option>' in page
    assert "It has no code for &lt;this&gt; GPU." in page
    assert '<option value="auto">the best that fits the GPU</option>' in page
    assert 'value="auto"' not in await render_form(spawner(MANY))
