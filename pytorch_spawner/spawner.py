"""PyTorchSpawner: a DockerSpawner that gives each server GPUs of its own, a uid of its own, a home.

This file holds JupyterHub's hooks, each a few lines; the settings are in ``traits``, the life of
one container is in ``container``. What is decided is decided in ``core``; what all spawners of a
hub share (ledger, engine, queue, inventory) is ``shared.Lab``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote

from docker.errors import APIError, DockerException, NotFound
from jupyterhub.utils import maybe_future
from requests.exceptions import RequestException
from traitlets import default

from pytorch_spawner.adapters import engine
from pytorch_spawner.adapters.hub import StartRefused, is_asked_by_page
from pytorch_spawner.core import identity, plan, request
from pytorch_spawner.core.injection import Injection
from pytorch_spawner.core.slot_memory import MemoryLimit, memory_limit
from pytorch_spawner.core.tickets import Wait, describe_place
from pytorch_spawner.dispatch import Leased
from pytorch_spawner.errors import (
    BadRequest,
    EngineRefused,
    LabError,
    LedgerUnavailable,
    NotGranted,
    StartIsOver,
)
from pytorch_spawner.failpoints import reach
from pytorch_spawner.form import render_form
from pytorch_spawner.ledger.store import Start
from pytorch_spawner.progress import Viewers
from pytorch_spawner.rules import boots_at_once, trusted_image
from pytorch_spawner.teaching import TeachingSpawner
from pytorch_spawner.warming import Warm

# From asking the hub: it sends a person to the pending page after one second (1.0 in SpawnHandler,
# jupyterhub/handlers/pages.py), which then has to be fetched and drawn.
_PAGE_WITHIN_S: Final = 2.0
# How long a start that is over waits until its page has read the end of the journal.
_LAST_WORDS_S: Final = 0.5


class PyTorchSpawner(TeachingSpawner):
    """Starts a PyTorch container per server: GPUs by UUID, non-root uid, own home, warm compile."""

    @default("options_form")
    def _options_form_default(self) -> Any:
        return _form_of

    @default("apply_user_options")
    def _apply_user_options_default(self) -> Any:
        return _apply_user_options

    @default("notebook_dir")
    def _notebook_dir_default(self) -> str:
        return self.home_path

    def options_from_form(self, formdata: Mapping[str, Any], spawner: Any = None) -> dict[str, Any]:
        """Keep what the form said as it is; ``apply_user_options`` checks it like every request."""
        return {key: values for key, values in formdata.items() if key in request.OPTIONS}

    # -- who and what -----------------------------------------------------------------------

    _request: request.Request | None = None
    _start: Start | None = None
    _auth_state: Mapping[str, Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._viewers = Viewers()

    async def offer(self) -> request.Offer:
        """What this lab offers to this user now."""
        inventory = await self.lab.gpus.offered(self._usual.spec)
        most = min(self.max_gpus, len([gpu for gpu in inventory.gpus if gpu.slots]))
        return request.Offer(
            images=self.image_names,
            max_gpus=most,
            default_gpus=min(self.default_gpus, most),
            shares=request.shares_of(inventory),
            pools=inventory.pools,
            courses=await self.course_choices(),
            on_busy=self.on_busy,
            granted=await self._granted() if most else None,
            unfit=await self.unfit_images(inventory.gpus) if most else {},
            has_auto=bool(await self.known_images()),
            defaults_to_course=not self.user.admin,
        )

    async def _granted(self) -> int | None:
        groups = [group.name for group in self.user.groups]
        try:
            mine = await self.lab.queue.grants_of(self.user.name, groups, self.rules)
        except LabError as error:
            self.log.warning("%s: the grants are not known: %s", self._log_name, error)
            return None
        return max((grant.count for grant in mine), default=0)

    # -- the start, step by step --------------------------------------------------------------

    async def run_auth_state_hook(self, auth_state: Any) -> None:
        self._auth_state = auth_state
        await super().run_auth_state_hook(auth_state)

    async def run_pre_spawn_hook(self) -> None:
        """Begin the journal and wait for the lease; the admin's own hook runs first."""
        await maybe_future(super().run_pre_spawn_hook())
        if self._request is None:  # an admin replaced apply_user_options
            await _apply_user_options(self, self.user_options)
        wanted = self._request
        if wanted is None:
            raise RuntimeError("apply_user_options left no request")
        self._is_up = self._was_asked_to_stop = self._has_exited_well = False
        self._prepull()
        async with self._failures_told():
            if (options := await self.take_task()) is not None:
                wanted = self._request = request.parse(options, await self.offer())
            is_auto = wanted.image == request.AUTO
            wanted, instead = await self.settle_image(wanted)
            self._request = wanted
            await self._begin(wanted)
            reach("start-written")
            await self._tell("requested", "Your server is being prepared.", warmup=self.warmup)
            self._leased = await self._take_gpus(wanted, instead)
            reach("lease-taken")
            if (leased := self._leased) is not None:
                self._request = await self.fit_image(
                    wanted, leased.gpus, leased.lease.grant, is_auto=is_auto
                )
            await self.lab.starting.take(
                self, self.starts_at_once, boots_at_once(self, self.lab), self._tell_turn
            )

    async def _begin(self, wanted: request.Request) -> None:
        groups = sorted(group.name for group in self.user.groups)
        try:
            self._start = await self.lab.begin_start(
                self.user.name, self.name, wanted, groups, self.object_name
            )
            self._viewers.begin()
        except LedgerUnavailable as error:
            if wanted.gpus:
                raise
            # Nothing of it can be written down, but a server without a GPU needs no ledger.
            self.log.warning("%s starts without a journal: %s", self._log_name, error)
            self._start = None

    async def _take_gpus(self, wanted: request.Request, instead: str) -> Leased | None:
        if wanted.gpus == 0:
            said = instead or "This server runs without a GPU."
            await self._tell("gpu", said, gpus=[], share="none")
            return None
        start = self._start
        if start is None:
            raise RuntimeError("no start")
        # What an earlier start of this server left must be gone before its GPU is given again.
        await self._call(engine.remove, self.object_name)
        began = time.monotonic()
        try:
            leased = await self.lab.queue.acquire(
                start, wanted.on_busy, self.rules, self._tell_queue
            )
        except LabError as error:
            instead = _without_gpu_because(error, wanted)
            if not instead:
                raise
            self._request = wanted.without_gpu()
            await self._tell("gpu", instead, gpus=[], share="none")
            return None
        await self._tell_gpus(leased, time.monotonic() - began)
        return leased

    async def _tell_queue(self, wait: Wait) -> None:
        if self._start is not None:
            await self.lab.note(self._start, "queue", describe_place(wait))

    async def _tell_turn(self, ahead: int, waited_s: float) -> None:
        if not ahead:
            said, waited_s = "Your server starts now.", round(waited_s, 2)
            await self._tell("turn", said, ahead=0, waited_s=waited_s)
            return
        said = "1 server is" if ahead == 1 else f"{ahead} servers are"
        await self._tell("turn", f"{said} starting before yours.", ahead=ahead)

    async def _tell_gpus(self, leased: Leased, waited_s: float) -> None:
        limit = await self._limit(leased, self._facts_until_now)
        await self._tell(
            "gpu",
            leased.sentence,
            share="slot" if any(gpu.slots > 1 for gpu in leased.gpus) else "whole",
            why=leased.why,
            until=leased.lease.until,
            waited_s=round(waited_s, 2),
            limit=limit.kind or None,
            gpus=leased.describe(),
        )

    async def _limit(
        self, leased: Leased | None, facts: Callable[[], Awaitable[Mapping[str, Any]]]
    ) -> MemoryLimit:
        """How the memory of slots is limited; nothing to limit for whole GPUs.

        Args:
            leased: The GPUs, if any.
            facts: What the engine says of the image.
        """
        if leased is None or all(gpu.slots == 1 for gpu in leased.gpus):
            return MemoryLimit()
        return memory_limit(leased.gpus, plan.torch_of(await facts()), self.mps_pipe_dir)

    async def _facts_until_now(self) -> Mapping[str, Any]:
        image = self._request.image if self._request else self.image
        try:
            found: Mapping[str, Any] = await self.docker(
                "inspect_image", await self.pinned_image(image)
            )
        except NotFound:  # it is pulled later
            return {}
        return found

    _leased: Leased | None = None
    # Whether Lab answered, and whether somebody wanted it to end: what tells a crash from a stop.
    _is_up: bool = False
    _was_asked_to_stop: bool = False

    async def start(self) -> str:
        """Plan, create and start the container; return its URL once Lab answers.

        The wait is here and not in the hub's own back-off, so that readiness is seen within 50 ms
        and a container that dies is noticed at once, with its last lines.
        """
        began = time.monotonic()
        try:
            url = await self._start_container(began)
        finally:
            self.lab.starting.leave(self)
        await self._let_page_come(began)
        return url

    async def _let_page_come(self, began: float) -> None:
        """Wait until the pending page is there, where it has more to show than a moment's wait.

        It is the way to the page with the checks, the warm-up and the course's notebooks. But a
        server that is ready within a second of a person's asking has them sent straight into
        JupyterLab by the hub, past both. Nobody waits who asked through the API.
        """
        has_more = self.warmup or (self._request is not None and bool(self._request.course))
        if self._start is None or not has_more or not is_asked_by_page(self.handler):
            return
        left_s = max(0.0, began + _PAGE_WITHIN_S - time.monotonic())
        if self._viewers.has_come:
            # Such as that nothing is left to warm up: from there the page leads into JupyterLab.
            self._viewers.call()
            left_s = _LAST_WORDS_S
        async with self._failures_told():
            await self._while_alive(self._viewers.come(), left_s)

    async def _start_container(self, began: float) -> str:
        async with self._failures_told():
            self._plan = await self._make_plan()
            reach("plan-made")
            await self._see_that_lease_holds()
            shown = self._request.image if self._request else self.image
            await self._tell("image", f"Using the image {shown}.", image=shown)
            ip, port = await super().start()
            reach("container-started")
            await self._tell("container", "The container runs; JupyterLab is starting.")
            left_s = self.start_timeout - (time.monotonic() - began) - 2
            url = await self._wait_until_ready(
                f"http://{ip}:{port}", min(self.http_timeout, left_s)
            )
            reach("lab-answers")
            self._is_up = True
            self.lab.watch(self.object_name, self._look_at_once)
            await self._tell(
                "lab",
                "JupyterLab answers.",
                url=self.server.base_url if self.server else "",
            )
            return url

    async def _see_that_lease_holds(self) -> None:
        """A ledger that was replaced meanwhile knows nothing of our lease: no GPU without it.

        Until its container runs, nothing but the ledger says that the GPU is ours.
        """
        if (leased := self._leased) is None:
            return
        if not await self.lab.call(lambda ledger: ledger.is_in_force(leased.lease.id)):
            raise StartIsOver(
                "The GPU of this start was given back before its container ran. Start again."
            )

    async def _make_plan(self) -> plan.ContainerPlan:
        wanted = self._request
        start = self._start
        if wanted is None:
            raise RuntimeError("start() without run_pre_spawn_hook()")
        self.image = await self.pinned_image(wanted.image)
        who = await self._identity()
        leased = self._leased
        warm = await self.choose_warm(wanted.course, leased.gpus[0] if leased else None)
        taught, not_taught = await self.choose_course(wanted.course)
        if not_taught:
            await self._tell("course", not_taught)
        await self.clear_throw_away()
        volumes = await self._prepare_places(who, warm)
        reach("home-ready")
        injection = (
            await self.lab.in_lane(self.object_name, self.lab.injection)
            if leased
            else Injection("none")
        )
        subject = plan.Subject(
            hub=self.hub_id,
            username=self.user.name,
            servername=self.name,
            start_id=start.id if start else "",
            lease_id=leased.lease.id if leased else "",
            login=self.login,
            identity=who,
            home=self.home_path,
            holdings=leased.lease.holdings if leased else (),
            grant=leased.lease.grant if leased else "",
            until=leased.lease.until if leased else None,
        )
        site = plan.Site(
            limits=plan.Limits(self.pids_limit, self.shm_mib, self.cpu_limit or None),
            events_url=self._events_url(),
            has_ca=bool(self.ca_bundle),
            agent={
                "warmup": {
                    "enabled": self.warmup,
                    "models": list(self.warmup_models),
                    "modes": list(self.warmup_modes),
                    "deadline_s": self.warmup_deadline_s,
                },
                **warm.agent,
                **taught.agent,
            },
            volumes=volumes,
            memory_limit=await self._limit(leased, self.image_facts),
            read_only={**taught.read_only, **warm.read_only},
            environment={
                **taught.environment,
                "PYTORCH_SPAWNER_STANDBY": str(self.standby_kernels),
                **warm.environment,
            },
        )
        wanted = replace(wanted, image=self.image)
        return plan.build(subject, wanted, leased.gpus if leased else (), injection, site)

    def _events_url(self) -> str:
        if not self.lab_url or self._build is not None:
            return ""
        server = f"{self.user.escaped_name}/{quote(self.name, safe='')}"
        return f"{self.lab_url.rstrip('/')}/api/servers/{server}/events"

    async def _identity(self) -> identity.Identity:
        said = None
        if self.uid_auth_state_key:
            state = self._auth_state or {}
            said = identity.identity_from_mapping(
                state.get(self.uid_auth_state_key), "auth_state", self.user.name
            )
        if said is None and self.uid_from_passwd:
            said = await self.lab.homes.passwd_identity(self.user.name)
        return await self.lab.homes.identity_of(
            self.user.name, said, self.uid_range, self.home_place(), self.object_name
        )

    async def _prepare_places(self, who: identity.Identity, warm: Warm) -> dict[str, str]:
        """Make home and compile cache where they are missing; return what to mount where."""
        home, cache = self.home_place(), self.cache_place(warm)
        helper = trusted_image(self)
        made = await self.lab.homes.prepare(
            (home, cache), who, helper, self.object_name, pull=lambda: self.pull_image(helper)
        )
        if made:
            await self._tell("home", "Your home directory is ready.")
        return {home.source: self.home_path, cache.source: plan.CACHE_DIR}

    def _prepull(self) -> None:
        """Once a process: fetch what the lab offers, so that nobody waits for a pull later."""
        if self.prepull and self.pull_policy.lower() not in ("never", "skip"):
            self.lab.prepull([self.image, *self.images.values()], self._pull_quietly)

    async def _pull_quietly(self, image: str) -> None:
        try:
            with engine.translated():
                await self.pull_image(image)
        except LabError as error:
            self.log.warning("the image %s was not pulled beforehand: %s", image, error)

    # -- the end --------------------------------------------------------------------------------

    def _look_at_once(self) -> None:
        """The engine says that the container ended: do what the hub would do at its next poll."""
        if self._is_up and not self.pending:
            asyncio.ensure_future(self.poll_and_notify())  # noqa: RUF006  (the hub keeps no task either)

    async def stop(self, now: bool = False) -> None:
        """Somebody wants the server to end: what it held is not kept for it.

        Where the engine does not answer, the hub counts the server as ended all the same and the
        reconciler removes its container later; an error would only keep the hub from revoking the
        server's token.
        """
        self._was_asked_to_stop = True
        try:
            if self.object_id:  # else there was none yet
                with engine.translated():
                    await super().stop(now)
        except LabError as error:
            self.log.warning("%s: its container is not stopped yet: %s", self._log_name, error)
        reach("container-stopped")

    async def run_post_stop_hook(self) -> None:
        """Give the GPUs back, but only once the container that used them is gone."""
        try:
            await self._finish()
        except LabError as error:
            # The reconciler of the service tries again every 30 s.
            self.log.warning("%s: not cleaned up yet: %s", self._log_name, error)
        await maybe_future(super().run_post_stop_hook())

    async def _finish(self) -> None:
        reach("stop-begun")
        self.lab.starting.leave(self)
        self.lab.unwatch(self.object_name)
        await self._call(engine.remove, self.object_name)
        reach("container-removed")
        # Exit code 0 is somebody's "Shut Down" in JupyterLab, or a culler inside.
        has_crashed = self._is_up and not self._was_asked_to_stop and not self._has_exited_well
        self._is_up = False
        await self.lab.finish(
            self.user.name,
            self.name,
            self._start,
            keep_s=self.keep_after_crash_s if has_crashed and not self.is_passing else 0.0,
        )
        reach("lease-released")
        await self.clear_throw_away()

    @asynccontextmanager
    async def _failures_told(self) -> AsyncIterator[None]:
        """Write a failure into the journal and hand it to the hub in a student's words."""
        try:
            try:
                yield
            except (APIError, DockerException, RequestException) as error:
                with engine.translated():
                    raise
                raise EngineRefused("The engine refused.", detail=str(error)) from error
        except LabError as error:
            self.log.warning("%s did not start: %s", self._log_name, error)
            await self._tell_failure(error)
            raise StartRefused.of(error) from error

    async def _tell_failure(self, error: LabError) -> None:
        await self._tell(
            "failed", error.public_message, code=error.code, log_tail=list(error.log_tail)
        )
        if self._start is not None:
            await self.lab.end_start(self._start, "failed")

    async def _tell(self, stage: str, message: str, **facts: Any) -> None:
        """Add to the journal of this start; a journal that cannot be written stops nobody."""
        if self._start is not None:
            await self.lab.tell(self._start, stage, message, **facts)

    def progress(self) -> AsyncIterator[dict[str, Any]]:
        """The journal as the hub's own progress events; ``lab`` holds our event for the pages."""
        return self._viewers.follow(self.lab, lambda: self._start)

    def get_state(self) -> dict[str, Any]:
        state: dict[str, Any] = super().get_state()
        if self._start is not None:
            state["start"] = self._start.id
        if self._is_up:
            state["is_up"] = True
        if self._throw_away:
            state["throw_away"] = self._throw_away
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        # After a restart of the hub a server that runs may still end unexpectedly.
        self._is_up = bool(state.get("is_up"))
        self._throw_away = str(state.get("throw_away") or "")

    def clear_state(self) -> None:
        super().clear_state()
        self._plan = None


async def _form_of(spawner: PyTorchSpawner) -> str:
    """The form as the start will read it: the hub applies ``group_overrides`` only then.

    To a spawner beside the user's own: applied to that, they would be applied again by its start
    and each time that the page is opened, and an override may add to what it finds.
    """
    if not spawner.group_overrides:
        return await render_form(spawner)
    beside = type(spawner)(
        config=spawner.config,
        user=spawner.user,
        orm_spawner=spawner.orm_spawner,
        hub=spawner.hub,
        authenticator=spawner.authenticator,
        handler=spawner.handler,
        user_options=spawner.user_options,
    )
    # In the hub's order: the page has run the hook for the user's own.
    await beside.run_auth_state_hook(await spawner.user.get_auth_state())
    await beside.apply_group_overrides()
    return await render_form(beside)


def _without_gpu_because(error: LabError, wanted: request.Request) -> str:
    """Why a start goes on without a GPU instead of failing; "" where it does not."""
    if wanted.on_busy == "cpu" and error.code == "no-gpu-available":
        return "All GPUs are in use; this server starts without one."
    if not wanted.is_asked and isinstance(error, (NotGranted, BadRequest)):
        # Nobody asked for a GPU; it is only what the lab gives to those who may have one.
        return f"This server runs without a GPU. {error.public_message}"
    return ""


async def _apply_user_options(spawner: PyTorchSpawner, options: Mapping[str, Any]) -> None:
    """Check the options of a start, however they came; refuse with a sentence."""
    spawner._start = None
    # JupyterHub repeats the last start's options for one that says nothing. Whoever once started
    # without a GPU because all were in use would never get one again, and what was refused once
    # would be refused for ever.
    spawner.orm_spawner.user_options = {}
    try:
        spawner._request = request.parse(options or {}, await spawner.offer())
    except LabError as error:
        raise StartRefused.of(error) from error
