"""The start form, rendered from the offer that also checks what it sends."""

from __future__ import annotations

from html import escape
from typing import Protocol

from pytorch_spawner.core.request import Offer


class Asks(Protocol):
    """What the form needs of a spawner."""

    ask_options: str

    async def offer(self) -> Offer:
        """What may be asked for."""


async def render_form(spawner: Asks) -> str:
    """Return the form's HTML; "" (start at once) where there is nothing to choose."""
    offer = await spawner.offer()
    has_choice = len(offer.images) > 1 or offer.max_gpus > 1 or len(offer.pools) > 1
    if spawner.ask_options == "never" or (spawner.ask_options == "auto" and not has_choice):
        return ""
    return "".join((_images(offer), _gpus(offer), _pools(offer)))


def _images(offer: Offer) -> str:
    options = "".join(
        f'<option value="{escape(name)}">{escape(name)}</option>' for name in offer.images
    )
    return _field(
        "image", "Image", f'<select class="form-select" id="image" name="image">{options}</select>'
    )


def _gpus(offer: Offer) -> str:
    if offer.max_gpus == 0:
        return '<p class="text-body-secondary">This lab has no GPU: servers compute on the CPU.</p>'
    options = "".join(
        f'<option value="{count}"{" selected" if count == offer.default_gpus else ""}>'
        f"{'none, on the CPU' if count == 0 else count}</option>"
        for count in range(offer.max_gpus + 1)
    )
    return _field(
        "gpus", "GPUs", f'<select class="form-select" id="gpus" name="gpus">{options}</select>'
    )


def _pools(offer: Offer) -> str:
    if len(offer.pools) < 2:
        return ""
    options = '<option value="">any</option>' + "".join(
        f'<option value="{escape(pool)}">{escape(pool)}</option>' for pool in offer.pools
    )
    return _field(
        "pool", "Pool", f'<select class="form-select" id="pool" name="pool">{options}</select>'
    )


def _field(name: str, label: str, control: str) -> str:
    return (
        f'<div class="mb-3"><label class="form-label" for="{name}">{label}</label>{control}</div>'
    )
