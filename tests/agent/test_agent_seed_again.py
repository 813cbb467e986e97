"""A second sealed cache in the place of the first: what the first one brought goes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytorch_spawner.agent import seed, seed_record, session
from pytorch_spawner.agent.config import Config, WarmCache

BOTH = {"inductor/ab/both.py": b"def call(args): ...\n"}
A = {
    **BOTH,
    "inductor/fxgraph/ab/key/graph-of-a": b"a",
    "inductor/ab/same-name.py": b"of a",
    "inductor/link/of-a": b"linked",
    "nv/index": b"index of a",
}
B = {
    **BOTH,
    "inductor/fxgraph/ab/key/graph-of-b": b"b",
    "inductor/ab/same-name.py": b"of b, which was wrong",
    "triton/XYZ/of-b.cubin": b"\x7fELF",
    "triton/XYZ/changed.json": b"as it was brought",
}


def without_drivers(files: dict[str, bytes]) -> dict[str, bytes]:
    return {path: content for path, content in files.items() if not path.startswith("nv/")}


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def content_of(root: Path) -> dict[str, bytes]:
    found = (path for path in root.rglob("*") if path.is_file())
    files = {str(path.relative_to(root)): path.read_bytes() for path in found}
    return {
        path: content for path, content in files.items() if not path.startswith((".seed", "nv"))
    }


class Lab:
    """Two sealed caches and one student's private one."""

    def __init__(self, root: Path) -> None:
        self.root, self.private = root, root / "private"
        self.digests = {}
        self.private.mkdir()
        for name, files in {"a": A, "b": B}.items():
            write(root / name, files)
            self.digests[name] = seed.seal(root / name, keep_cpu=False)["digest"]

    def start(self, name: str, *others: str) -> int:
        """A start that is given this one, while those are given on other GPUs."""
        offered = [name, *others]
        where = self.root / name
        return seed.seed(where, self.private, name, self.digests[name], offered).files

    def start_without(self, *offered: str, is_known: bool = True) -> None:
        config = Config(cache_dir=str(self.private), offered_caches=offered if is_known else None)
        assert not session.take_warm_cache(config, lambda *_: None)

    @property
    def has(self) -> dict[str, bytes]:
        return content_of(self.private)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    yield Lab(tmp_path)
    for folder, _, _ in os.walk(tmp_path):
        Path(folder).chmod(0o755)


def test_a_cache_that_was_rolled_back_is_used_no_more(lab: Lab) -> None:
    for name, files in (("a", A), ("b", B), ("a", A)):
        assert lab.start(name)
        assert lab.has == without_drivers(files)
    assert lab.start("a") == 0


def test_what_the_student_compiled_or_changed_stays(lab: Lab) -> None:
    lab.start("b")
    own = {"inductor/fxgraph/ab/key/own": b"own", "triton/XYZ/changed.json": b"as it was changed"}
    write(lab.private, own)
    lab.start("a")
    assert lab.has == {**without_drivers(A), **own}


def test_where_the_last_one_was_taken_back_nothing_of_it_is_left(lab: Lab) -> None:
    lab.start("a")
    lab.start("b")
    write(lab.private, {"triton/own": b"own"})
    lab.start_without()
    assert lab.has == {"triton/own": b"own"}
    assert lab.start("b")
    assert lab.has == {**B, "triton/own": b"own"}


def test_caches_of_other_gpus_stay_and_are_not_copied_again(lab: Lab) -> None:
    lab.start("a", "b")
    lab.start("b", "a")
    both = without_drivers({**A, **B})
    assert lab.has == both
    assert (lab.start("a", "b"), lab.start("b", "a")) == (0, 0)
    lab.start_without("a", "b")
    lab.start_without(is_known=False)
    assert lab.has == both


def test_what_one_cache_and_another_brought_alike_goes_with_the_last_of_them(lab: Lab) -> None:
    lab.start("a", "b")
    lab.start("b", "a")
    lab.start_without("a")
    (path, content), *_ = BOTH.items()
    assert lab.has[path] == content
    assert "triton/XYZ/of-b.cubin" not in lab.has
    lab.start_without()
    assert lab.has == {}


def test_where_the_one_that_is_given_cannot_be_used_what_was_taken_back_goes_too(lab: Lab) -> None:
    lab.start("b")
    altered = WarmCache(id="a", digest="0" * 64, path=str(lab.root / "a"))
    config = Config(cache_dir=str(lab.private), warm_cache=altered, offered_caches=("a",), gpus=())
    assert not session.take_warm_cache(config, lambda *_: None)
    assert lab.has == {}


def test_a_private_cache_without_any_is_not_touched(lab: Lab) -> None:
    lab.start_without()
    assert list(lab.private.iterdir()) == []


class Killed(BaseException):
    """As if the process were gone: nothing after it runs."""


@pytest.mark.parametrize("place", ["take_away", "_move_in", "discard", "note"])
@pytest.mark.parametrize("then", ["a", "b", ""])
def test_a_start_that_is_killed_is_repaired_by_the_next(
    place: str, then: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.start("b")
    module: Any = seed if place == "_move_in" else seed_record
    usual = getattr(module, place)

    def killed(*given: Any) -> None:
        if place == "discard":
            usual(*given)
            if given[0].name.startswith(seed_record.NAME):
                return
        elif place == "_move_in":  # some are there already
            usual(given[0], given[1], dict(list(given[2].items())[:2]))
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, place, killed)
        with pytest.raises(Killed):
            lab.start("a")
    if then:
        assert lab.start(then)
    else:
        lab.start_without()
    assert lab.has == without_drivers({"a": A, "b": B, "": {}}[then])


def test_a_record_of_before_names_the_last_one(lab: Lab) -> None:
    record = lab.private / seed_record.NAME
    lab.start("a")
    record.write_text(json.dumps(["b", "a"]))
    assert lab.start("a") == 0
    assert lab.start("b")  # and now it is known what the first one brought
    assert lab.has == without_drivers(B)
    record.write_text(json.dumps(["a", "b"]))
    assert lab.start("a") == len(without_drivers(A))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "3",
        "null",
        "[]",
        "[[]]",
        '{"whole": ["b"]}',
        '{"whole": ["b"], "brought": {"x": 3}}',
    ],
)
def test_what_is_no_record_is_nothing_to_go_by(text: str, lab: Lab) -> None:
    lab.start("b")
    (lab.private / seed_record.NAME).write_text(text)
    assert lab.start("b") == len(B)
    assert lab.has == B


def test_nothing_outside_the_private_cache_is_removed(lab: Lab) -> None:
    lab.start("a")
    outside = lab.root / "outside"
    write(outside, {"of-a": b"linked"})
    (lab.private / "inductor/link/of-a").unlink()
    (lab.private / "inductor/link").rmdir()
    (lab.private / "inductor/link").symlink_to(outside)
    (lab.private / "inductor/ab/both.py").unlink()
    (lab.private / "inductor/ab/both.py").symlink_to(outside / "of-a")
    record = lab.private / seed_record.NAME
    said = json.loads(record.read_text())
    brought = said["brought"]["a"]
    form = brought["inductor/link/of-a"]
    brought.update({str(outside / "of-a"): form, "inductor/../../outside/of-a": form})
    record.write_text(json.dumps(said))
    lab.start_without()
    assert (outside / "of-a").read_bytes() == b"linked"


def test_a_file_of_another_size_is_not_even_read(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.start("b")
    write(lab.private, {"triton/XYZ/changed.json": b"longer than it was when it was brought"})
    read: list[str] = []
    usual = seed_record.digest

    def digest(path: Path) -> seed_record.Form:
        read.append(path.name)
        return usual(path)

    monkeypatch.setattr(seed_record, "digest", digest)
    lab.start("a")
    # The same in both is not read either.
    assert sorted(read) == ["graph-of-b", "of-b.cubin", "same-name.py"]
