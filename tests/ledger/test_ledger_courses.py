from __future__ import annotations

import pytest

from pytorch_spawner.core.changes import say_change
from pytorch_spawner.core.course_manifest import Manifest
from pytorch_spawner.core.course_text import parse_manifest
from pytorch_spawner.core.course_words import is_stale
from pytorch_spawner.core.courses import Step
from pytorch_spawner.errors import BadRequest, ChangedMeanwhile
from pytorch_spawner.ledger import course_copies, courses
from pytorch_spawner.ledger.models import CourseRow

HUB = "lab"
SHA = "4f1c2a" + "0" * 34
SERVED = "abc123" + "0" * 34


def manifest(name: str = "cv", title: str = "Computer vision", **more) -> Manifest:
    said = {"source": {"git": "https://forge.example/cv.git"}, "members": {"staff": ["bo"]}}
    return parse_manifest({"name": name, "title": title, **said, **more})


@pytest.fixture
def course(ledger):
    return ledger.save_course(HUB, manifest(), "bo")


def said(ledger) -> list[str]:
    return [say_change(one.what, one.subject, one.before, one.after) for one in ledger.changes(HUB)]


def test_a_course_is_read_back_as_it_was_saved(ledger, course):
    assert ledger.courses(HUB) == (course,)
    assert ledger.course(HUB, "cv").manifest == manifest()
    assert ledger.course(HUB, "nlp") is None
    assert ledger.courses("another") == ()
    assert said(ledger) == ["Added the course Computer vision (cv)."]


def test_a_manifest_that_changes_nothing_is_no_line_of_the_log(ledger, course):
    ledger.save_course(HUB, manifest(), "bo")
    changed = ledger.save_course(HUB, manifest(title="Seeing"), "eve")
    assert (changed.manifest.title, changed.by) == ("Seeing", "bo")
    assert said(ledger)[0] == "Changed the course Seeing (cv): title."
    assert len(said(ledger)) == 2


def test_of_two_who_saw_the_same_manifest_the_second_is_told(ledger, course):
    def check(now):
        if now is None or now.manifest.title != "Computer vision":
            raise ChangedMeanwhile("Somebody was faster.")

    ledger.save_course(HUB, manifest(title="First"), "bo", check)
    with pytest.raises(ChangedMeanwhile):
        ledger.save_course(HUB, manifest(title="Second"), "eve", check)
    assert ledger.course(HUB, "cv").manifest.title == "First"


def test_there_is_an_end_to_the_number_of_courses(ledger, monkeypatch):
    monkeypatch.setattr(courses, "MAX_COURSES", 2)
    ledger.save_course(HUB, manifest("a"), "bo")
    ledger.save_course(HUB, manifest("b"), "bo")
    with pytest.raises(BadRequest, match="remove one"):
        ledger.save_course(HUB, manifest("c"), "bo")
    ledger.save_course(HUB, manifest("b", "Another title"), "bo")


def test_one_task_at_a_time_and_the_oldest_first(ledger):
    for name in ("b", "a"):
        ledger.save_course(HUB, manifest(name), "bo")
        assert ledger.ask_course(HUB, name, "preload", "bo")
    assert not ledger.ask_course(HUB, "a", "preload", "bo")
    assert not ledger.ask_course(HUB, "none", "preload", "bo")
    assert ledger.next_course_task(HUB).name == "b"
    assert ledger.next_course_task(HUB).name == "a"
    assert ledger.next_course_task(HUB) is None
    ledger.requeue_courses(HUB)
    assert ledger.next_course_task(HUB).name == "b"


def test_nothing_is_published_before_anything_was_preloaded(ledger, course):
    assert not ledger.ask_course(HUB, "cv", "publish", "bo")
    ledger.note_course(HUB, "cv", candidate=(SHA, SERVED, "First lesson"))
    assert ledger.ask_course(HUB, "cv", "publish", "bo")


def test_a_publication_grows_the_serial_and_is_written_down(ledger, course):
    assert ledger.publish_course(HUB, "cv", (SHA, SERVED), "bo") == 1
    now = ledger.course(HUB, "cv")
    assert (now.commit, now.served, now.published_by, now.serial) == (SHA, SERVED, "bo", 1)
    assert said(ledger)[0] == "Published 4f1c2a00 of the course Computer vision (cv)."
    assert ledger.publish_course(HUB, "gone", (SHA, SERVED), "bo") == 0


def test_a_task_that_waits_is_stopped_at_once_and_one_that_runs_is_asked_to_end(ledger, course):
    assert not ledger.stop_course(HUB, "cv", "bo")
    ledger.ask_course(HUB, "cv", "preload", "bo")
    assert ledger.stop_course(HUB, "cv", "bo")
    assert ledger.next_course_task(HUB) is None
    ledger.ask_course(HUB, "cv", "preload", "bo")
    ledger.next_course_task(HUB)
    assert not ledger.is_course_stopped(HUB, "cv")
    assert ledger.stop_course(HUB, "cv", "bo")
    assert ledger.is_course_stopped(HUB, "cv")
    assert ledger.course(HUB, "cv").task == "preload"
    ledger.note_course(HUB, "cv", is_over=True)
    assert not ledger.is_course_stopped(HUB, "cv")
    assert ledger.is_course_stopped(HUB, "gone")


@pytest.mark.parametrize(
    ("step", "state", "is_smoked"),
    [
        ("image", "running", True),
        ("smoke", "running", True),
        ("smoke", "done", False),
        ("fetch", "running", False),
    ],
)
def test_a_fresh_students_server_starts_only_while_a_step_needs_it(
    ledger, course, step, state, is_smoked
):
    ledger.ask_course(HUB, "cv", "preload", "bo")
    ledger.next_course_task(HUB)
    ledger.note_course(HUB, "cv", steps=[Step(step, state, notes=("a", "b"))])
    assert (ledger.smoke_course(HUB) is not None) == is_smoked
    assert ledger.course(HUB, "cv").steps == (Step(step, state, notes=("a", "b")),)
    ledger.note_course(HUB, "cv", is_over=True)
    assert ledger.smoke_course(HUB) is None


# -- copies --------------------------------------------------------------------------------------

DONE = {
    "phase": "done", "course": "cv", "level": "warn", "served": SERVED, "commit": SHA,
    "message": "Two edits kept.", "kept": ["a.ipynb"], "conflicts": {"b.ipynb": "b.course.ipynb"},
}  # fmt: skip


def test_whose_copy_is_where_is_what_the_containers_say(ledger, course):
    ledger.note_student(HUB, "cv", "ana", DONE)
    (ana,) = ledger.students(HUB, "cv")
    assert (ana.username, ana.served, ana.commit, ana.level) == ("ana", SERVED, SHA, "warn")
    assert (ana.kept, ana.conflicts) == (("a.ipynb",), {"b.ipynb": "b.course.ipynb"})
    failed = {"phase": "failed", "course": "cv", "level": "fail", "message": "The disk is full."}
    ledger.note_student(HUB, "cv", "ana", failed)
    (ana,) = ledger.students(HUB, "cv")
    # What it has is still what it had.
    assert (ana.served, ana.level, ana.message) == (SERVED, "fail", "The disk is full.")


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param({**DONE, "course": "nlp"}, id="of another course"),
        pytest.param({**DONE, "phase": "begin"}, id="a phase that says nothing"),
        pytest.param({}, id="nothing at all"),
    ],
)
def test_a_report_that_is_not_about_this_copy_is_left_out(ledger, course, lie):
    ledger.note_student(HUB, "cv", "ana", lie)
    assert ledger.students(HUB, "cv") == ()


def test_a_report_of_odd_types_is_kept_within_bounds(ledger, course):
    odd = {
        "phase": "done", "course": "cv", "level": ["ok"], "served": "../../etc", "commit": 7,
        "message": {"a": 1}, "kept": ["x" * 9999, 3] * 500, "conflicts": [1],
    }  # fmt: skip
    ledger.note_student(HUB, "cv", "a\0na"[:1], odd)
    (one,) = ledger.students(HUB, "cv")
    assert (one.level, one.served, one.commit, one.message) == ("fail", "", "", "")
    assert len(one.kept) == course_copies.MAX_PATHS
    assert max(map(len, one.kept)) == course_copies.MAX_TEXT
    assert one.conflicts == {}


def test_a_report_of_a_course_that_is_gone_is_left_out(ledger, course):
    ledger.remove_course(HUB, "cv", "bo")
    ledger.note_student(HUB, "cv", "ana", DONE)
    assert ledger.students(HUB, "cv") == ()


# -- orders --------------------------------------------------------------------------------------


def test_an_order_waits_until_that_persons_container_says_that_it_is_done(ledger, course):
    order = ledger.ask_reset(HUB, "cv", "ana", "b.ipynb", "bo")
    assert ledger.course(HUB, "cv").serial == 1
    assert ledger.orders(HUB, "cv", "ana") == (order,)
    assert ledger.orders(HUB, "cv", "eve") == ()
    done = {"phase": "reset", "course": "cv", "order": order.id, "message": "Kept as b.backup."}
    ledger.note_student(HUB, "cv", "eve", done)
    assert ledger.orders(HUB, "cv", "ana") == (order,)
    ledger.note_student(HUB, "cv", "ana", done)
    assert ledger.orders(HUB, "cv", "ana") == ()
    (over,) = ledger.orders(HUB, "cv", open_only=False)
    assert over.done_at is not None
    assert over.message == "Kept as b.backup."
    assert said(ledger)[0].startswith("Ordered b.ipynb of ana back")


def test_the_same_order_twice_is_one(ledger, course):
    first = ledger.ask_reset(HUB, "cv", "ana", "b.ipynb", "bo")
    assert ledger.ask_reset(HUB, "cv", "ana", "b.ipynb", "eve") == first
    assert ledger.course(HUB, "cv").serial == 1


def test_there_is_an_end_to_the_orders_that_wait(ledger, course, monkeypatch):
    monkeypatch.setattr(course_copies, "MAX_OPEN_ORDERS", 2)
    for path in ("a", "b"):
        ledger.ask_reset(HUB, "cv", "ana", path, "bo")
    with pytest.raises(BadRequest, match="when that server runs"):
        ledger.ask_reset(HUB, "cv", "ana", "c", "bo")
    ledger.ask_reset(HUB, "cv", "eve", "c", "bo")
    with pytest.raises(BadRequest, match="no such course"):
        ledger.ask_reset(HUB, "gone", "eve", "c", "bo")


def test_what_is_removed_takes_its_copies_and_orders_with_it(ledger, course):
    ledger.note_student(HUB, "cv", "ana", DONE)
    ledger.ask_reset(HUB, "cv", "ana", "b.ipynb", "bo")
    assert ledger.remove_course(HUB, "cv", "bo").name == "cv"
    assert ledger.remove_course(HUB, "cv", "bo") is None
    ledger.save_course(HUB, manifest(), "bo")
    assert ledger.students(HUB, "cv") == ()
    assert ledger.orders(HUB, "cv", open_only=False) == ()


def test_what_courses_change_wakes_the_scheduler_and_the_pages(ledger, course):
    version, shown = ledger.version(HUB), ledger.shown_version(HUB)
    ledger.save_course(HUB, manifest(title="Other"), "bo")
    assert ledger.version(HUB) > version
    version = ledger.version(HUB)
    ledger.note_course(HUB, "cv", steps=[Step("fetch", "running")])
    assert ledger.version(HUB) == version
    assert ledger.shown_version(HUB) > shown + 1


def test_the_share_that_classes_may_have_is_known_once_the_hub_said_it(ledger):
    assert ledger.class_share(HUB) is None
    ledger.note_class_share(HUB, 0.8)
    shown, version = ledger.shown_version(HUB), ledger.version(HUB)
    ledger.note_class_share(HUB, 0.8)
    assert ledger.shown_version(HUB) == shown, "nothing changed, nothing is written"
    ledger.note_class_share(HUB, 0.0)
    assert (ledger.class_share(HUB), ledger.class_share("another")) == (0.0, None)
    assert ledger.shown_version(HUB) > shown
    assert ledger.version(HUB) == version, "no scheduler need wake for it"


# -- what is left of a removed course --------------------------------------------------------------


def test_a_removed_courses_name_is_its_staffs_until_no_server_has_its_files(ledger, course):
    ledger.remove_course(HUB, "cv", "bo")
    assert ledger.removed_courses(HUB) == {"cv"}
    with pytest.raises(BadRequest, match="bo removed a course cv, and servers that run"):
        ledger.save_course(HUB, manifest(), "eve", may_follow=lambda staff: "eve" in staff)
    assert ledger.course(HUB, "cv") is None
    ledger.release_name(HUB, "cv")
    ledger.save_course(HUB, manifest(), "eve", may_follow=lambda staff: "eve" in staff)
    assert ledger.course(HUB, "cv").by == "eve"


def test_whoever_looked_after_a_removed_course_may_add_it_again_at_once(ledger):
    ledger.save_course(HUB, manifest(), "bo")
    ledger.remove_course(HUB, "cv", "bo")
    ledger.save_course(HUB, manifest(), "bo", may_follow=lambda staff: "bo" in staff)
    assert ledger.removed_courses(HUB) == frozenset()


def test_a_course_whose_manifest_cannot_be_read_keeps_its_name_and_what_students_have(ledger):
    ledger.save_course(HUB, manifest(), "bo")
    ledger.publish_course(HUB, "cv", (SHA, SERVED), "bo")
    with ledger._transaction() as session:
        row = session.get(CourseRow, (HUB, "cv"))
        row.manifest = {**row.manifest, "timetable": {"timezone": "Mars/Base"}}
    assert ledger.courses(HUB) == ()
    assert ledger.course_names(HUB) == {"cv"}
    with pytest.raises(BadRequest, match="cannot be read any more"):
        ledger.save_course(HUB, manifest(), "eve", may_follow=lambda staff: "eve" in staff)
    mended = ledger.save_course(HUB, manifest(), "bo", may_follow=lambda staff: "bo" in staff)
    assert (mended.served, mended.commit) == (SERVED, SHA)


def test_an_old_task_of_a_removed_course_changes_nothing_of_its_successor(ledger, course):
    ledger.ask_course(HUB, "cv", "preload", "bo")
    old = ledger.next_course_task(HUB)
    assert not ledger.is_course_stopped(HUB, "cv", old.asked_at)
    ledger.remove_course(HUB, "cv", "bo")
    ledger.save_course(HUB, manifest(), "bo")
    ledger.ask_course(HUB, "cv", "preload", "bo")
    assert ledger.next_course_task(HUB, busy=["cv"]) is None, "the old one is not over yet"
    new = ledger.next_course_task(HUB)
    assert ledger.is_course_stopped(HUB, "cv", old.asked_at)
    assert not ledger.is_course_stopped(HUB, "cv", new.asked_at)
    said = {"steps": [Step("fetch", "failed")], "is_over": True}
    ledger.note_course(HUB, "cv", asked_at=old.asked_at, **said)
    assert ledger.publish_course(HUB, "cv", (SHA, SERVED), "bo", old.asked_at) == 0
    now = ledger.course(HUB, "cv")
    assert (now.task, now.is_running, now.steps, now.served) == ("preload", True, (), "")
    ledger.note_course(HUB, "cv", asked_at=new.asked_at, **said)
    assert ledger.course(HUB, "cv").task == ""


def test_what_is_asked_to_end_publishes_nothing(ledger, course):
    ledger.ask_course(HUB, "cv", "preload", "bo")
    task = ledger.next_course_task(HUB)
    ledger.stop_course(HUB, "cv", "bo")
    assert ledger.publish_course(HUB, "cv", (SHA, SERVED), "bo", task.asked_at) == 0
    assert ledger.course(HUB, "cv").served == ""


def test_a_change_while_a_preload_runs_is_newer_than_what_it_tried(ledger, course):
    ledger.ask_course(HUB, "cv", "preload", "bo")
    assert ledger.next_course_task(HUB).tried_at > course.changed_at
    ledger.save_course(HUB, manifest(source={"git": "https://forge.example/new.git"}), "bo")
    ledger.note_course(HUB, "cv", preloaded_at=ledger.now(), is_over=True)
    now = ledger.course(HUB, "cv")
    assert now.tried_at < now.changed_at < now.preloaded_at
    assert is_stale(now)


def test_a_removed_courses_warm_caches_are_given_to_nobody(ledger, course):
    made = {}
    for scope, state in (
        ("cv", "published"),
        ("cv", "building"),
        ("nlp", "published"),
        ("", "published"),
    ):
        cache = ledger.request_cache(
            HUB, by="bo", scope=scope, image="lab:1", pool="", gpus=0, suite={"name": "s"},
            suite_digest="d", archive=b"",
        )  # fmt: skip
        ledger.next_cache(HUB)
        ledger.note_cache(cache.id, state=state, volume=f"volume-{len(made)}")
        if state == "published":
            assert ledger.promote_cache(HUB, cache.id, "bo")
        made[scope, state] = cache.id
    ledger.remove_course(HUB, "cv", "bo")
    offered = {one.id for one in ledger.offered_caches(HUB)}
    assert offered == {made["nlp", "published"], made["", "published"]}
    gone = ledger.cache(HUB, made["cv", "published"])
    assert (gone.state, gone.message) == ("expired", "bo removed the course cv.")
    assert gone.volume, "the service removes it once no server has it mounted"
    assert ledger.is_cache_stopped(made["cv", "building"])
    lines = said(ledger)
    assert f"Removed the warm cache s ({gone.id}) for the course cv." in lines
    stopped = made["cv", "building"]
    assert f"Stopped the build of the warm cache s ({stopped}) for the course cv." in lines
