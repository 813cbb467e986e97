"""A calendar file (ICS, RFC 5545) as a timetable. Pure, and bounded: a calendar is hostile text.

Reading and repeating are done by `icalendar` and `recurring-ical-events`. Both believe what they
read, so what would keep them busy for ever is looked for first: rules of every second, rules that
match no day, repeats that began in the year 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import date, datetime, timedelta, timezone, tzinfo
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import icalendar
import recurring_ical_events  # type: ignore[import-untyped]

from pytorch_spawner.core.course_manifest import MAX_SESSIONS, Slot, Timetable
from pytorch_spawner.errors import BadRequest

# A year of a whole university's lectures has about half of it.
MAX_BYTES: Final = 1024 * 1024
MAX_EVENTS: Final = 2000
MAX_ZONES: Final = 20
# Each is counted out from its first day on.
MAX_REPEATING: Final = 400
_MAX_MET: Final = 10 * MAX_SESSIONS
_BEFORE: Final = timedelta(days=1)
_AFTER: Final = timedelta(days=400)
# Repeats are counted from their first one, so that one must not be in the year 1.
_OLDEST: Final = timedelta(days=10 * 366)
_MAX_NOTES: Final = 20
_LONGEST: Final = timedelta(hours=24)
_SHORTEST: Final = timedelta(minutes=1)

_OFTEN: Final = re.compile(r"FREQ=(SECONDLY|MINUTELY|HOURLY)", re.IGNORECASE)
_NO_STEP: Final = re.compile(r"INTERVAL=(?!\+?0*[1-9])", re.IGNORECASE)
# Which parts a rule of each kind may have, so that it meets a day sooner or later. Numbers are
# looked at in ``_meets``.
_PARTS: Final[dict[str, set[str]]] = {
    "DAILY": {"BYDAY"},
    "WEEKLY": {"BYDAY"},
    "MONTHLY": {"BYDAY", "BYMONTHDAY", "BYSETPOS"},
    "YEARLY": set(),
}
_ALWAYS: Final = {"FREQ", "INTERVAL", "COUNT", "UNTIL", "WKST"}


class Imported(NamedTuple):
    """What a calendar gave.

    Attributes:
        timetable: Once-only sessions, with offsets, in order.
        notes: What was left out or assumed, a sentence each.
    """

    timetable: Timetable
    notes: tuple[str, ...]


def read_ics(text: str | bytes, seats: int | None, now: float, zone: str = "") -> Imported:
    """Read a calendar: its events from yesterday until 400 days from now.

    Args:
        text: The file.
        seats: Of each session; see ``Slot``.
        now: Unix time in seconds.
        zone: IANA name, for times without a zone where the calendar names none itself; "" for the
            zone of its first event.

    Raises:
        BadRequest: It is no calendar, too large, holds nothing usable, or would take for ever.
    """
    calendar = _parse(_plain(text))
    own = str(calendar.get("X-WR-TIMEZONE", "")).strip()
    name = next(filter(_is_zone, (own, zone, *_zones_of(calendar))), "UTC")
    reader = _Reader(datetime.fromtimestamp(now, timezone.utc), ZoneInfo(name), seats)
    slots = reader.read(calendar)
    if own and own != name:
        reader.say(f"The calendar's time zone {_short(own)} is not known; {name} was taken.")
    if not slots:
        why = " ".join(reader.notes[:3])
        raise _refused(f"it holds no session between yesterday and 400 days from now. {why}")
    if len(slots) > MAX_SESSIONS:
        reader.say(
            f"Only the first {MAX_SESSIONS} of {len(slots)} sessions were taken, until "
            f"{slots[MAX_SESSIONS - 1].start:%Y-%m-%d}."
        )
    return Imported(
        Timetable(timezone=name, sessions=tuple(slots[:MAX_SESSIONS])), tuple(reader.notes)
    )


def _zones_of(calendar: icalendar.Calendar) -> Iterator[str]:
    for event in calendar.walk("VEVENT"):
        params = getattr(event.get("DTSTART"), "params", {})
        yield str(params.get("TZID", ""))


def _refused(why: str) -> BadRequest:
    return BadRequest(f"The calendar cannot be used: {why.strip()}")


def _plain(text: str | bytes) -> str:
    if len(text) > MAX_BYTES:
        raise _refused(f"it has more than {MAX_BYTES // 1024} KiB. Export fewer calendars at once.")
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise _refused("it is no UTF-8 text.") from None
    # Long lines are folded in the file: what is looked for may be cut in two.
    text = re.sub(r"\r?\n[ \t]", "", text.replace("\0", ""))
    if "BEGIN:VCALENDAR" not in text.upper():
        raise _refused("it is no ICS file (there is no BEGIN:VCALENDAR in it).")
    if found := _OFTEN.search(text):
        raise _refused(f"something in it repeats {found[1].lower()}. A class meets daily at most.")
    if _NO_STEP.search(text):
        raise _refused("something in it repeats with an interval that is no number above 0.")
    _check_counts(text.upper())
    _check_zones(text.upper())
    return text


def _check_counts(upper: str) -> None:
    for word, most in (("VEVENT", MAX_EVENTS), ("VTIMEZONE", MAX_ZONES)):
        if (count := upper.count(f"BEGIN:{word}")) > most:
            raise _refused(f"it has {count} times {word}, and {most} is the limit.")
    if upper.count("\nRRULE") > MAX_REPEATING:
        raise _refused(f"more than {MAX_REPEATING} events in it repeat. Export fewer calendars.")
    if upper.count("BEGIN:") > 4 * MAX_EVENTS:
        raise _refused("it has too many parts.")


def _check_zones(upper: str) -> None:
    """A zone's own rules are counted out while it is read: yearly ones are few."""
    is_inside, rules = False, 0
    for line in upper.splitlines():
        if line.startswith(("BEGIN:VTIMEZONE", "END:VTIMEZONE")):
            is_inside = line.startswith("BEGIN")
        elif is_inside and line.startswith("RRULE"):
            rules += 1
            if "FREQ=YEARLY" not in line or re.search(r"BY(SECOND|MINUTE|HOUR|YEARDAY|WEEK)", line):
                raise _refused("the rules of a time zone in it are not yearly.")
    if rules > 4 * MAX_ZONES:
        raise _refused(f"the time zones in it have {rules} rules.")


def _parse(text: str) -> icalendar.Calendar:
    try:
        found = icalendar.Calendar.from_ical(text)
    except Exception as error:  # noqa: BLE001  (hostile text: whatever the parser trips over)
        raise _refused(f"it is no ICS file ({_short(error)}).") from None
    if not isinstance(found, icalendar.Calendar):
        raise _refused("it is no ICS file.")
    return found


class _Reader:
    """Reads the events of one calendar and notes what it leaves out."""

    def __init__(self, now: datetime, zone: tzinfo, seats: int | None) -> None:
        self._now, self._zone, self._seats = now, zone, seats
        self.notes: list[str] = []

    def say(self, note: str) -> None:
        if note not in self.notes and len(self.notes) < _MAX_NOTES:
            self.notes.append(note)

    def read(self, calendar: icalendar.Calendar) -> list[Slot]:
        by_id: dict[str, list[Any]] = {}
        for event in calendar.walk("VEVENT"):
            by_id.setdefault(str(event.get("UID", id(event))), []).append(event)
        found: dict[tuple[datetime, datetime, str], Slot] = {}
        # Each series by itself: one that is damaged takes no other with it.
        for events in by_id.values():
            for slot in self._series(events):
                found[slot.start, slot.end, slot.title] = slot
            if len(found) > _MAX_MET:
                raise _refused(f"more than {_MAX_MET} sessions are in it. Export fewer calendars.")
        return [found[key] for key in sorted(found)]

    def _series(self, events: list[Any]) -> Iterator[Slot]:
        title = _short(events[0].get("SUMMARY", "")) or "an event without a title"
        for event in events:
            if why := self._fault(event):
                self.say(f"Left out: {title}, because {why}.")
                return
        alone = icalendar.Calendar()
        for event in events:
            alone.add_component(event)
        begin, end = self._now - _BEFORE, self._now + _AFTER
        try:
            met = recurring_ical_events.of(alone).between(begin, end)
        except Exception as error:  # noqa: BLE001  (hostile text: whatever the library trips over)
            self.say(f"Left out: {title}, because it is damaged ({_short(error)}).")
            return
        for one in met:
            if str(one.get("STATUS", "")).upper() != "CANCELLED":
                slot = self._slot(one, title)
                if slot is not None and begin < slot.end and slot.start < end:
                    yield slot

    def _fault(self, event: Any) -> str:
        """Why an event is not used; "" when it is."""
        try:
            start = event["DTSTART"].dt
        except (KeyError, AttributeError, ValueError):
            return "it says not when it starts"
        if not isinstance(start, datetime):
            return "it lasts all day"
        named = event["DTSTART"].params.get("TZID", "")
        if named and start.tzinfo is None:
            return f"its time zone {_short(named)} is not known"
        try:
            if abs(self._aware(start) - self._now) > _OLDEST:
                return "it began more than ten years from now"
        except (OverflowError, ValueError):
            return "its start is no time of any calendar"
        rules = event.get("RRULE", [])
        rules = rules if isinstance(rules, list) else [rules]
        try:
            is_plain = len(rules) <= 4 and all(map(_meets, rules))
        except (AttributeError, TypeError, ValueError):
            return "it repeats by a rule that is damaged"
        return "" if is_plain else "it repeats by a rule that no timetable needs"

    def _slot(self, event: Any, title: str) -> Slot | None:
        try:
            start, end = event.start, event.end
            if not isinstance(start, datetime) or not isinstance(end, datetime):
                self.say(f"Left out: {title}, because it lasts all day.")
                return None
            if start.tzinfo is None:
                self.say(f"{title} says no time zone; {self._zone} was taken.")
            start, end = self._aware(start), self._aware(end)
        except Exception as error:  # noqa: BLE001  (as above)
            self.say(f"Left out: {title}, because it is damaged ({_short(error)}).")
            return None
        if not _SHORTEST <= end - start <= _LONGEST:
            self.say(f"Left out: {title}, because it lasts less than a minute or more than a day.")
            return None
        said = _short(event.get("SUMMARY", ""))
        return Slot(start=start, end=end, seats=self._seats, title=said)

    def _aware(self, at: date) -> datetime:
        """With the offset of its own zone, or the calendar's; in UTC."""
        if not isinstance(at, datetime):
            raise ValueError(at)  # noqa: TRY004  (the callers' one kind of damage)
        known = at if at.tzinfo is not None else at.replace(tzinfo=self._zone)
        return known.astimezone(timezone.utc)


def _meets(rule: Any) -> bool:
    """Whether a rule is one of a timetable, and is sure to meet a day sooner or later."""
    kind = str(_first(rule.get("FREQ"))).upper()
    parts = {str(part).upper() for part in rule} - _ALWAYS
    if kind not in _PARTS or not parts <= _PARTS[kind]:
        return False
    step = int(_first(rule.get("INTERVAL")) or 1)
    if kind == "DAILY" and parts and step != 1:
        return False
    days = [str(day).upper() for day in _all(rule.get("BYDAY"))]
    is_counted = any(not day[:1].isalpha() for day in days)
    if kind != "MONTHLY" and is_counted:
        return False
    return (
        1 <= step <= 1000
        and all(re.fullmatch(r"([+-]?[1-5])?(MO|TU|WE|TH|FR|SA|SU)", day) for day in days)
        and all(1 <= abs(int(day)) <= 28 for day in _all(rule.get("BYMONTHDAY")))
        and not (parts >= {"BYDAY", "BYMONTHDAY"})
        and ("BYSETPOS" not in parts or ("BYDAY" in parts and not is_counted))
        and all(1 <= abs(int(place)) <= 4 for place in _all(rule.get("BYSETPOS")))
    )


def _all(said: Any) -> Iterable[Any]:
    return said if isinstance(said, list) else [] if said is None else [said]


def _first(said: Any) -> Any:
    return next(iter(_all(said)), None)


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name or "/")
    except (KeyError, ValueError, OSError):
        return False
    return True


def _short(text: object) -> str:
    """Others' text in a sentence: one line of at most 100 printable characters."""
    return "".join(char if char.isprintable() else " " for char in str(text)).strip()[:100]
