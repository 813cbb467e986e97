"""Which GPUs there are, for one hub process.

The configuration's list, else what the driver says, else what a helper container on the engine
says. Answers are kept for a while and asked for again in the background, so that no start waits for
a driver, except the first; and that one not for ever.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from pytorch_spawner.adapters import nvml, probe
from pytorch_spawner.adapters.one_at_a_time import OneAtATime
from pytorch_spawner.core.gpus import Inventory, parse_inventory
from pytorch_spawner.core.placement import with_config, with_settings
from pytorch_spawner.core.plan import LABEL
from pytorch_spawner.errors import BadRequest, LabError

if TYPE_CHECKING:
    from pytorch_spawner.shared import Lab

log = logging.getLogger("pytorch_spawner.gpus")

# How long an answer is believed: a new GPU, or one that fell ill, shows within this time.
_DRIVER_S: Final = 30.0
# A helper container costs half a second of the engine's time, and every GPU is woken for it.
_HELPER_S: Final = 300.0
_SETTINGS_S: Final = 2.0
# How long GPUs that were there are believed to be there while none is found, and how soon it is
# looked again.
_LOST_S: Final = 600.0
_SOON_S: Final = 5.0
# How long somebody waits for another look where the last one found none.
_PATIENCE_S: Final = 5.0
# As the helper container's. A hung driver never answers, and nothing in this process can end it.
_DEADLINE_S: Final = probe.DEADLINE_S


@dataclass(frozen=True, slots=True)
class Spec:
    """What the configuration says about GPUs.

    Attributes:
        static: Devices as mappings; empty to ask the driver.
        pools: UUID -> pool.
        modes: UUID, pool or "*" -> mode.
        helper_image: Image of the helper container; on the engine already.
    """

    static: tuple[Mapping[str, Any], ...] = ()
    pools: Mapping[str, str] | None = None
    modes: Mapping[str, str] | None = None
    helper_image: str = ""


class GpuSource:
    """One per hub process, ledger and hub id."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        # By what decides the answer; a group's own image list changes the helper's image alone.
        self._known: tuple[Spec, Inventory] | None = None
        self._good_at = -1e9
        self._good_until = 0.0
        self._is_early = False
        self._written: Inventory | None = None
        self._asking: asyncio.Task[Inventory] | None = None
        self._asking_for: Spec | None = None
        self._settings: tuple[float, Sequence[Any]] = (-1e9, ())
        self._driver = OneAtATime(nvml.read_inventory, "gpu-driver")
        self._is_hanging = False

    async def read(self, spec: Spec) -> Inventory:
        """The GPUs with the configuration's pools and modes.

        Raises:
            BadRequest: The configuration's list or a mode is wrong.
        """
        known, was_early = self._of(spec), self._is_early
        self._is_early = False
        if known is None:
            # The first time everybody waits for one answer.
            if self._asking is None or self._asking_for != spec:
                return await asyncio.shield(self._ask_once(spec))
            return await asyncio.shield(self._asking)
        is_due = time.monotonic() > self._good_until or (was_early and not known.gpus)
        if is_due and self._asking is None:
            self._ask_once(spec)
        if not known.gpus and self._asking is not None:
            # What was missing may have been put right, and nobody is to go without a GPU for it;
            # nor is anybody to wait for a sick driver again and again.
            done, _ = await asyncio.wait({self._asking}, timeout=_PATIENCE_S)
            for task in done:
                task.result()  # a wrong configuration is told to whoever comes
        return self._of(spec) or known

    def _of(self, spec: Spec) -> Inventory | None:
        """What is known, if it was found out for this very configuration."""
        if self._known is None or self._known[0] != replace(spec, helper_image=""):
            return None
        return self._known[1]

    def look_ahead(self, spec: Spec) -> None:
        """Ask in the background where no GPU is known, and nobody asked just now.

        The admin of a new hub sees its GPUs before anybody starts a server on one.
        """
        has_any = self._known is not None and bool(self._known[1].gpus)
        if has_any or self._asking is not None or time.monotonic() <= self._good_until:
            return
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # a spawner that is looked at, not a hub
            return
        # The driver may still be loading: the first who asks for a GPU does not believe in none.
        self._is_early |= self._known is None
        self._ask_once(spec)

    def _ask_once(self, spec: Spec) -> asyncio.Task[Inventory]:
        self._asking_for = spec
        self._asking = asyncio.create_task(self._ask(spec))
        self._asking.add_done_callback(self._asked)
        return self._asking

    async def offered(self, spec: Spec) -> Inventory:
        """The same with the admin's decisions where the ledger can be read; for the form."""
        inventory = await self.read(spec)
        at, settings = self._settings
        if time.monotonic() - at > _SETTINGS_S:
            try:
                settings = await self._lab.call(lambda ledger: ledger.settings(self._lab.hub))
            except LabError as error:
                log.warning("the admin's settings of GPUs are not known: %s", error)
            self._settings = (time.monotonic(), settings)
        return with_settings(inventory, settings, {})

    def _asked(self, task: asyncio.Task[Inventory]) -> None:
        if self._asking is task:
            self._asking = None
        if not task.cancelled() and (error := task.exception()):
            self._good_until = time.monotonic() + _SOON_S
            log.warning("the GPUs could not be asked: %s", error)

    async def _ask(self, spec: Spec) -> Inventory:
        try:
            return await self._look(spec)
        except BadRequest as error:
            if self._known is not None and not self._known[1].gpus:
                self._known = None  # "none" is no answer any more
            await self._explain(error)
            raise

    async def _explain(self, error: BadRequest) -> None:
        """Tell pages and commands of a wrong configuration, unless they know GPUs of before."""
        try:
            last = await self._lab.call(lambda ledger: ledger.read_inventory(self._lab.hub))
        except LabError:
            return
        if not last.gpus:
            await self._write(Inventory(reason=error.public_message))

    async def _look(self, spec: Spec) -> Inventory:
        raw, good_s = await self._raw(spec)
        now = time.monotonic()
        has_last = True
        if not raw.gpus and self._written is None and not (self._known and self._known[1].gpus):
            has_last = await self._remember(spec, now)
        before = self._of(spec)
        if not raw.gpus and before and before.gpus and now < self._good_at + _LOST_S:
            # A driver or an engine that does not answer just now; nobody is sent away for it.
            log.warning("no GPU was found, the last answer counts: %s", raw.reason)
            self._good_until = now + _SOON_S
            return before
        inventory = with_config(raw, spec.pools or {}, spec.modes or {})
        for gpu in inventory.gpus:
            _ = gpu.slots  # a mode that is none is refused here, with its sentence
        if inventory.gpus:
            self._good_at = now
        self._known = (replace(spec, helper_image=""), inventory)
        self._good_until = now + good_s
        if has_last:  # what could not be read is not replaced by "none"
            await self._write(inventory)
        return inventory

    async def _write(self, inventory: Inventory) -> None:
        """Write down what was found, for pages and commands, unless it is there already."""
        if self._written == inventory:
            return
        try:
            await self._lab.call(lambda ledger: ledger.write_inventory(self._lab.hub, inventory))
            self._written = inventory
        except LabError as error:
            log.warning("the inventory was not written down: %s", error)

    async def _remember(self, spec: Spec, now: float) -> bool:
        """After a reboot the hub may be up before the driver; that sends nobody away.

        Returns:
            Whether the ledger could be asked.
        """
        try:
            last = await self._lab.call(lambda ledger: ledger.read_inventory(self._lab.hub))
        except LabError:
            return False
        if last.gpus and not spec.static:
            self._known, self._good_at = (replace(spec, helper_image=""), last), now
        return True

    async def _raw(self, spec: Spec) -> tuple[Inventory, float]:
        if spec.static:
            return parse_inventory(list(spec.static)), _DRIVER_S
        lab = self._lab
        local = Inventory(reason="The engine is another machine.")
        if lab.is_engine_local:
            # A read that hangs is not waited for twice; it goes on, and its answer is taken.
            said = await self._driver.ask(0.0 if self._is_hanging else _DEADLINE_S)
            self._is_hanging = said is None
            if said is None:
                # The helper container would only hang in the same driver.
                return nvml.no_answer(_DEADLINE_S), _SOON_S
            local = said
        if local.gpus or not spec.helper_image:
            return local, _DRIVER_S
        try:
            injection = await lab.in_lane("inventory", lab.injection)
            if injection.kind == "none" or probe.gpu_request(injection) is None:
                return local, _DRIVER_S
            labels = {LABEL + "hub": lab.hub + "-helper"}
            asked = await lab.in_lane(
                "inventory",
                lambda: probe.read_inventory(lab.client, spec.helper_image, injection, labels),
            )
        except LabError as error:
            return Inventory(reason=f"{local.reason} {error.public_message}"), _DRIVER_S
        if asked.gpus:
            return asked, _HELPER_S
        return Inventory(reason=f"{local.reason} {asked.reason}".strip()), _DRIVER_S
