"""A spawner's settings as the values that the queue and the inventory work with."""

from __future__ import annotations

import logging
import os
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


def rules_of(spawner: LabTraits, lab: Lab) -> Rules:
    """What the configuration says about the queue, and the groups of this user.

    Raises:
        BadRequest: The configuration's grants are wrong.
    """
    spec = gpu_spec(spawner)
    default_count = max(1, spawner.max_gpus)
    return Rules(
        inventory=lambda: lab.gpus.read(spec),
        grants=parse_grants(spawner.grants, Known(), source="config", default_count=default_count),
        policy=Policy(
            preference=spawner.preference,
            patience_s=spawner.patience_s,
            max_lease_s=spawner.max_lease_s or None,
            class_early_s=spawner.class_early_s,
            class_late_s=spawner.class_late_s,
            class_seats_share=spawner.class_seats_share,
        ),
        of_groups={group.name: group_grant(group, default_count) for group in spawner.user.groups},
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
