from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytorch_spawner.core.gpus import Gpu, GpuUuid, Inventory
from pytorch_spawner.core.request import (
    ON_BUSY,
    CourseChoice,
    Offer,
    Request,
    parse,
    shares_of,
)
from pytorch_spawner.errors import BadRequest

OFFER = Offer({"Small": "lab:cpu", "Big": "lab:cuda"}, max_gpus=2, pools=("a100", "t4"))
MIG = Offer({"Small": "lab:cpu"}, shares=("whole", "slot", "mig:1g.10gb"), on_busy="fail")
NO_GPU = Offer({"Small": "lab:cpu"}, max_gpus=0, default_gpus=0)


@pytest.mark.parametrize(
    ("options", "offer", "expected"),
    [
        ({}, OFFER, Request("lab:cpu", 1, "any")),
        ({}, NO_GPU, Request("lab:cpu", 0, "none")),
        (
            {"image": "Big", "gpus": 2, "pool": "t4"},
            OFFER,
            Request("lab:cuda", 2, "any", "t4", is_asked=True),
        ),
        (
            {"image": ["lab:cuda"], "gpus": ["0"]},
            OFFER,
            Request("lab:cuda", 0, "none", is_asked=True),
        ),
        ({"gpus": "2"}, OFFER, Request("lab:cpu", 2, "any", is_asked=True)),
        ({"share": "none"}, OFFER, Request("lab:cpu", 0, "none", is_asked=True)),
        ({"share": "whole"}, OFFER, Request("lab:cpu", 1, "whole", is_asked=True)),
        ({"share": "any", "gpus": 2}, OFFER, Request("lab:cpu", 2, "any", is_asked=True)),
        (
            {"share": "mig:1g.10gb"},
            MIG,
            Request("lab:cpu", 1, "mig:1g.10gb", on_busy="fail", is_asked=True),
        ),
        ({"gpus": "", "image": "", "pool": ""}, OFFER, Request("lab:cpu", 1, "any")),
        ({"on_busy": "cpu"}, OFFER, Request("lab:cpu", 1, "any", on_busy="cpu")),
        ({"image": "auto"}, OFFER, Request("lab:cpu", 1, "any")),
        ({"image": "auto"}, replace(OFFER, has_auto=True), Request("auto", 1, "any")),
        ({"on_busy": ""}, MIG, Request("lab:cpu", 1, "any", on_busy="fail")),
    ],
)
def test_a_request_within_the_offer(options: dict, offer: Offer, expected: Request) -> None:
    assert parse(options, offer) == expected


CV = CourseChoice("Computer vision", image="Big", gpus=2, share="whole", pool="t4")
TALK = CourseChoice("Talking", gpus=0)
PLAIN = CourseChoice("Plain")
MUCH = CourseChoice("Much", gpus=8, share="mig:7g.80gb", pool="gone")


def taught(*courses: CourseChoice, lab: Offer = OFFER) -> Offer:
    return replace(lab, courses={one.title.split()[0].lower(): one for one in courses})


@pytest.mark.parametrize(
    ("options", "offer", "expected"),
    [
        pytest.param(
            {"course": "computer"}, taught(CV, TALK),
            Request("lab:cuda", 2, "whole", "t4", "computer"),
            id="a course brings its image, GPUs, share and pool",
        ),
        pytest.param(
            {}, taught(CV), Request("lab:cuda", 2, "whole", "t4", "computer"),
            id="whoever belongs to one course alone gets it without a word",
        ),
        pytest.param(
            {}, taught(CV, TALK), Request("lab:cpu", 1, "any"),
            id="whoever belongs to two says which",
        ),
        pytest.param(
            {"course": ""}, taught(CV), Request("lab:cpu", 1, "any"),
            id="none can be said",
        ),
        pytest.param(
            {"course": "computer", "gpus": 1}, taught(CV),
            Request("lab:cuda", 1, "any", course="computer", is_asked=True),
            id="what a start says itself wins",
        ),
        pytest.param(
            {"course": "computer", "image": "Small"}, taught(CV),
            Request("lab:cpu", 2, "whole", "t4", "computer"),
            id="and so does its image",
        ),
        pytest.param(
            {"course": "talking"}, taught(TALK, CV),
            Request("lab:cpu", 0, "none", course="talking"),
            id="a course for the CPU",
        ),
        pytest.param(
            {"course": "plain"}, taught(PLAIN, CV), Request("lab:cpu", 1, "any", course="plain"),
            id="a course that asks for nothing gets the lab's default",
        ),
        pytest.param(
            {"course": "much"}, taught(MUCH, CV), Request("lab:cpu", 2, "any", course="much"),
            id="a course that asks for what the lab has not gets what it has",
        ),
        pytest.param(
            {}, taught(CV, lab=replace(NO_GPU, images=OFFER.images)),
            Request("lab:cuda", 0, "none", course="computer"),
            id="a lab without a GPU gives none",
        ),
    ],
)  # fmt: skip
def test_a_course_is_what_a_start_gets_where_it_does_not_say(
    options: dict, offer: Offer, expected: Request
) -> None:
    assert parse(options, offer) == expected


def test_a_course_whose_image_the_lab_has_not_gets_the_labs_own() -> None:
    gone = CourseChoice("Old", image="gone:1")
    assert parse({}, taught(gone)).image == "lab:cpu"
    assert parse({}, taught(gone, lab=replace(OFFER, has_auto=True))).image == "auto"
    with pytest.raises(BadRequest, match='no image "gone:1"'):
        parse({}, taught(replace(gone, is_strict=True)))


def test_an_admin_is_in_a_course_only_on_request() -> None:
    offer = replace(taught(CV), defaults_to_course=False)
    assert parse({}, offer).course == ""
    assert parse({"course": "computer"}, offer).course == "computer"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gpus": -1}, "allowed is 0 to 2"),
        ({"gpus": 3}, "allowed is 0 to 2"),
        ({"gpus": 1.5}, "gpus"),
        ({"gpus": None, "share": "slot"}, "share"),
        ({"gpus": "1e3"}, "gpus"),
        ({"gpus": False}, "gpus"),
        ({"image": "lab:evil"}, "It offers Small, Big"),
        ({"image": "a\x00\n" + "b" * 500}, "…"),
        ({"image": {"__jupyterhub_bytes__": True}}, "no image"),
        ({"pool": "h100"}, "a100, t4"),
        ({"course": "ml"}, "course"),
        ({"share": "whole", "gpus": 0}, 'say share "none"'),
        ({"share": "mig:1g.10gb"}, "no such MIG profile"),
        ({"on_busy": "steal"}, "queue, cpu, fail"),
        ({"on_busy": ["cpu", "fail"]}, "takes one value"),
        ({"cmd": "rm", "gpus": 1}, "Unknown option"),
        ({"gpus": ["1", "2"]}, "takes one value"),
        ({"gpus": [1]}, "one value"),
    ],
    ids=str,
)
def test_what_is_outside_the_offer_is_refused_with_a_sentence(options: dict, says: str) -> None:
    with pytest.raises(BadRequest, match=None) as refused:
        parse(options, OFFER)
    assert says in refused.value.public_message
    assert len(refused.value.public_message) < 400
    assert refused.value.public_message.isprintable()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(["image", "gpus", "share", "pool", "course", "on_busy", "x"]), json_values
    )
)
def test_anything_gives_a_request_within_the_offer_or_a_sentence(options: dict) -> None:
    try:
        request = parse(options, OFFER)
    except BadRequest:
        return
    assert request.image in OFFER.images.values()
    assert 0 <= request.gpus <= OFFER.max_gpus
    assert (request.gpus == 0) == (request.share == "none")
    assert request.on_busy in ON_BUSY


def test_a_lab_offers_the_shares_that_its_devices_have() -> None:
    devices = (
        Gpu(GpuUuid("GPU-0000"), mode="shared:2"),
        Gpu(GpuUuid("GPU-0001"), mode="mig"),
        Gpu(GpuUuid("MIG-0000"), mig_profile="1g.10gb"),
    )
    assert shares_of(Inventory(devices)) == ("slot", "mig:1g.10gb")
    assert shares_of(Inventory((Gpu(GpuUuid("GPU-0002")),))) == ("whole",)
    assert shares_of(Inventory()) == ()


def test_the_same_start_without_a_gpu() -> None:
    request = Request("lab:cpu", 2, "slot", "t4", "ml", "queue", is_asked=True)
    assert request.without_gpu() == Request("lab:cpu", 0, "none", "", "ml", "queue", is_asked=True)
