"""A spawner's settings as the values that the queue and the inventory work with."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from pytorch_spawner.core import identity
from pytorch_spawner.core.grant_rows import Known, parse_grants
from pytorch_spawner.core.grants import Grant
from pytorch_spawner.core.tickets import Policy
from pytorch_spawner.dispatch import Rules
from pytorch_spawner.errors import BadRequest
from pytorch_spawner.gpu_source import Spec
from pytorch_spawner.shared import Lab
from pytorch_spawner.traits import LabTraits

log = logging.getLogger("pytorch_spawner")

# The property of a JupyterHub group that is a grant to its members.
GROUP_PROPERTY = "pytorch_spawner_grant"


@dataclass(frozen=True, slots=True)
class Usual:
    """What holds for the whole lab: the settings as the configuration says them.

    Never those of one user's spawner, which ``group_overrides`` and an admin's hooks change: one
    queue serves everybody, whoever started last.

    Attributes:
        spec: What is said about GPUs.
        grants: As they are written.
        default_count: ``count`` of a grant that names none.
        policy: How the queue is kept.
    """

    spec: Spec
    grants: tuple[Mapping[str, Any], ...]
    default_count: int
    policy: Policy


def usual_of(spawner: LabTraits) -> Usual:
    """Read the settings of a spawner that nothing but the configuration has set yet."""
    return Usual(
        # Copies: the hub changes a mapping that an override adds to in its place.
        spec=deepcopy(gpu_spec(spawner)),
        grants=tuple(deepcopy(spawner.grants)),
        default_count=_most(spawner),
        policy=Policy(
            preference=spawner.preference,
            patience_s=spawner.patience_s,
            max_lease_s=spawner.max_lease_s or None,
            class_early_s=spawner.class_early_s,
            class_late_s=spawner.class_late_s,
            class_seats_share=spawner.class_seats_share,
        ),
    )


def _most(spawner: LabTraits) -> int:
    """As many as the person may ask for: what a grant gives that names no count."""
    return max(1, int(spawner.max_gpus))


def gpu_spec(spawner: LabTraits) -> Spec:
    """What the configuration says about GPUs."""
    return Spec(
        static=tuple(spawner.inventory),
        pools=spawner.gpu_pools,
        modes=spawner.gpu_modes,
        helper_image=trusted_image(spawner),
    )


def trusted_image(spawner: LabTraits) -> str:
    """The image of helper containers.

    Never the one that the student chose: helpers run as root or beside every home.
    """
    return str(spawner.helper_image or next(iter(spawner.images.values()), spawner.image))


def boots_at_once(spawner: LabTraits, lab: Lab) -> int:
    """Most servers that boot at the same moment; 0 for no limit."""
    if not lab.is_engine_local:  # nobody here knows how busy its cores are
        return 0
    if spawner.boots_at_once is None:
        return os.cpu_count() or 1
    return int(spawner.boots_at_once)


def rules_of(usual: Usual, spawner: LabTraits, lab: Lab) -> Rules:
    """What the configuration says about the queue, and the groups and ``max_gpus`` of this user.

    Raises:
        BadRequest: The configuration's grants are wrong.
    """

    def granted(count: int) -> tuple[tuple[Grant, ...], dict[str, Grant | None]]:
        grants = parse_grants(usual.grants, Known(), source="config", default_count=count)
        return grants, {group.name: group_grant(group, count) for group in spawner.user.groups}

    grants, of_groups = granted(usual.default_count)
    own: dict[str, Grant] = {}
    if (most := _most(spawner)) != usual.default_count:
        mine, of_mine = granted(most)
        everybodys = (*grants, *of_groups.values())
        own = {one.id: one for one in (*mine, *of_mine.values()) if one and one not in everybodys}
    return Rules(
        inventory=lambda: lab.gpus.read(usual.spec),
        grants=grants,
        policy=usual.policy,
        of_groups=of_groups,
        own=own,
    )


def group_grant(group: Any, default_count: int) -> Grant | None:
    """The grant in a JupyterHub group's properties; a wrong one is logged and left out."""
    said = (group.properties or {}).get(GROUP_PROPERTY)
    if said is None:
        return None
    try:
        row = {**dict(said), "to": "group", "subject": group.name, "id": identity.slug(group.name)}
        (grant,) = parse_grants([row], Known(), source="group", default_count=default_count)
    except (BadRequest, TypeError, ValueError) as error:
        log.warning("the property of group %s is no grant: %s", group.name, error)
        return None
    return grant
