"""The operations on courses."""

from __future__ import annotations

from typing import Final

from pytorch_spawner.lab import schemas
from pytorch_spawner.lab.answers import common, courses
from pytorch_spawner.lab.auth import INSTRUCT
from pytorch_spawner.lab.operations.base import COURSE, ENTER, Operation

OPERATIONS: Final = (
    Operation(
        "get",
        "courses",
        "The courses that one looks after, and those that one belongs to",
        ENTER,
        courses.Courses,
    ),
    Operation(
        "get", "courses/schema", "JSON schema of a course's manifest", ENTER, common.Anything
    ),
    Operation(
        "post",
        "courses",
        "Add a course; whoever does looks after it",
        INSTRUCT,
        courses.CourseChanged,
        status=201,
        body=schemas.CourseBody,
        errors=(400,),
    ),
    Operation("get", "courses/{name}", "A course with its manifest", COURSE, courses.OneCourse),
    Operation(
        "put",
        "courses/{name}",
        "Change a course's manifest",
        COURSE,
        courses.CourseSaved,
        body=schemas.CourseBody,
        needs_match=True,
    ),
    Operation(
        "delete", "courses/{name}", "Remove a course", COURSE, common.Removed, needs_match=True
    ),
    Operation(
        "get",
        "courses/{name}/manifest",
        "The manifest as the text of a course.yaml",
        COURSE,
        common.Yaml,
    ),
    Operation(
        "post",
        "courses/{name}/preload",
        "Preload a course: fetch, check, image, smoke test, warm cache",
        COURSE,
        courses.CourseChanged,
    ),
    Operation(
        "post",
        "courses/{name}/publish",
        "Give students what was preloaded; the version is content_etag",
        COURSE,
        courses.CourseChanged,
        needs_match=True,
    ),
    Operation(
        "post",
        "courses/{name}/stop",
        "Stop what is done for a course",
        COURSE,
        courses.CourseChanged,
    ),
    Operation(
        "get",
        "courses/{name}/students",
        "Who has which publication of a course",
        COURSE,
        courses.CourseStudents,
    ),
    Operation(
        "post",
        "courses/{name}/reset",
        "Bring one file of one student back to the course's version; a backup is kept",
        COURSE,
        courses.ResetAsked,
        status=202,
        body=schemas.Reset,
    ),
    Operation(
        "post",
        "courses/{name}/timetable",
        "Take a course's sessions out of a calendar (ICS)",
        COURSE,
        courses.TimetableTaken,
        body=schemas.Calendar,
        needs_match=True,
    ),
)
