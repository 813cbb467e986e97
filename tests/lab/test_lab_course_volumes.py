"""What the sweep of courses throws away, and what is not its own to throw away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytorch_spawner.adapters import course_engine, warm_engine
from pytorch_spawner.adapters.git_source import Mirror
from pytorch_spawner.core.course_text import parse_manifest
from pytorch_spawner.core.courses import volumes_of
from pytorch_spawner.core.warmcache import is_private_of, private_volume
from pytorch_spawner.errors import BadRequest, SourceUnusable
from pytorch_spawner.lab.course_volumes import CourseVolumes
from pytorch_spawner.lab.settings import LabSettings
from pytorch_spawner.ledger.models import CourseRow
from pytorch_spawner.ledger.store import Ledger

HUB = "lab"
SAID = {
    "name": "cv",
    "title": "Computer vision",
    "source": {"git": "https://forge.example/cv.git"},
    "members": {"staff": ["bo"]},
}


class Engine:
    """Volumes, and which of them a container has mounted."""

    def __init__(self) -> None:
        self.volumes = {*volumes_of(HUB, "cv")}
        self.private: set[str] = set()
        self.mounted: set[str] = set()

    def remove(self, _client: Any, volume: str) -> bool:
        if volume in self.mounted:
            return False
        self.volumes.discard(volume)
        self.private.discard(volume)
        return True


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    fake = Engine()
    monkeypatch.setattr(course_engine, "course_volumes", lambda *_: sorted(fake.volumes))
    monkeypatch.setattr(
        course_engine,
        "private_caches",
        lambda _, hub, course: [one for one in fake.private if is_private_of(hub, course, one)],
    )
    monkeypatch.setattr(warm_engine, "remove_volume", fake.remove)
    monkeypatch.setattr(CourseVolumes, "_engine", lambda _: None)
    return fake


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger.open(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    opened.save_course(HUB, parse_manifest(SAID), "bo")
    yield opened
    opened.close()


@pytest.fixture
def mirrors(tmp_path: Path) -> Path:
    return tmp_path / "courses"


@pytest.fixture
def volumes(ledger: Ledger, mirrors: Path) -> CourseVolumes:
    settings = LabSettings(HUB, "", "http://127.0.0.1:9", "", course_dir=str(mirrors))
    found = CourseVolumes(settings, ledger)
    with found.mirror("cv")._store.alone():
        pass
    return found


async def sweep(volumes: CourseVolumes, *busy: str) -> None:
    await volumes.bring_all(busy.__contains__)


async def test_what_a_removed_course_had_goes_and_its_name_is_free(
    volumes: CourseVolumes, ledger: Ledger, engine: Engine, mirrors: Path
) -> None:
    others = {private_volume(HUB, "ana"), private_volume(HUB, "ana", "nlp")}
    engine.private = {*others, private_volume(HUB, "ana", "cv"), private_volume(HUB, "bo", "cv")}
    ledger.remove_course(HUB, "cv", "bo")
    await sweep(volumes)
    assert (engine.volumes, list(mirrors.iterdir())) == (set(), [])
    assert engine.private == others
    assert ledger.removed_courses(HUB) == frozenset()


async def test_the_name_stays_held_while_a_server_has_the_files_or_a_task_ends(
    volumes: CourseVolumes, ledger: Ledger, engine: Engine
) -> None:
    engine.mounted = {volumes_of(HUB, "cv")[0]}
    ledger.remove_course(HUB, "cv", "bo")
    await sweep(volumes)
    assert engine.volumes == engine.mounted
    with pytest.raises(BadRequest, match="when those servers have stopped"):
        ledger.save_course(HUB, parse_manifest(SAID), "eve", may_follow=lambda _: False)
    engine.mounted = set()
    await sweep(volumes, "cv")
    assert ledger.removed_courses(HUB) == {"cv"}
    await sweep(volumes)
    assert ledger.removed_courses(HUB) == frozenset()


async def test_what_is_removed_while_it_is_swept_is_held_until_the_next_time(
    volumes: CourseVolumes, ledger: Ledger, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.mounted = {volumes_of(HUB, "cv")[0]}
    engine.volumes.add(volumes_of(HUB, "gone")[0])

    def remove(_client: Any, volume: str) -> bool:
        ledger.remove_course(HUB, "cv", "bo")
        return engine.remove(_client, volume)

    monkeypatch.setattr(warm_engine, "remove_volume", remove)
    await sweep(volumes)
    await sweep(volumes)
    assert ledger.removed_courses(HUB) == {"cv"}


async def test_a_course_whose_manifest_cannot_be_read_keeps_what_it_has(
    volumes: CourseVolumes, ledger: Ledger, engine: Engine, mirrors: Path
) -> None:
    with ledger._transaction() as session:
        row = session.get(CourseRow, (HUB, "cv"))
        assert row is not None
        row.manifest = {**row.manifest, "timetable": {"timezone": "Mars/Base"}}
    await sweep(volumes)
    assert engine.volumes == {*volumes_of(HUB, "cv")}
    assert (mirrors / "cv" / "mirror.git").is_dir()


async def test_what_is_no_mirror_of_this_hub_is_left_alone(
    volumes: CourseVolumes, engine: Engine, mirrors: Path
) -> None:
    (mirrors / "sources" / "ml101").mkdir(parents=True)
    (mirrors / "sources" / "ml101" / "week1.ipynb").write_text("{}")
    (mirrors / "lost+found").mkdir(mode=0)
    (mirrors / "link").symlink_to(mirrors / "sources")
    with Mirror(mirrors / "theirs", owner="another")._store.alone():
        pass
    await sweep(volumes)
    there = {one.name for one in mirrors.iterdir()}
    assert there == {"cv", "sources", "lost+found", "link", "theirs"}
    assert (mirrors / "sources" / "ml101" / "week1.ipynb").exists()


@pytest.mark.parametrize("name", ["theirs", "sources"])
def test_a_course_never_takes_a_directory_that_is_something_else(mirrors: Path, name: str) -> None:
    with Mirror(mirrors / "theirs", owner="another")._store.alone():
        pass
    (mirrors / "sources").mkdir()
    (mirrors / "sources" / "week1.ipynb").write_text("{}")
    before = sorted((mirrors / name).rglob("*"))
    with pytest.raises(SourceUnusable, match="directory of its own") as error:
        Mirror(mirrors / name, owner=HUB).adopt(mirrors / "no.bundle")
    assert error.value.cause == "not-ours"
    assert sorted((mirrors / name).rglob("*")) == before


@pytest.mark.parametrize("left", ["hub-id", "hub-id.new", "lock", "index-x1", "bundle-x1"])
def test_what_a_killed_run_left_is_no_other_things_directory(mirrors: Path, left: str) -> None:
    (mirrors / "cv").mkdir(parents=True)
    (mirrors / "cv" / left).touch()
    with Mirror(mirrors / "cv", owner=HUB)._store.alone():
        pass
    assert (mirrors / "cv" / "hub-id").read_text() == HUB


def test_a_mirror_of_an_earlier_version_becomes_this_hubs(mirrors: Path) -> None:
    with Mirror(mirrors / "cv")._store.alone():
        pass
    assert not (mirrors / "cv" / "hub-id").exists()
    with Mirror(mirrors / "cv", owner=HUB)._store.alone():
        pass
    assert (mirrors / "cv" / "hub-id").read_text() == HUB
