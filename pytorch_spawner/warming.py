"""What a start has to do with warm caches: it is given one, or it is the run that builds one.

A build runs in a server of the hub like any other, so that its GPU comes from the same queue, its
lease is released and reconciled the same way and an admin sees it. What differs is here: whose code
runs (a suite's), on which volumes (fresh ones), on which network (none), with which command.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from docker.errors import NotFound

from pytorch_spawner.adapters import home_engine, warm_engine
from pytorch_spawner.container import escaped
from pytorch_spawner.core import course_environment, identity, plan, suites, warmcache
from pytorch_spawner.core.courses import Course
from pytorch_spawner.core.gpus import Gpu
from pytorch_spawner.core.warmcache import Cache
from pytorch_spawner.errors import CacheNotSealed, LabError, NotGranted
from pytorch_spawner.gate import GatedSpawner
from pytorch_spawner.rules import trusted_image

_SUITE_DIR: Final = "/opt/pytorch-spawner/suite"
_SEAL_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Warm:
    """What a start's warm cache adds to its plan.

    Attributes:
        cache: The one that is given, or that is being built; None for neither.
        agent: For the agent's configuration.
        read_only: Volume -> path in the container.
        environment: Variables.
    """

    cache: Cache | None = None
    agent: Mapping[str, Any] = field(default_factory=dict)
    read_only: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


class WarmingSpawner(GatedSpawner):
    """A container that gets a warm cache, or that builds one."""

    # DockerSpawner's.
    network_name: Any
    use_internal_ip: Any
    volumes: Any
    mounts: Any
    links: Any
    extra_create_kwargs: Any
    extra_host_config: Any

    # PyTorchSpawner's.
    offer: Any

    # The build that this start is; None for everybody's starts.
    _build: Cache | None = None
    # What the site configured, before the first build changed it.
    _usual_network: tuple[str, bool] | None = None

    @property
    def is_warmer(self) -> bool:
        """Whether this is the account that builds caches."""
        return bool(self.user.name == warmcache.WARMER)

    async def take_build(self) -> Mapping[str, Any] | None:
        """Find out which build this start is.

        Returns:
            The options of its start: the build's own, whatever the start said. None for everybody
            else's starts.

        Raises:
            NotGranted: It is the warmer's account, and nobody asked for a build.
        """
        self._build = None
        if not self.is_warmer:
            return None
        if not self.name:
            self._build = await self.lab.call(lambda ledger: ledger.cache_under_way(self.lab.hub))
        if self._build is None:
            raise NotGranted(
                "This account only builds warm caches, and none is asked for. Ask for one with "
                "`pytorch-spawner cache build`."
            )
        if self._usual_network is None:
            self._usual_network = (str(self.network_name), bool(self.use_internal_ip))
        name, is_internal = await self._network_of(self._build)
        self.network_name, self.use_internal_ip = name, is_internal
        return warmcache.options_of(self._build, await self._share_of(self._build))

    async def _share_of(self, build: Cache) -> str:
        """The MIG profile that the students of its course ask for; "" for none, or not to be had.

        A slot has the key of the whole GPU, and the lab's own grant decides about those.
        """
        course = await self._course_of(build)
        share = course.manifest.request.share if course else ""
        is_mig = share.startswith("mig:") and share in (await self.offer()).shares
        return share if is_mig else ""

    async def _network_of(self, build: Cache) -> tuple[str, bool]:
        """(name, whether it is reached by the container's own address) of a build's network."""
        if build.suite.get("network") and self._usual_network is not None:
            return self._usual_network
        if self.warmer_network:
            return self.warmer_network, True
        name = f"{self.hub_id}-warm"
        await self._call(warm_engine.make_offline_network, name, self.lab.hub)
        # Where no way leads out, no port is published either.
        return name, True

    async def _offered(self) -> tuple[Cache, ...] | None:
        if not self.warm_caches:
            return ()
        try:
            return await self.lab.call(lambda ledger: ledger.offered_caches(self.lab.hub))
        except LabError as error:
            self.log.warning("%s: the warm caches are not known: %s", self._log_name, error)
            return None

    async def choose_warm(self, course: str, gpu: Gpu | None) -> Warm:
        """What this start gets; it never fails for want of a cache.

        Args:
            course: Of the request; "" for none.
            gpu: What the start holds first; None for the CPU.
        """
        if self._build is not None:
            return await self._plan_build(self._build, gpu)
        offered = await self._offered()
        if offered is None:
            return Warm()
        # What another one brought that was rolled back must not go on being used.
        told = {"offered_caches": sorted(warmcache.currents(offered))}
        if not offered:
            return Warm(agent=told)
        image_id = await self._image_id()
        for scope in dict.fromkeys((course, "")):
            key = warmcache.key_of(image_id, gpu, scope)
            found = warmcache.choose(offered, key) if key else None
            if found is not None and await self._is_there(found):
                warm = await self._give(found)
                return replace(warm, agent={**warm.agent, **told})
        has_own = any(one.scope == course for one in offered)
        key = warmcache.key_of(image_id, gpu, course if has_own else "")
        why = warmcache.why_none(offered, key) if key else "This GPU's facts are not known."
        return Warm(agent={"why_no_cache": why, **told})

    async def _is_there(self, cache: Cache) -> bool:
        """Whether its volume is; the engine would make an empty one of that name."""
        if await self._call(warm_engine.has_volume, cache.volume):
            return True
        self.log.warning("the volume of the warm cache %s is gone", cache.id)
        return False

    async def _give(self, cache: Cache) -> Warm:
        try:
            await self.lab.call(lambda ledger: ledger.use_cache(cache.id))
        except LabError as error:
            self.log.warning("%s: that a cache is used was not noted: %s", self._log_name, error)
        return Warm(
            cache,
            {"warm_cache": warmcache.agent_facts(cache)},
            {cache.volume: warmcache.WARM_DIR},
            warmcache.environment_of(cache.id, cache.suite.get("imports", ())),
        )

    async def _plan_build(self, build: Cache, gpu: Gpu | None) -> Warm:
        key = warmcache.key_of(await self._image_id(), gpu, build.scope)
        if key is None:
            raise NotGranted(
                "The driver does not say what this GPU is (name, compute capability, driver), so "
                "no start could be matched with a cache built on it."
            )
        volumes = warmcache.volumes_of(self.lab.hub, build.id)
        is_check = build.state == "checking"
        if not is_check:
            await self.lab.call(
                lambda ledger: ledger.note_cache(build.id, key=key, volume=volumes.cache)
            )
        elif build.key is None or (why := warmcache.why_unlike(build.key, key)):
            raise NotGranted(why if build.key else "Nothing was compiled. Build it again.")
        else:
            build = self._build = replace(build, **await self._seal(build, volumes.cache))
        course = await self._course_of(build)
        told: dict[str, Any] = {
            "build": {
                "suite": dict(build.suite),
                "check": is_check,
                "folder": str(course.manifest.folder) if course else "",
            }
        }
        if is_check:
            told["warm_cache"] = warmcache.agent_facts(build)
        return Warm(
            build,
            told,
            {volumes.cache: warmcache.WARM_DIR} if is_check else {},
            # Some variables are of PyTorch's keys (TORCHINDUCTOR_MAX_AUTOTUNE, OMP_NUM_THREADS), so
            # a cache that was built without the students' own would never be found.
            {
                **(course_environment.allowed(course.manifest.environment)[0] if course else {}),
                **warmcache.environment_of(build.id),
            },
        )

    async def _course_of(self, build: Cache) -> Course | None:
        """The course whose students the cache is for; None for everybody's, or a removed one's."""
        if not build.scope:
            return None
        return await self.lab.call(lambda ledger: ledger.course(self.lab.hub, build.scope))

    async def _seal(self, build: Cache, volume: str) -> dict[str, Any]:
        """Make what the first container compiled read-only, with a digest of every file.

        Raises:
            CacheNotSealed: It is empty or too large, or the helper container failed.
        """
        who = await self.lab.call(lambda ledger: ledger.known_identity(self.user.name))
        helper = trusted_image(self)
        if who is None:
            raise CacheNotSealed("The account that builds warm caches has no uid.")
        await self.pull_image(helper)
        code, said = await self.lab.in_lane(
            self.object_name,
            lambda: warm_engine.run_helper(
                self.client,
                helper,
                ["python3", "-I", plan.AGENT_PATH, "--seal", "/work", _kind_of(build)],
                {plan.AGENT_PATH: (self.lab.agent, 0o444)},
                volume=volume,
                user=f"{who.uid}:{who.gid}",
                labels={f"{plan.LABEL}hub": f"{self.lab.hub}-helper"},
                deadline_s=_SEAL_S,
            ),
        )
        sealed = _sealed(code, said)
        await self.lab.call(lambda ledger: ledger.note_cache(build.id, **sealed))
        return sealed

    async def image_facts(self) -> Mapping[str, Any]:
        """What the engine says of the image that will run; it is pulled where it is not here."""
        if self.pull_policy.lower() == "always":
            # The start's own pull comes after this, and a tag that moved has another digest then.
            await self.pull_image(self.image)
        try:
            found: Mapping[str, Any] = await self.docker("inspect_image", self.image)
        except NotFound:
            await self.pull_image(self.image)
            found = await self.docker("inspect_image", self.image)
        return found

    async def _image_id(self) -> str:
        return str((await self.image_facts())["Id"])

    def cache_place(self, warm: Warm) -> home_engine.Place:
        """The private compile cache; a build's is what it makes."""
        if self._build is not None:
            volumes = warmcache.volumes_of(self.lab.hub, self._build.id)
            is_check = self._build.state == "checking"
            return home_engine.Place(volume=volumes.check if is_check else volumes.cache)
        scope = warm.cache.scope if warm.cache else ""
        owner = identity.slug(self.user.name)
        volume = warmcache.private_volume(self.hub_id, owner, identity.slug(scope) if scope else "")
        return home_engine.Place(volume=volume)

    def home_place(self) -> home_engine.Place:
        """The home; a build gets an empty one of its own, for a suite's code may write there."""
        if self._build is not None:
            homes = warmcache.volumes_of(self.lab.hub, self._build.id).homes
            return home_engine.Place(volume=homes[self._build.state == "checking"])
        owner = identity.slug(self.user.name)
        if self.home_root:
            return home_engine.Place(root=self.home_root, name=owner)
        return home_engine.Place(volume=f"{self.hub_id}-home-{owner}")

    # -- the container of a build ---------------------------------------------------------------

    async def create_object(self) -> Any:
        """Create it; a build's without what a site mounts or connects for its people.

        ``read_only_volumes`` stay: where an image's programs and libraries are files of the host
        (tests/gpu/host_run.py), they are the image's own part, and nothing could be built without.
        """
        if self._build is None:
            return await super().create_object()
        create = await self._resolved(self.extra_create_kwargs)
        create.pop("networking_config", None)
        host = await self._resolved(self.extra_host_config)
        for name in ("binds", "mounts", "links", "volumes_from", "network_mode"):
            host.pop(name, None)
        settings = {
            "volumes": {},
            "mounts": [],
            "links": {},
            "extra_create_kwargs": escaped(create),
            "extra_host_config": escaped(host),
        }
        kept = {name: getattr(self, name) for name in settings}
        for name, value in settings.items():
            setattr(self, name, value)
        try:
            return await super().create_object()
        finally:
            for name, value in kept.items():
                setattr(self, name, value)

    async def get_command(self) -> list[str]:
        if self._build is not None:
            return ["python3", plan.AGENT_PATH, "--build"]
        return await super().get_command()

    def get_env(self) -> dict[str, Any]:
        env = super().get_env()
        if self._build is not None:
            # A suite is somebody's code: it gets no way into the hub.
            return {name: value for name, value in env.items() if "TOKEN" not in name}
        return env

    async def extra_files(self) -> dict[str, tuple[bytes, int]]:
        if self._build is None:
            return {}
        build = self._build
        archive = await self.lab.call(lambda ledger: ledger.suite_archive(self.lab.hub, build.id))
        return {
            f"{_SUITE_DIR}/{path}": (content, 0o444)
            for path, content in suites.unpack(archive).items()
        }


def _kind_of(build: Cache) -> str:
    """Whether the code is for a GPU, or for the very CPU that it was built on."""
    return "gpu" if build.key and build.key.gpu else "cpu"


def _sealed(code: int, said: str) -> dict[str, Any]:
    """What the helper container answered.

    Raises:
        CacheNotSealed: It refused, or failed.
    """
    try:
        told = json.loads(said.splitlines()[-1]) if said else {}
    except ValueError:
        told = {}
    if "refused" in told:
        raise CacheNotSealed(f"{told['refused']}.")
    if code != 0 or not told.get("digest"):
        raise CacheNotSealed("What was compiled could not be sealed.", detail=said[-300:])
    return {name: told[name] for name in ("digest", "files", "size_bytes")}
