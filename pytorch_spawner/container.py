"""One server's container: created from a plan, watched until Lab answers, found again, removed.

A DockerSpawner with the engine behind ``shared.Lab``: calls are made in this server's own lane, and
an engine that cannot answer is never taken for a container that is gone.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from docker.errors import APIError, NotFound

from pytorch_spawner.adapters import engine, home_engine
from pytorch_spawner.adapters.readiness import answers
from pytorch_spawner.core import identity, plan
from pytorch_spawner.core.failures import explain_exit
from pytorch_spawner.core.injection import without_gpus
from pytorch_spawner.errors import ContainerDied, LabError, NotReadyInTime
from pytorch_spawner.failpoints import reach
from pytorch_spawner.shared import Lab
from pytorch_spawner.traits import LabTraits

_READY_POLL_S = 0.05
_ALIVE_POLL_S = 0.3

T = TypeVar("T")


class ContainerSpawner(LabTraits):
    """Everything between a plan and a container that answers."""

    _plan: plan.ContainerPlan | None = None
    # Whether the container was last seen to have ended with exit code 0.
    _has_exited_well: bool = False

    @property
    def lab(self) -> Lab:
        """What all spawners of this hub share."""
        return Lab.of(self.ledger_url, self.hub_id, self.client_kwargs)

    @property
    def login(self) -> str:
        """What ``whoami`` says in the container."""
        return identity.login_name(self.user.name)

    @property
    def home_path(self) -> str:
        """The home's path in the container."""
        return identity.home_path(self.home_dir, self.login)

    def template_namespace(self) -> dict[str, Any]:
        names = super().template_namespace()
        server = identity.server_slug(self.user.name, self.name)
        return {**names, "slug": server, "lab_container": f"{self.hub_id}-{server}"}

    # -- the engine ---------------------------------------------------------------------------

    @property
    def client(self) -> Any:
        return self.lab.client

    def docker(self, method: str, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        """Call a docker-py method in this server's lane: in order for it, not held up by others.

        Pulls are made one after the other for each image: a start that is cancelled meanwhile gives
        its GPU back without waiting for the end of one.
        """
        lanes, lane = self.lab.lanes, self.object_name
        if method == "pull":
            lanes, lane = self.lab.pulls, f"{args} {kwargs}"
        return asyncio.wrap_future(
            lanes.submit(lane, lambda: self._docker(method, *args, **kwargs))
        )

    async def _call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        return await asyncio.wrap_future(
            self.lab.lanes.submit(self.object_name, lambda: function(self.client, *args, **kwargs))
        )

    # -- creating and starting ----------------------------------------------------------------

    async def check_allowed(self, image: str) -> str:
        """The request was checked against the offer; DockerSpawner must not look again."""
        return self._plan.image if self._plan else image

    def get_env(self) -> dict[str, Any]:
        env = super().get_env()
        return plan.lay_over(env, self._plan.environment) if self._plan else env

    async def get_command(self) -> list[str]:
        """The image's own command behind the agent, which becomes it (exec) at once."""
        if self.cmd:
            command = [*self.cmd, *self.get_args()]
        else:
            image = await self.docker("inspect_image", self.image)
            command = [*(image["Config"].get("Cmd") or ["jupyterhub-singleuser"]), *self.get_args()]
        return ["python3", plan.AGENT_PATH, "--", *command]

    async def create_object(self) -> Any:
        """Create the container: the plan, laid over the admin's own extra settings."""
        if self._plan is None:
            raise RuntimeError("create_object() without a plan")
        extra_create = await self._resolved(self.extra_create_kwargs)
        extra_host = await self._resolved(self.extra_host_config)
        if any(without_gpus(one) is not one for one in extra_host.get("device_requests") or ()):
            self.log.warning(
                "%s: extra_host_config gives GPUs to every server (device_requests). They are left "
                "out, since GPUs are given by the lab; take them out of the configuration.",
                self._log_name,
            )
        create, host = plan.merge(self._plan, extra_create, extra_host)
        site = dict(self.volumes)
        ours = {place: dict(mount) for place, mount in self._plan.volumes.items()}
        home = _bound_home(self._plan)
        if home:
            # No bind: for that the engine makes a directory that is gone anew, as root's.
            target = ours.pop(home)["bind"]
            # Nor where the site names it, too.
            site = {k: v for k, v in site.items() if self.format_volume_name(k, self) != home}
            host["mounts"] = [
                *(host.get("mounts") or self.mount_binds),
                {"Type": "bind", "Source": home, "Target": target, "ReadOnly": False},
            ]
        settings = {
            "extra_create_kwargs": escaped(create),
            "extra_host_config": escaped(host),
            "volumes": {**site, **escaped(ours)},
        }
        kept = {name: getattr(self, name) for name in settings}
        for name, value in settings.items():
            setattr(self, name, value)
        try:
            created = await super().create_object()
            reach("container-created")
            return created
        except APIError as error:
            if home and home_engine.missing_source(error) == home:
                raise home_engine.home_is_gone(home, self._plan.user) from error
            raise
        finally:
            for name, value in kept.items():
                setattr(self, name, value)

    async def _resolved(self, setting: Any) -> dict[str, Any]:
        value = self._eval_if_callable(setting)
        if inspect.isawaitable(value):
            value = await value
        rendered = self._render_templates(value)
        return dict(rendered)

    async def start_object(self) -> None:
        """Copy the agent, the CA and the user's name in, then start."""
        if self._plan is None:
            raise RuntimeError("start_object() without a plan")
        uid, gid = map(int, self._plan.user.split(":"))
        who = identity.Identity(uid, gid, "")
        names = await self.lab.image_names(self.object_id, self.image, self.object_name)
        files = {
            plan.AGENT_PATH: (self.lab.agent, 0o444),
            "/etc/passwd": (
                identity.passwd_with(names[0], who, self.login, self.home_path).encode(),
                0o644,
            ),
            "/etc/group": (identity.group_with(names[1], who, self.login).encode(), 0o644),
        }
        files.update(await self.extra_files())
        if self.ca_bundle:
            files[plan.CA_PATH] = (await asyncio.to_thread(Path(self.ca_bundle).read_bytes), 0o444)
        await self._call(engine.put_files, self.object_id, files, self._other_names())
        reach("files-copied")
        await super().start_object()

    def _other_names(self) -> dict[str, str]:
        """``/home/LOGIN`` leads to a home that is elsewhere: environments and links name it.

        Not where something is mounted there.
        """
        usual, home = f"/home/{self.login}", self.home_path
        planned = self._plan.volumes.values() if self._plan else ()
        taken = [home, *self.volume_mount_points, *(mount["bind"] for mount in planned)]
        if any(f"{place}/".startswith(f"{usual}/") for place in taken):
            return {}
        return {usual: home}

    async def extra_files(self) -> dict[str, tuple[bytes, int]]:
        """What else is copied in before the start: path -> (content, mode)."""
        return {}

    async def remove_object(self) -> None:
        """Remove the container and wait until its name is free again."""
        await self._call(engine.remove, self.object_id or self.object_name)

    # -- watching -----------------------------------------------------------------------------

    async def _wait_until_ready(self, url: str, timeout_s: float) -> str:
        """Poll until the server answers, and watch at the same time whether the container lives.

        Side by side, because a connection to the address of a container that just died hangs until
        it times out, and the student would wait for the reason.
        """
        answered = await self._while_alive(self._poll_until_ready(url), timeout_s)
        if answered is not None:
            return answered
        raise NotReadyInTime(
            f"The container runs, but JupyterLab did not answer within {timeout_s:.0f} s. Try "
            "again; if it happens again, show this to an admin.",
            log_tail=await self._log_tail(),
        )

    async def _while_alive(self, what: Coroutine[Any, Any, T], timeout_s: float) -> T | None:
        """Wait for something as long as the container lives; None where the time is up.

        Raises:
            ContainerDied: It does not live any more.
        """
        awaited = asyncio.create_task(what)
        death = asyncio.create_task(self._watch_for_death())
        try:
            done, _ = await asyncio.wait(
                {awaited, death}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            awaited.cancel()
            death.cancel()
        if awaited in done:
            return awaited.result()
        if death in done:
            await death  # raises
        return None

    async def _poll_until_ready(self, url: str) -> str:
        base = self.server.base_url if self.server else "/"
        while True:
            if url.startswith("http://:"):  # it has no address yet
                ip, port = await self.get_ip_and_port()
                url = f"http://{ip}:{port}"
            elif await answers(f"{url}{base}api"):
                return url
            await asyncio.sleep(_READY_POLL_S)

    async def _watch_for_death(self) -> None:
        while True:
            ended = await self._call(engine.ending, self.object_id)
            if ended is not None:
                raise ContainerDied(
                    explain_exit(
                        ended.exit_code,
                        was_out_of_memory=ended.was_out_of_memory,
                        log_tail=ended.log_tail,
                    ),
                    detail=f"exit code {ended.exit_code}",
                    log_tail=ended.log_tail,
                )
            await asyncio.sleep(_ALIVE_POLL_S)

    async def _log_tail(self) -> tuple[str, ...]:
        raw = await self.docker("logs", self.object_id, tail=40)
        return engine.tail_of(raw)

    async def get_url(self) -> str:
        """Where the server is now: a container's address changes when it or the engine restarts.

        Never an error: the hub asks at its start and would end for one.
        """
        stored = str(self.server.url)
        try:
            with engine.translated():
                await self.get_object()
                ip, port = await self.get_ip_and_port()
        except Exception as error:  # noqa: BLE001 (DockerSpawner raises bare ones)
            self.log.warning("%s: its address is not known anew: %s", self._log_name, error)
            return stored
        return f"http://{ip}:{port}{self.server.base_url}" if ip else stored

    async def get_object(self) -> Any:
        """Look for the container by name; only "not found" means that there is none.

        DockerSpawner takes an engine's error 500 for a container that is gone, and the hub would
        end a training for it.
        """
        try:
            found = await self.docker("inspect_container", self.object_name)
        except NotFound:
            self.object_id = ""
            return None
        self.object_id = found[self.object_id_key]
        return found

    async def poll(self) -> Any:
        """None while the container runs, or while the engine cannot say otherwise.

        A hub must not take an engine that restarts for a user's server that stopped: the container
        may well be running, and would go on holding its GPU unseen.
        """
        try:
            with engine.translated():
                said = await super().poll()
        except LabError as error:
            if not self.server:
                return 1
            self.log.warning("%s: the engine cannot say whether it runs: %s", self._log_name, error)
            return None
        # DockerSpawner's text, "ExitCode=0, Error='', FinishedAt=...".
        self._has_exited_well = str(said).startswith("ExitCode=0,")
        return said


def _bound_home(planned: plan.ContainerPlan) -> str:
    """The directory on the engine's host that is the home; "" where the home is a volume."""
    for source, mount in planned.volumes.items():
        if source.startswith("/") and mount["bind"] == planned.working_dir:
            return source
    return ""


def escaped(value: Any) -> Any:
    """Double the braces of every text, because DockerSpawner formats it once more."""
    if isinstance(value, str):
        return value.replace("{", "{{").replace("}", "}}")
    if isinstance(value, dict):
        return {escaped(key): escaped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(escaped(item) for item in value)
    return value
