"""What one start may ask for. One object describes an option: its form field, its check, its value.

The form is rendered from ``fields`` and whatever arrives, by form, query or REST, goes through
``parse`` with the same fields: a choice that the form hides is refused however it is sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pytorch_spawner.core.gpus import MIG_PROFILE, Inventory
from pytorch_spawner.errors import BadRequest

ON_BUSY: Final = ("queue", "cpu", "fail")
OPTIONS: Final = frozenset({"image", "gpus", "share", "pool", "course", "on_busy"})
# An image by this name is the best one that fits the GPU.
AUTO: Final = "auto"
_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class CourseChoice:
    """A course that a start may name, and what it gets where it does not say itself.

    Attributes:
        title: For people.
        image: Name or reference of an image on offer; "" for the lab's default.
        gpus: How many; None for the lab's default.
        share: "any", "whole", "slot" or "mig:<profile>".
        pool: "" for any.
        is_strict: An image that is not on offer refuses the start; else the lab's own is used.
    """

    title: str
    image: str = ""
    gpus: int | None = None
    share: str = "any"
    pool: str = ""
    is_strict: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """What this lab offers to this user: the bounds every request is checked against.

    Attributes:
        images: Display name -> image reference; at least one, the first is the default.
        max_gpus: Most GPUs one server may hold; 0 in a lab without GPUs.
        default_gpus: What a start gets that does not say.
        shares: Values of ``share`` this lab has devices for: "whole", "slot", "mig:<profile>".
        pools: Names of the pools; empty means that naming a pool is refused.
        courses: The courses the user belongs to, by name. Somebody who belongs to one alone gets
            it when a start does not say, where ``defaults_to_course``.
        on_busy: What a start does that finds every GPU in use and does not say: see ``ON_BUSY``.
        granted: Most GPUs that any of the user's grants gives; None where that is not known. For
            the form: the scheduler has the last word, and better sentences.
        unfit: Display names of images that run on none of the lab's GPUs -> why.
        has_auto: Enough is known of the images to choose one.
    """

    images: Mapping[str, str]
    max_gpus: int = 1
    default_gpus: int = 1
    shares: tuple[str, ...] = ("whole",)
    pools: tuple[str, ...] = ()
    courses: Mapping[str, CourseChoice] = field(default_factory=dict)
    on_busy: str = "queue"
    granted: int | None = None
    unfit: Mapping[str, str] = field(default_factory=dict)
    has_auto: bool = False
    defaults_to_course: bool = True


@dataclass(frozen=True, slots=True)
class Request:
    """What one start asks for, checked against an offer.

    Attributes:
        image: Image reference as the engine knows it.
        gpus: How many GPUs, 0 <= gpus <= the offer's max_gpus; 0 exactly when share is "none".
        share: "any" (whatever the user's grant gives), "whole", "slot", "mig:<profile>" or "none".
        pool: Name of a pool; "" for any.
        course: Name of a course; "" for none.
        on_busy: What to do when every GPU is in use: wait in the "queue", start on the "cpu",
            or "fail".
        is_asked: The start itself asked for GPUs; otherwise they are the lab's default, and a
            user whom no grant gives one starts without.
        said: The options that the start named, as texts; what it left open is the lab's to decide
            at each start anew. No part of what is asked for.
    """

    image: str
    gpus: int = 0
    share: str = "none"
    pool: str = ""
    course: str = ""
    on_busy: str = "queue"
    is_asked: bool = False
    said: Mapping[str, str] = field(default_factory=dict, compare=False)

    def without_gpu(self) -> Request:
        """The same start on the CPU."""
        return replace(self, gpus=0, share="none", pool="")

    def as_json(self) -> dict[str, Any]:
        """The request as it is kept in the ledger and shown by the API."""
        return {
            "image": self.image,
            "gpus": self.gpus,
            "share": self.share,
            "pool": self.pool,
            "course": self.course,
            "on_busy": self.on_busy,
            "said": dict(self.said),
        }


def shares_of(inventory: Inventory) -> tuple[str, ...]:
    """What the devices of a lab can be asked for as, "whole" first."""
    has_whole = any(gpu.slots == 1 and not gpu.mig_profile for gpu in inventory.gpus)
    has_slots = any(gpu.slots > 1 for gpu in inventory.gpus)
    profiles = dict.fromkeys(gpu.mig_profile for gpu in inventory.gpus if gpu.mig_profile)
    return (
        *(("whole",) if has_whole else ()),
        *(("slot",) if has_slots else ()),
        *(f"mig:{profile}" for profile in profiles),
    )


def parse(options: Mapping[str, Any], offer: Offer) -> Request:
    """Turn the options of one start into a request, or refuse them with a sentence.

    Args:
        options: ``user_options`` as JupyterHub hands them over: from our form, from a query string
            (every value a text, or a list of one text) or as arbitrary JSON by REST.
        offer: What may be asked for.

    Returns:
        The request. Without options, the offer's defaults.

    Raises:
        BadRequest: An unknown option, or a value outside the offer; names the option and what is
            allowed.
    """
    if not isinstance(options, Mapping):
        raise BadRequest("The options of a start are a JSON object.")
    if unknown := sorted(str(key) for key in set(options) - OPTIONS):
        raise BadRequest(
            f"Unknown option {_shown(', '.join(unknown))}. A start accepts "
            f"{', '.join(sorted(OPTIONS))}."
        )
    said = {key: _single(key, value) for key, value in options.items()}
    is_asked = any(said.get(key) not in (None, "") for key in ("gpus", "share", "pool"))
    course = _parse_choice("course", said.get("course"), tuple(offer.courses))
    if "course" not in said and len(offer.courses) == 1 and offer.defaults_to_course:
        course = next(iter(offer.courses))
    chosen = offer.courses.get(course, CourseChoice(""))
    image = _parse_image(said.get("image") or _image_of(chosen, offer), offer)
    asked = said if is_asked else {**said, **_asked_by(chosen, offer)}
    share, gpus = _parse_share_and_gpus(asked.get("share"), asked.get("gpus"), offer)
    return Request(
        image=image,
        gpus=gpus,
        share=share,
        pool=_parse_choice("pool", asked.get("pool"), offer.pools),
        course=course,
        on_busy=_parse_choice("on_busy", said.get("on_busy"), ON_BUSY) or offer.on_busy,
        is_asked=is_asked,
        said={key: str(value) for key, value in said.items() if value not in (None, "")},
    )


def _image_of(course: CourseChoice, offer: Offer) -> str:
    """A course's image; the lab's own choice where it is not on offer any more."""
    is_there = course.image in (*offer.images, *offer.images.values())
    return course.image if is_there or course.is_strict else AUTO if course.image else ""


def _asked_by(course: CourseChoice, offer: Offer) -> dict[str, Any]:
    """What a course asks for, as far as this lab has it: a course never fails a start by it."""
    if course.gpus is None:
        count = offer.default_gpus
        if course.share == "any" and not course.pool:
            return {}
    else:
        count = course.gpus
    count = min(count, offer.max_gpus)
    if count == 0:
        return {"share": "none"}
    return {
        "gpus": count,
        "share": course.share if course.share in offer.shares else "any",
        "pool": course.pool if course.pool in offer.pools else "",
    }


def _single(key: str, value: Any) -> Any:
    """A form and a query string send lists of one text; REST sends the value itself."""
    if isinstance(value, list):
        if len(value) != 1 or not isinstance(value[0], str):
            raise BadRequest(f"The option {key} takes one value, not {len(value)}.")
        return value[0]
    return value


def _parse_image(said: Any, offer: Offer) -> str:
    if said is None or said == "":
        return next(iter(offer.images.values()))
    if said == AUTO and AUTO not in offer.images:
        return AUTO if offer.has_auto else next(iter(offer.images.values()))
    if isinstance(said, str):
        if said in offer.images:
            return offer.images[said]
        if said in offer.images.values():
            return said
    raise BadRequest(f"This lab has no image {_shown(said)}. It offers {', '.join(offer.images)}.")


def _parse_share_and_gpus(share: Any, gpus: Any, offer: Offer) -> tuple[str, int]:
    count = None if gpus is None or gpus == "" else _parse_count(gpus, offer)
    if share is None or share == "":
        wanted = offer.default_gpus if count is None else count
        return ("any", wanted) if wanted else ("none", 0)
    allowed = ("any", *offer.shares, "none")
    if not (isinstance(share, str) and share in allowed):
        hint = " (this lab has no such MIG profile)" if _is_mig(share) else ""
        raise BadRequest(
            f"The option share is {_shown(share)}{hint}; this lab knows {', '.join(allowed)}."
        )
    if share == "none":
        if count:
            raise BadRequest(f'share "none" means no GPU, but gpus asks for {count}.')
        return "none", 0
    if count == 0:
        raise BadRequest(f'gpus is 0, but share "{share}" asks for a GPU; say share "none".')
    if offer.max_gpus == 0:
        raise BadRequest("This lab has no GPU to give.")
    return str(share), count or max(1, offer.default_gpus)


def _is_mig(share: Any) -> bool:
    return (
        isinstance(share, str)
        and share.startswith("mig:")
        and MIG_PROFILE.fullmatch(share[4:]) is not None
    )


def _parse_count(said: Any, offer: Offer) -> int:
    # bool is an int in Python; True GPUs is not a wish anybody has.
    if isinstance(said, str) and re.fullmatch(r"[0-9]{1,6}", said.strip()):
        said = int(said)
    if isinstance(said, bool) or not isinstance(said, int) or not 0 <= said <= offer.max_gpus:
        most = f"0 to {offer.max_gpus}" if offer.max_gpus else "0: this lab has no GPU to give"
        raise BadRequest(f"The option gpus is {_shown(said)}; allowed is {most}.")
    return said


def _parse_choice(key: str, said: Any, allowed: tuple[str, ...]) -> str:
    if said is None or said == "":
        return ""
    if isinstance(said, str) and said in allowed:
        return said
    known = ", ".join(allowed) if allowed else "none"
    raise BadRequest(f"There is no {key} {_shown(said)} for you; you can use: {known}.")


def _shown(said: Any) -> str:
    """A value inside a sentence: quoted, short, on one line. Pages escape it."""
    text = said if isinstance(said, str) else repr(said)
    text = "".join(char if char.isprintable() else "?" for char in text)
    return f'"{text if len(text) <= _SHOWN else text[:_SHOWN] + "…"}"'
