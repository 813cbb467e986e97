"""The start form, rendered from the offer that also checks what it sends."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from html import escape
from typing import Protocol

from pytorch_spawner.core.request import AUTO, Offer


class Asks(Protocol):
    """What the form needs of a spawner."""

    ask_options: str

    async def offer(self) -> Offer:
        """What may be asked for."""


async def render_form(spawner: Asks) -> str:
    """Return the form's HTML; "" (start at once) where there is nothing to choose."""
    offer = await spawner.offer()
    has_choice = (
        len(offer.images) > 1
        or offer.max_gpus > 1
        or len(offer.pools) > 1
        or len(offer.shares) > 1
        or len(offer.courses) > 1
    )
    if spawner.ask_options == "never" or (spawner.ask_options == "auto" and not has_choice):
        return ""
    # "": what the course names, else the lab's default.
    usual = {"": "what the course uses"} if offer.courses else {}
    fields = []
    if offer.courses:
        titles = {name: one.title for name, one in offer.courses.items()}
        fields.append(_select("course", "Course", {**titles, "": "none"}, next(iter(titles))))
    if offer.has_auto and len(offer.images) > 1:
        usual_image = {AUTO: "the best that fits the GPU"}
    else:
        usual_image = {}
    fields.append(_images(offer, {**usual, **usual_image}))
    most = offer.max_gpus if offer.granted is None else min(offer.max_gpus, offer.granted)
    if most == 0:
        why = (
            "No grant gives you a GPU: your servers compute on the CPU. An admin can add one."
            if offer.max_gpus
            else "This lab has no GPU: servers compute on the CPU."
        )
        return "".join((*fields, f'<p class="text-body-secondary">{why}</p>'))
    counts = {str(count): str(count) for count in range(1, most + 1)}
    default = "" if offer.courses else str(min(offer.default_gpus, most))
    fields.append(_select("gpus", "GPUs", {**usual, "0": "none, on the CPU", **counts}, default))
    if len(offer.shares) > 1:
        kinds = {share: _KINDS.get(share) or f"MIG {share[4:]}" for share in offer.shares}
        fields.append(_select("share", "Kind of GPU", {"": "what I am granted", **kinds}))
    if len(offer.pools) > 1:
        fields.append(_select("pool", "Pool", {"": "any", **{one: one for one in offer.pools}}))
    fields.append(_select("on_busy", "If every GPU is in use", _ON_BUSY, offer.on_busy))
    return "".join(fields)


def _images(offer: Offer, usual: Mapping[str, str]) -> str:
    """The images; one that runs on no GPU of this lab cannot be chosen, and says why."""
    names = {name: name for name in offer.images}
    field = _select("image", "Image", {**usual, **names}, unfit=offer.unfit)
    reasons = "".join(
        f"<li><b>{escape(name)}</b>: {escape(why)}</li>" for name, why in offer.unfit.items()
    )
    return field + (f'<ul class="small text-body-secondary">{reasons}</ul>' if reasons else "")


_KINDS = {"whole": "a whole GPU", "slot": "a slot of a shared GPU"}
_ON_BUSY = {
    "queue": "wait in the queue",
    "cpu": "start without a GPU",
    "fail": "do not start",
}


def _select(
    name: str,
    label: str,
    options: Mapping[str, str],
    selected: str = "",
    unfit: Collection[str] = (),
) -> str:
    choices = "".join(
        f'<option value="{escape(value)}"{" selected" if value == selected else ""}'
        f"{' disabled' if value in unfit else ''}>"
        f"{escape(text)}</option>"
        for value, text in options.items()
    )
    return (
        f'<div class="mb-3"><label class="form-label" for="{name}">{label}</label>'
        f'<select class="form-select" id="{name}" name="{name}">{choices}</select></div>'
    )
