"""A course while a server runs: the first sync, later publications, an instructor's orders.

It must NOT end, whatever goes wrong: what fails is said, at most once a minute, and tried again.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
import urllib.request
from typing import Any, Callable, Dict, List, Optional

from pytorch_spawner.agent import course as courses
from pytorch_spawner.agent import course_told as told
from pytorch_spawner.agent.config import Course
from pytorch_spawner.agent.course_git import Refused, shown
from pytorch_spawner.agent.course_idle import AGAIN_S, LOOK_S, Seen, is_due, stamp_of
from pytorch_spawner.agent.report import Send, make_opener

# A class's servers see a publication at the same moment; their disks are one disk.
SPREAD_S = 3.0
_MAX_ANSWER_BYTES = 256 * 1024
_MAX_ORDERS = 50
_TIMEOUT_S = 10.0
_REMEMBERED = 200


class Watch:
    """Keeps one student's copy of a course up to date.

    Attributes:
        first: Set when the first sync is over, however it ended.
        synced: What the latest sync gave; ``None`` before, or when it failed.
        seen: What there is to remember; ``course_idle`` carries it from turn to turn.
    """

    def __init__(
        self, course: Course, home: Optional[str], token: str, send: Send, log: courses.Log
    ) -> None:
        self.first = threading.Event()
        self.synced: Optional[told.Synced] = None
        self.seen = Seen()
        self._course, self._home, self._token = course, home, token
        self._send, self._log = send, log
        self._stop = threading.Event()
        self._over = threading.Event()

    def begin(self) -> None:
        """The first sync."""
        self._send("course", {"phase": "begin", **self._names()})
        self.seen.stamp = stamp_of(self._course.notice)
        self.seen.serial = told.read_notice(self._course.notice).serial
        self.seen.failed = not self._guarded(self.sync)
        self.first.set()
        self.seen.wants_orders = not self._guarded(self.take_orders)

    def turn(self, sleep: Callable[[float], object] = time.sleep) -> None:
        """Do what there is to do: the notice changed, or something failed a while ago."""
        self.seen.stamp = stamp_of(self._course.notice)
        serial = told.read_notice(self._course.notice).serial
        has_news, self.seen.serial = serial != self.seen.serial, serial
        if has_news:
            sleep(random.uniform(0, SPREAD_S))  # noqa: S311 (nobody's secret)
        if has_news or self.seen.failed:
            self.seen.failed = not self._guarded(self.sync)
        if has_news or self.seen.wants_orders:
            self.seen.wants_orders = not self._guarded(self.take_orders)

    def run(self, sleep: Optional[Callable[[float], object]] = None) -> None:
        """Sync, then watch until ``leave`` is called."""
        sleep = sleep or self._stop.wait
        try:
            self.begin()
            again_at = time.monotonic() + AGAIN_S
            while not self._stop.is_set():
                sleep(LOOK_S)
                if is_due(self.seen, self._course.notice, again_at):
                    self.turn(sleep)
                    again_at = time.monotonic() + AGAIN_S
        finally:
            self._over.set()

    def leave(self) -> Seen:
        """End ``run``; returns what the next one has to know."""
        self._stop.set()
        self._over.wait()
        return self.seen

    def sync(self) -> bool:
        """Sync once and tell; returns whether it could be done."""
        began = time.monotonic()
        try:
            self.synced = courses.sync(self._course, courses.home(self._home), self._log)
        except Refused as why:
            self.synced = None
            self._complain(why, time.monotonic() - began)
            return False
        self.seen.complaint = ""
        seconds = time.monotonic() - began
        self._send("course", told.told(self._course, self.synced, seconds))
        return True

    def _complain(self, why: Refused, seconds: float) -> None:
        """Tell what is wrong: again only when it is something else, at most once a minute."""
        now = time.time()
        if str(why) == self.seen.complaint or abs(now - self.seen.complained_at) < AGAIN_S:
            return
        self.seen.complaint, self.seen.complained_at = str(why), now
        self._send(
            "course",
            {
                "phase": "failed",
                **self._names(),
                "served": "",
                "commit": told.read_notice(self._course.notice).commit,
                "level": "fail",
                "code": why.code,
                "message": str(why),
                "remedy": why.remedy,
                "admin_remedy": why.admin_remedy,
                "seconds": round(seconds, 3),
            },
        )

    def take_orders(self) -> bool:
        """Ask for orders and carry them out; returns whether somebody answered."""
        if not self._course.orders_url:
            return True
        try:
            orders = self._ask()
        except Exception as error:  # noqa: BLE001 (http, ssl, socket and JSON errors share no base)
            self._log(f"no answer about orders: {error!r}")
            return False
        for order in orders[:_MAX_ORDERS]:
            number, path = str(order.get("id", ""))[:64], order.get("path")
            if number and isinstance(path, str) and number not in self.seen.done_orders:
                self._obey(number, path)
                self.seen.done_orders = [*self.seen.done_orders[-_REMEMBERED:], number]
        return True

    def _ask(self) -> List[Dict[str, Any]]:
        request = urllib.request.Request(  # noqa: S310 (the lab's own URL)
            self._course.orders_url,
            headers={
                "Authorization": f"token {self._token}",
                "User-Agent": "pytorch-spawner-agent",
            },
        )
        with make_opener().open(request, timeout=_TIMEOUT_S) as answer:
            said = json.loads(answer.read(_MAX_ANSWER_BYTES))
        found = said.get("orders") if isinstance(said, dict) else None
        return [one for one in found or [] if isinstance(one, dict)]

    def _obey(self, number: str, path: str) -> None:
        backup, level = "", "ok"
        name = shown(path)[:300]
        try:
            with courses.open_copy(self._course, courses.home(self._home)) as copy:
                backup = copy.reset(path, self._log)
            kept = f"; what you had is kept as {shown(backup)}" if backup else ""
            message = f"Your instructor brought {name} back to the course's version{kept}."
        except Refused as why:
            level, message = "warn", f"{name} was not brought back: {why}"
        except (OSError, ValueError) as error:
            why_not = getattr(error, "strerror", None) or type(error).__name__
            level, message = "warn", f"{name} was not brought back: {why_not}."
        data = {"order": number, "path": name, "backup": shown(backup)}
        said = {"phase": "reset", **self._names(), **data, "level": level, "message": message}
        self._send("course", said)

    def _guarded(self, work: Callable[[], bool]) -> bool:
        try:
            return work()
        except Exception as error:  # noqa: BLE001 (a loop that has to go on)
            self._log(f"the course: {error!r}")
            why = "The course's notebooks could not be updated. Your files are kept."
            again = "Restart your server; if it happens again, show this to your instructor."
            trouble = Refused("sync-failed", why, again, f"{type(error).__name__}: {error}"[:200])
            self._complain(trouble, 0.0)
            return False

    def _names(self) -> Dict[str, str]:
        return {"course": self._course.name, "title": self._course.title}


def of_this_container(course: Course, send: Send, log: courses.Log) -> Watch:
    """What keeps the copy of this container's student up to date."""
    token = os.environ.get("JUPYTERHUB_API_TOKEN", "")
    return Watch(course, os.environ.get("HOME"), token, send, log)


def start(course: Course, send: Send, log: courses.Log) -> Watch:
    """Begin to keep a student's copy up to date, in a thread of its own."""
    watch = of_this_container(course, send, log)
    threading.Thread(target=watch.run, name="course", daemon=True).start()
    return watch
