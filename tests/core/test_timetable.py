"""When a class meets, and what a calendar may say."""

from __future__ import annotations

import time
from datetime import datetime, timezone

import pytest

from pytorch_spawner.core.course_manifest import Manifest
from pytorch_spawner.core.course_text import parse_manifest
from pytorch_spawner.core.ics import MAX_BYTES, read_ics
from pytorch_spawner.core.timetable import from_ics, next_session, sessions_of
from pytorch_spawner.errors import BadRequest

WEEK_S = 7 * 24 * 3600.0
# A Monday.
NOW = datetime(2026, 9, 21, 12, 0, tzinfo=timezone.utc).timestamp()


def at(text: str) -> float:
    """A UTC time as Unix time."""
    return datetime.fromisoformat(f"{text}+00:00").timestamp()


def course(*sessions: dict[str, object], zone: str = "Europe/Berlin") -> Manifest:
    return parse_manifest(
        {
            "name": "cv",
            "title": "Computer vision",
            "source": {"git": "https://forge.example.org/cv.git"},
            "timetable": {"timezone": zone, "sessions": list(sessions)},
        }
    )


def told(manifest: Manifest, first: str, last: str) -> list[tuple[str, str]]:
    """Start and end of the sessions between two UTC times, in UTC."""
    return [
        (
            f"{datetime.fromtimestamp(one.starts_at, timezone.utc):%m-%d %H:%M}",
            f"{datetime.fromtimestamp(one.ends_at, timezone.utc):%m-%d %H:%M}",
        )
        for one in sessions_of(manifest, at(first), at(last))
    ]


def slot(start: str, end: str, until: str | None = None, **more: object) -> dict[str, object]:
    return {"start": start, "end": end, "weekly_until": until, **more}


@pytest.mark.parametrize(
    ("manifest", "span", "expected"),
    [
        pytest.param(
            course(slot("2026-10-12T09:00", "2026-10-12T10:30")),
            ("2026-10-01", "2026-12-01"),
            [("10-12 07:00", "10-12 08:30")],
            id="once, in summer time",
        ),
        pytest.param(
            course(slot("2026-10-12T09:00", "2026-10-12T10:30", "2026-11-02")),
            ("2026-10-01", "2026-12-01"),
            [
                ("10-12 07:00", "10-12 08:30"),
                ("10-19 07:00", "10-19 08:30"),
                ("10-26 08:00", "10-26 09:30"),
                ("11-02 08:00", "11-02 09:30"),
            ],
            id="nine o'clock stays nine o'clock when summer time ends; the last day is included",
        ),
        pytest.param(
            course(slot("2026-03-23T09:00", "2026-03-23T10:00", "2026-03-30")),
            ("2026-03-01", "2026-05-01"),
            [("03-23 08:00", "03-23 09:00"), ("03-30 07:00", "03-30 08:00")],
            id="and when it begins",
        ),
        pytest.param(
            course(slot("2026-03-29T02:30", "2026-03-29T04:00")),
            ("2026-03-01", "2026-05-01"),
            [("03-29 01:30", "03-29 02:00")],
            id="a time that the clocks leave out is the moment after",
        ),
        pytest.param(
            course(slot("2026-03-22T02:50", "2026-03-22T03:10", "2026-03-29")),
            ("2026-03-01", "2026-05-01"),
            [("03-22 01:50", "03-22 02:10"), ("03-29 01:50", "03-29 02:10")],
            id="a session that would end before it begins lasts as long as ever",
        ),
        pytest.param(
            course(slot("2026-10-25T02:30", "2026-10-25T04:00")),
            ("2026-10-01", "2026-12-01"),
            [("10-25 00:30", "10-25 03:00")],
            id="a time that there is twice is the first",
        ),
        pytest.param(
            course(slot("2026-10-12T09:00+05:30", "2026-10-12T10:00+05:30", "2026-10-26")),
            ("2026-10-01", "2026-12-01"),
            [
                ("10-12 03:30", "10-12 04:30"),
                ("10-19 03:30", "10-19 04:30"),
                ("10-26 04:30", "10-26 05:30"),
            ],
            id="an offset says when it is first; it is repeated on the course's clocks",
        ),
        pytest.param(
            course(slot("2026-10-12T09:00", "2026-10-12T10:00", "2026-12-31"), zone="UTC"),
            ("2026-11-09T09:30", "2026-11-16T09:00"),
            [("11-09 09:00", "11-09 10:00")],
            id="one that runs is in the span; one that begins at its end is not",
        ),
        pytest.param(
            course(
                slot("2026-10-13T09:00", "2026-10-13T10:00"),
                slot("2026-10-12T09:00", "2026-10-12T10:00"),
                zone="UTC",
            ),
            ("2026-10-01", "2026-12-01"),
            [("10-12 09:00", "10-12 10:00"), ("10-13 09:00", "10-13 10:00")],
            id="in order of time, however they are written",
        ),
        pytest.param(
            course(slot("0001-01-01T00:00+14:00", "0001-01-01T09:00+14:00")),
            ("2026-10-01", "2026-12-01"),
            [],
            id="a time before all calendars is none",
        ),
        pytest.param(
            course(slot("9999-12-31T20:00-10:00", "9999-12-31T23:00-10:00")),
            ("2026-10-01", "2026-12-01"),
            [],
            id="nor is one after them",
        ),
        pytest.param(course(), ("2026-10-01", "2026-12-01"), [], id="no timetable, no session"),
    ],
)
def test_a_timetable_is_read_as_the_clocks_of_its_zone_show(
    manifest: Manifest, span: tuple[str, str], expected: list[tuple[str, str]]
) -> None:
    assert told(manifest, *span) == expected


def test_the_next_session_is_the_one_that_runs_or_comes() -> None:
    weekly = course(
        slot("2026-10-12T09:00", "2026-10-12T10:00", "2026-10-19", seats=8, title="Week"),
        zone="UTC",
    )
    during, after = at("2026-10-12T09:59"), at("2026-10-12T10:00")
    first = next_session(weekly, during)
    assert first is not None
    assert (first.course, first.title, first.seats) == ("cv", "Week", 8)
    assert first.starts_at == at("2026-10-12T09:00")
    second = next_session(weekly, after)
    assert second is not None
    assert second.starts_at - first.starts_at == WEEK_S
    assert next_session(weekly, at("2026-10-19T10:00")) is None


def test_a_year_of_sessions_is_not_counted_out_at_every_question() -> None:
    every = [
        slot(f"2026-09-21T{n % 24:02d}:00", f"2026-09-21T{n % 24:02d}:59", "2027-10-20")
        for n in range(400)
    ]
    manifest = course(*every)
    began = time.process_time()
    assert len(sessions_of(manifest, NOW + 300 * 86400, NOW + 300 * 86400 + 3600)) in range(40)
    assert time.process_time() - began < 0.2


# -- calendars -----------------------------------------------------------------------------------


def calendar(*parts: str, head: str = "") -> str:
    lines = ["BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:test", *([head] if head else []), *parts]
    return "\r\n".join([*lines, "END:VCALENDAR", ""])


def event(*lines: str, uid: str = "") -> str:
    name = uid or str(abs(hash(lines)))
    return "\r\n".join(["BEGIN:VEVENT", f"UID:{name}", *lines, "END:VEVENT"])


HOUR = "DURATION:PT1H"
LOCAL = event("DTSTART:20261012T090000", HOUR)
BERLIN = "TZID=Europe/Berlin"
MONDAY = (
    f"DTSTART;{BERLIN}:20261012T090000",
    f"DTEND;{BERLIN}:20261012T103000",
    "SUMMARY:Lecture",
)
ZONE = "\r\n".join(
    [
        "BEGIN:VTIMEZONE",
        "TZID:Our own",
        "BEGIN:STANDARD",
        "DTSTART:20200101T000000",
        "TZOFFSETFROM:+0300",
        "TZOFFSETTO:+0300",
        "%s",
        "END:STANDARD",
        "END:VTIMEZONE",
    ]
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(calendar(event(*MONDAY)), ["10-12 07:00"], id="one event"),
        pytest.param(
            calendar(event(*MONDAY, "RRULE:FREQ=WEEKLY;COUNT=3")),
            ["10-12 07:00", "10-19 07:00", "10-26 08:00"],
            id="a weekly one keeps its hour when summer time ends",
        ),
        pytest.param(
            calendar(
                event(
                    *MONDAY,
                    "RRULE:FREQ=WEEKLY;UNTIL=20261026T230000Z;BYDAY=MO,WE",
                    f"EXDATE;{BERLIN}:20261019T090000",
                )
            ),
            ["10-12 07:00", "10-14 07:00", "10-21 07:00", "10-26 08:00"],
            id="two days a week, but not on one of them",
        ),
        pytest.param(
            calendar(
                event(*MONDAY, "RRULE:FREQ=WEEKLY;COUNT=3", uid="a"),
                event(
                    f"RECURRENCE-ID;{BERLIN}:20261019T090000",
                    f"DTSTART;{BERLIN}:20261020T110000",
                    f"DTEND;{BERLIN}:20261020T120000",
                    uid="a",
                ),
            ),
            ["10-12 07:00", "10-20 09:00", "10-26 08:00"],
            id="one of them was moved",
        ),
        pytest.param(
            calendar(
                event(*MONDAY, "RRULE:FREQ=WEEKLY;COUNT=2", uid="a"),
                event(
                    f"RECURRENCE-ID;{BERLIN}:20261019T090000",
                    f"DTSTART;{BERLIN}:20261019T090000",
                    f"DTEND;{BERLIN}:20261019T103000",
                    "STATUS:CANCELLED",
                    uid="a",
                ),
            ),
            ["10-12 07:00"],
            id="one of them was cancelled",
        ),
        pytest.param(
            calendar(LOCAL, head="X-WR-TIMEZONE:Asia/Tokyo"),
            ["10-12 00:00"],
            id="a time without a zone is the calendar's own",
        ),
        pytest.param(
            calendar(LOCAL),
            ["10-12 13:00"],
            id="or the course's",
        ),
        pytest.param(
            calendar(event("DTSTART;TZID=W. Europe Standard Time:20261012T090000", HOUR)),
            ["10-12 07:00"],
            id="a zone by the name that Windows has for it",
        ),
        pytest.param(
            calendar(ZONE % "COMMENT:x", event("DTSTART;TZID=Our own:20261012T090000", HOUR)),
            ["10-12 06:00"],
            id="a zone that the calendar defines",
        ),
        pytest.param(
            calendar(
                event("DTSTART:20260914T090000Z", HOUR, "RRULE:FREQ=WEEKLY;COUNT=2"),
                event("DTSTART:20281014T090000Z", HOUR),
            ),
            ["09-21 09:00"],
            id="only from yesterday until 400 days from now",
        ),
        pytest.param(
            calendar(event(*MONDAY, uid="a"), event(*MONDAY, uid="b")),
            ["10-12 07:00"],
            id="the same session twice is one",
        ),
        pytest.param(
            calendar(
                event(
                    "DTSTART:20261012T090000Z",
                    HOUR,
                    "RRULE:FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1;COUNT=2",
                )
            ),
            ["10-12 09:00", "10-30 09:00", "11-30 09:00"],
            id="the last working day of a month",
        ),
    ],
)
def test_a_calendar_becomes_sessions(text: str, expected: list[str]) -> None:
    said = read_ics(text, 8, NOW, "America/New_York").timetable
    assert [f"{one.start:%m-%d %H:%M}" for one in said.sessions] == expected
    assert all(one.start.utcoffset() is not None and one.seats == 8 for one in said.sessions)
    assert from_ics(text.encode(), 8, NOW, "America/New_York") == said


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        (calendar(event(*MONDAY)), "", "Europe/Berlin"),
        (calendar(event(*MONDAY)), "America/New_York", "America/New_York"),
        (calendar(event(*MONDAY), head="X-WR-TIMEZONE:Asia/Tokyo"), "", "Asia/Tokyo"),
        (calendar(event(*MONDAY), head="X-WR-TIMEZONE:../../etc/passwd"), "", "Europe/Berlin"),
        (calendar(event("DTSTART:20261012T090000Z", "DURATION:PT1H")), "no/where", "UTC"),
    ],
)
def test_a_timetable_is_told_in_the_zone_that_people_know(
    text: str, zone: str, expected: str
) -> None:
    assert read_ics(text, None, NOW, zone).timetable.timezone == expected


FINE = event(*MONDAY, uid="fine")


def odd(*more: str, start: str = "DTSTART:20261012T090000Z", long: str = "DURATION:PT1H") -> str:
    return event(start, long, "SUMMARY:E", *more)


NEEDLESS = "Left out: E, because it repeats by a rule that no timetable needs."
LENGTH = "Left out: E, because it lasts less than a minute or more than a day."
NO_START = "Left out: E, because it says not when it starts."
DAMAGED = "Left out: E, because it is damaged"


@pytest.mark.parametrize(
    ("one", "note"),
    [
        (odd(start="DTSTART;VALUE=DATE:20261012"), "Left out: E, because it lasts all day."),
        (
            odd(start="DTSTART;TZID=Mars/Olympus:20261012T090000"),
            "Left out: E, because its time zone Mars/Olympus is not known.",
        ),
        (odd(start="DTSTART:20261012T090000"), "E says no time zone; Europe/Berlin was taken."),
        (odd(long="X-NO:1"), LENGTH),
        (odd(long="DURATION:P2D"), LENGTH),
        (odd(long="DURATION:P99999999D"), DAMAGED),
        (odd(start="DTSTART:tomorrow"), NO_START),
        (odd(start="X-NO:1"), NO_START),
        (
            odd("RRULE:FREQ=DAILY", start="DTSTART:00010101T090000Z"),
            "Left out: E, because it began more than ten years from now.",
        ),
        # Nothing ever matches these, and they would be looked for until the year 9999.
        (odd("RRULE:FREQ=DAILY;INTERVAL=7;BYDAY=TU"), NEEDLESS),
        (odd("RRULE:FREQ=MONTHLY;BYMONTHDAY=31;BYMONTH=2"), NEEDLESS),
        (odd("RRULE:FREQ=MONTHLY;BYDAY=9MO"), NEEDLESS),
        (odd("RRULE:FREQ=DAILY;BYHOUR=1,2;BYMINUTE=1,2,3"), NEEDLESS),
        (odd("RRULE:nonsense"), NEEDLESS),
        (odd(*["RRULE:FREQ=DAILY"] * 5), NEEDLESS),
        (odd("RRULE:FREQ=WEEKLY;BYDAY=XX"), "E, because it repeats by a rule that is damaged."),
        (odd("EXDATE:nonsense"), DAMAGED),
    ],
    ids=range(17),
)
def test_one_odd_event_takes_no_other_with_it_and_is_said(one: str, note: str) -> None:
    began = time.process_time()
    said = read_ics(calendar(one, FINE), 8, NOW)
    assert time.process_time() - began < 2
    assert "Lecture" in [one.title for one in said.timetable.sessions]
    assert [note in one for one in said.notes] == [True]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is no ICS file"),
        ("hello", "it is no ICS file"),
        ("BEGIN:VCALENDAR", "it is no ICS file"),
        (b"\xff\xfe\x00", "it is no UTF-8 text"),
        ("BEGIN:VCALENDAR\n" + "A" * 10_000_000, f"it has more than {MAX_BYTES // 1024} KiB"),
        ("BEGIN:VCALENDAR\n" + "BEGIN:VEVENT\n" * 2001, "it has 2001 times VEVENT"),
        ("BEGIN:VCALENDAR\n" + "BEGIN:A\n" * 9000, "it has too many parts"),
        (calendar(), "it holds no session between yesterday and 400 days from now"),
        (calendar(event("DTSTART:19991012T090000Z", "DURATION:PT1H")), "it holds no session"),
        (
            calendar(event(*MONDAY, "RRULE:FREQ=SEC\r\n ONDLY")),
            "something in it repeats secondly. A class meets daily at most.",
        ),
        (calendar(event(*MONDAY, "rrule:freq=minutely")), "something in it repeats minutely"),
        (calendar(event(*MONDAY, "RRULE:FREQ=DAILY;INTERVAL=0")), "an interval that is no number"),
        (calendar(event(*MONDAY, "RRULE:FREQ=DAILY;INTERVAL=-1")), "an interval that is no number"),
        (calendar(ZONE % "RRULE:FREQ=DAILY", FINE), "a time zone in it are not yearly"),
        (calendar(*[ZONE % "X:1"] * 21), "it has 21 times VTIMEZONE"),
        (
            calendar(*[event(*MONDAY, "RRULE:FREQ=DAILY", uid=f"{n}") for n in range(401)]),
            "more than 400 events in it repeat",
        ),
        (
            calendar(
                *[
                    event(
                        f"DTSTART:20261001T{n:02d}0000Z",
                        "DURATION:PT1H",
                        "RRULE:FREQ=DAILY",
                        uid=f"{n}",
                    )
                    for n in range(20)
                ]
            ),
            "more than 4000 sessions are in it",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) and "BEGIN" not in value else "",
)
def test_a_calendar_that_cannot_be_used_says_why_at_once(text: str | bytes, says: str) -> None:
    began = time.process_time()
    with pytest.raises(BadRequest) as refused:
        read_ics(text, 8, NOW)
    assert refused.value.public_message.startswith("The calendar cannot be used: ")
    assert says in refused.value.public_message
    assert time.process_time() - began < 5


def test_more_sessions_than_a_timetable_has_are_cut_and_it_is_said() -> None:
    rule = "RRULE:FREQ=DAILY"
    two = [event(f"DTSTART:20261001T{h}0000Z", "DURATION:PT1H", rule, uid=h) for h in ("08", "14")]
    said = read_ics(calendar(*two), 8, NOW)
    assert len(said.timetable.sessions) == 400
    assert said.notes == ("Only the first 400 of 781 sessions were taken, until 2027-04-18.",)


def test_a_title_is_one_short_line_of_printable_text() -> None:
    title = "SUMMARY:<b>\\n\x1b[31m" + "x" * 500
    (one,) = read_ics(calendar(event(*MONDAY[:2], title)), 8, NOW).timetable.sessions
    assert one.title.isprintable()
    assert len(one.title) == 100
