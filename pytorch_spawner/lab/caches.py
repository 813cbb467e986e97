"""``api/caches``: the warm caches, asking for one, and which of them starts are given.

Thin: scope, parse, call, shape. The service's warmer builds what is asked for here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pytorch_spawner.adapters.suite_files import read_directory
from pytorch_spawner.core import cache_words as words
from pytorch_spawner.core.suites import Suite, digest, pack, read_suite, unpack
from pytorch_spawner.core.warmcache import Cache, currents
from pytorch_spawner.errors import BadRequest, ChangedMeanwhile, LabError, Problem
from pytorch_spawner.lab import auth, views
from pytorch_spawner.lab.course_rights import CourseRights
from pytorch_spawner.lab.etags import etag_of
from pytorch_spawner.lab.handlers import ApiError, refused
from pytorch_spawner.lab.paths import suites_dir
from pytorch_spawner.lab.schemas import CacheBuild


class CacheHandler(CourseRights):
    """What the routes of the warm caches share."""

    async def require_reader(self) -> dict[str, Any]:
        """The model of somebody who may see warm caches."""
        model = await self.require_model()
        if not auth.may_see_caches(model):
            raise ApiError(403, "forbidden", f"This needs {auth.VIEW} or {auth.INSTRUCT}.")
        return model

    async def all_caches(self) -> Sequence[Cache]:
        """Every cache and build."""
        return await asyncio.to_thread(self.lab.ledger.caches, self.lab.settings.hub_id)

    async def sees(self, model: Mapping[str, Any]) -> Callable[[Cache], bool]:
        """Which caches somebody may see: an instructor those of their own courses and of all."""
        if auth.is_viewer(model):
            return lambda _: True
        scopes = {"", *(one.name for one in await self.own_courses(model))}
        return lambda cache: cache.scope in scopes

    async def find(self, model: Mapping[str, Any], cache_id: str) -> Cache:
        """One of them.

        Raises:
            ApiError: 404, there is none that this person may see.
        """
        hub = self.lab.settings.hub_id
        found = await asyncio.to_thread(self.lab.ledger.cache, hub, cache_id[:32])
        if found is None or not (await self.sees(model))(found):
            raise ApiError(404, "no-such-cache", "There is no such warm cache (any more).")
        return found

    async def require_builder(self, model: Mapping[str, Any], scope: str) -> None:
        """See that somebody may decide about the caches of a course, or of all ("").

        What a cache holds is executed in every server that is given it, so one for all courses is
        an admin's to decide, and one for a course that of those who look after it.
        """
        if auth.is_admin(model):
            return
        if not scope:
            said = "A warm cache for every course is an admin's to decide."
            await self.refuse(model, "forbidden", said)
        if all(one.name != scope for one in await self.own_courses(model)):
            said = "You look after no course of this name, so its warm caches are not yours."
            await self.refuse(model, "forbidden", said)

    def check(self) -> Callable[[Cache], None]:
        """What refuses a change to something that the client has not seen.

        Raises:
            ApiError: 428, the request names no version.
        """
        is_seen = self.require_match()

        def check(cache: Cache) -> None:
            if not is_seen(etag_of_cache(cache)):
                raise ChangedMeanwhile("", now=describe(cache, ()))

        return check

    async def changed(self, cache_id: str, error: ChangedMeanwhile) -> ChangedMeanwhile:
        """The same error, which says who was faster."""
        hub, ledger = self.lab.settings.hub_id, self.lab.ledger
        latest = await asyncio.to_thread(ledger.latest_change, hub, "cache", cache_id)
        caches = await self.all_caches()
        now = next((one for one in caches if one.id == cache_id), None)
        shown = None if now is None else describe(now, currents(caches))
        said = views.changed_by(f"The warm cache {cache_id}", latest)
        return ChangedMeanwhile(said, now=shown or error.now)

    async def change(
        self, cache_id: str, act: Callable[..., bool], why_not: Callable[[Cache], str]
    ) -> None:
        """Let somebody decide whether starts are given a cache."""
        model = await self.require_instructor()
        check, one = self.check(), await self.find(model, cache_id)
        await self.require_builder(model, one.scope)
        try:
            is_done = await asyncio.to_thread(act, one.hub, one.id, model["name"], check)
        except ChangedMeanwhile as error:
            raise await self.changed(one.id, error) from None
        if not is_done:
            raise BadRequest(why_not(await self.find(model, cache_id)))
        await self.answer(one.id)

    async def answer(self, cache_id: str, status: int = 200) -> None:
        """Answer with a cache as it is after a change."""
        hub, ledger = self.lab.settings.hub_id, self.lab.ledger
        caches = await self.all_caches()
        now = next((one for one in caches if one.id == cache_id), None)
        if now is None:
            raise ApiError(404, "no-such-cache", "There is no such warm cache (any more).")
        line = await asyncio.to_thread(ledger.latest_change, hub, "cache", cache_id)
        self.send_json(
            {
                "cache": describe(now, currents(caches)),
                "change": None if line is None else line.id,
                "sentence": words.say_given(caches, now),
            },
            status,
        )


class Caches(CacheHandler):
    """``api/caches``."""

    async def get(self) -> None:
        """All of them for viewers; for instructors those of their courses, and of every course."""
        sees = await self.sees(await self.require_reader())
        caches = await self.all_caches()
        given = currents(caches)
        self.send_json({"caches": [describe(one, given) for one in caches if sees(one)]})

    async def post(self) -> None:
        """Ask for a build."""
        model = await self.require_instructor()
        said = self.body_as(CacheBuild)
        asked = self._again(model, said) if said.again_of else self._anew(said)
        suite, files, wanted = await asked
        await self.require_builder(model, wanted[0])
        state = await self.lab.board.state()
        words.check_request(*wanted, state.laid)
        course, image, pool, gpus = wanted

        def ask() -> Cache:
            return self.lab.ledger.request_cache(
                self.lab.settings.hub_id,
                by=model["name"],
                scope=course,
                image=image,
                pool=pool,
                gpus=gpus,
                suite=suite.as_json(),
                suite_digest=digest(files),
                archive=pack(files),
            )

        await self.answer((await asyncio.to_thread(ask)).id, 201)

    async def _anew(
        self, said: CacheBuild
    ) -> tuple[Suite, dict[str, bytes], tuple[str, str, str, int]]:
        known = await asyncio.to_thread(known_suites)
        if said.suite not in known:
            there = ", ".join(known) or "none"
            problem = Problem(f"the lab has no suite {said.suite[:60]!r}; it has {there}", "suite")
            raise refused([problem])
        files = await asyncio.to_thread(read_directory, suites_dir() / said.suite)
        return read_suite(files), files, (said.course, said.image, said.pool, said.gpus)

    async def _again(
        self, model: Mapping[str, Any], said: CacheBuild
    ) -> tuple[Suite, dict[str, bytes], tuple[str, str, str, int]]:
        was = await self._earlier(model, said.again_of)
        hub, ledger = self.lab.settings.hub_id, self.lab.ledger
        archive = await asyncio.to_thread(ledger.suite_archive, hub, was.id)
        files = unpack(archive)
        named = said.model_fields_set
        wanted = (
            said.course if "course" in named else was.scope,
            said.image if "image" in named else was.image,
            said.pool if "pool" in named else was.pool,
            said.gpus if "gpus" in named else was.gpus,
        )
        return read_suite(files), files, wanted

    async def _earlier(self, model: Mapping[str, Any], cache_id: str) -> Cache:
        try:
            return await self.find(model, cache_id)
        except ApiError:
            raise refused([Problem("there is no such build (any more)", "again_of")]) from None


class CacheChoices(CacheHandler):
    """``api/caches/choices``."""

    async def get(self) -> None:
        """What a build can be asked for with."""
        model = await self.require_reader()
        known = await asyncio.to_thread(known_suites)
        state, caches = await self.lab.board.state(), await self.all_caches()
        own = [one.name for one in await self.own_courses(model)]
        requests = [lease.request for lease in state.leases]
        self.send_json(
            {
                "suites": list(known.values()),
                "images": _once(
                    [str(one.get("image") or "") for one in requests],
                    [one.image for one in caches],
                ),
                "courses": _once(
                    own,
                    *(
                        (
                            [str(one.get("course") or "") for one in requests],
                            [one.scope for one in caches],
                        )
                        if auth.is_viewer(model)
                        else ()
                    ),
                ),
                "pools": list(state.laid.pools),
                "gpus": len(state.laid.gpus),
            }
        )


class OneCache(CacheHandler):
    """``api/caches/<id>``."""

    async def get(self, cache_id: str) -> None:
        """One of them, with the end of its log."""
        model = await self.require_reader()
        caches, one = await self.all_caches(), await self.find(model, cache_id)
        self.send_json({"cache": describe(one, currents(caches), log=True)})

    async def delete(self, cache_id: str) -> None:
        """Give it up; its files go once no server uses them."""
        model = await self.require_instructor()
        check, one = self.check(), await self.find(model, cache_id)
        await self.require_builder(model, one.scope)
        hub, ledger = self.lab.settings.hub_id, self.lab.ledger
        try:
            was = await asyncio.to_thread(ledger.remove_cache, hub, one.id, model["name"], check)
        except ChangedMeanwhile as error:
            raise await self.changed(one.id, error) from None
        if was is None:
            raise BadRequest(words.why_not_removed(await self.find(model, cache_id)))
        line = await asyncio.to_thread(ledger.latest_change, hub, "cache", one.id)
        self.send_json({"removed": one.id, "change": 0 if line is None else line.id})


class Promote(CacheHandler):
    """``api/caches/<id>/promote``."""

    async def post(self, cache_id: str) -> None:
        """Give it to starts from now on."""
        await self.change(cache_id, self.lab.ledger.promote_cache, words.why_not_promoted)


class RollBack(CacheHandler):
    """``api/caches/<id>/rollback``."""

    async def post(self, cache_id: str) -> None:
        """Give starts what was promoted before it."""
        await self.change(cache_id, self.lab.ledger.retire_cache, words.why_not_retired)


class StopBuild(CacheHandler):
    """``api/caches/<id>/stop``."""

    async def post(self, cache_id: str) -> None:
        """Stop a build; one under way ends within a moment."""
        model = await self.require_instructor()
        one = await self.find(model, cache_id)
        await self.require_builder(model, one.scope)
        ledger = self.lab.ledger
        if not await asyncio.to_thread(ledger.cancel_cache, one.hub, one.id, model["name"]):
            raise BadRequest(words.why_not_stopped(await self.find(model, cache_id)))
        await self.answer(one.id)


def known_suites() -> dict[str, dict[str, Any]]:
    """The suites that come with the lab, by the names of their folders."""
    folder = suites_dir()
    if not folder.is_dir():
        return {}
    known: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            known[path.name] = {"name": path.name, "targets": [], "fault": ""}
            try:
                targets = read_suite(read_directory(path)).targets
                known[path.name]["targets"] = [one.name for one in targets]
            except LabError as error:
                known[path.name]["fault"] = error.public_message
    return known


def describe(cache: Cache, given: Collection[str], *, log: bool = False) -> dict[str, Any]:
    """A cache as the API shows it, with its version."""
    return {**words.as_json(cache, given, log=log), "etag": etag_of_cache(cache)}


def etag_of_cache(cache: Cache) -> str:
    """Version of what can be decided about a cache; how far its build is, is no part of it."""
    return etag_of([cache.id, cache.state, cache.promoted_at])


def _once(*lists: Sequence[str]) -> list[str]:
    """Each text once, in the order of the lists."""
    return [one for one in dict.fromkeys(text for texts in lists for text in texts) if one]
