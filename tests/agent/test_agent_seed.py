"""Sealing and seeding a warm cache: all of what was sealed reaches a student, or nothing does."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytorch_spawner.agent import seed
from tests.examples import examples

FILES = {
    "inductor/fxgraph/ab/key/graph": b"\x80pickled graph",
    "inductor/ab/wrapper.py": b"def call(args): ...\n",
    "inductor/aotautograd/key/entry": b"entry",
    "triton/XYZ/kernel.cubin": b"\x7fELF" * 100,
    # The driver's own, as CUDA_CACHE_PATH has it.
    "nv/index": b"driver",
    "nv/b/e/b3e48a12e5899a": b"translated PTX",
}
DRIVERS = 2
LEFT = {
    "inductor/locks/one.lock": b"",
    "inductor/ab/two.lock": b"",
    "inductor/ab/.kernel.tmp": b"half",
    "triton/tmp.pid_1/x": b"half",
    "pytorch-spawner-agent-1000.log": b"log",
    "suite-left-this": b"no cache",
}


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@pytest.fixture
def sealed(tmp_path: Path):
    root = tmp_path / "sealed"
    write(root, {**FILES, **LEFT})
    told = seed.seal(root, keep_cpu=True)
    yield root, told
    for folder, _, _ in os.walk(root):
        Path(folder).chmod(0o755)


@pytest.fixture
def private(tmp_path: Path) -> Path:
    folder = tmp_path / "private"
    folder.mkdir()
    return folder


def content_of(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.name.startswith(".seed")
    }


def test_a_sealed_cache_holds_what_was_compiled_and_nothing_else(sealed) -> None:
    root, told = sealed
    assert set(content_of(root)) == {*FILES, "manifest.json"}
    assert told["files"] == len(FILES)
    assert told["size_bytes"] == sum(map(len, FILES.values()))
    manifest = (root / "manifest.json").read_bytes()
    assert told["digest"] == hashlib.sha256(manifest).hexdigest()


def test_nobody_may_write_in_a_sealed_cache(sealed) -> None:
    root, _ = sealed
    for folder, _, names in os.walk(root):
        assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o555
        for name in names:
            assert stat.S_IMODE(Path(folder, name).stat().st_mode) == 0o444


def test_a_link_in_a_cache_is_not_sealed(tmp_path: Path) -> None:
    root = tmp_path / "linked"
    write(root, FILES)
    (root / "inductor/passwd").symlink_to("/etc/passwd")
    (root / "inductor/etc").symlink_to("/etc")
    os.mkfifo(root / "triton/pipe")
    told = seed.seal(root, keep_cpu=False)
    assert told["files"] == len(FILES)
    assert not (root / "inductor/passwd").is_symlink()
    assert not (root / "inductor/etc").is_symlink()


def test_an_empty_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(seed.SeedRefused, match="Nothing was compiled"):
        seed.seal(tmp_path, keep_cpu=False)


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(seed, "MAX_FILES", 3)
    write(tmp_path, FILES)
    with pytest.raises(seed.SeedRefused, match="more than 3 files"):
        seed.seal(tmp_path, keep_cpu=False)


def test_a_student_gets_every_file_writable_and_at_the_same_place(sealed, private) -> None:
    root, told = sealed
    done = seed.seed(root, private, "c1", told["digest"])
    assert content_of(private) == FILES
    assert done.files == len(FILES)
    assert all(os.access(path, os.W_OK) for path in private.rglob("*"))
    assert not list(private.glob(".seed-*"))


def test_what_was_copied_once_is_not_copied_again(sealed, private) -> None:
    root, told = sealed
    seed.seed(root, private, "c1", told["digest"])
    assert seed.seed(root, private, "c1", told["digest"]).files == 0
    assert seed.seed(root, private, "c2", told["digest"]).files == len(FILES) - DRIVERS


def test_what_somebody_removed_is_copied_again(sealed, private) -> None:
    root, told = sealed
    seed.seed(root, private, "c1", told["digest"])
    (private / "inductor/ab/wrapper.py").unlink()
    assert seed.seed(root, private, "c1", told["digest"]).files == len(FILES) - DRIVERS
    assert content_of(private) == FILES


def test_what_a_crash_of_the_host_left_without_content_is_copied_again(sealed, private) -> None:
    root, told = sealed
    seed.seed(root, private, "c1", told["digest"])
    (private / "inductor/fxgraph/ab/key/graph").write_bytes(b"")
    assert seed.seed(root, private, "c1", told["digest"]).files == len(FILES) - DRIVERS
    assert content_of(private) == FILES


def test_what_pytorch_wrote_anew_or_was_sealed_empty_is_not_copied_again(tmp_path, private) -> None:
    root = tmp_path / "with an empty file"
    write(root, {**FILES, "inductor/ab/__init__.py": b"", "inductor/dynamo/state.pkl": b"short"})
    told = seed.seal(root, keep_cpu=True)
    seed.seed(root, private, "c1", told["digest"])
    (private / "inductor/dynamo/state.pkl").write_bytes(b"longer by now")
    assert seed.seed(root, private, "c1", told["digest"]).files == 0
    assert (private / "inductor/dynamo/state.pkl").read_bytes() == b"longer by now"


def test_a_drivers_cache_of_ones_own_stays_as_it_is(sealed, private) -> None:
    root, told = sealed
    own = {"nv/index": b"my index", "nv/a/f/own": b"mine"}
    write(private, own)
    assert seed.seed(root, private, "c1", told["digest"]).files == len(FILES) - DRIVERS
    compiled = {path: content for path, content in FILES.items() if not path.startswith("nv/")}
    assert content_of(private) == {**compiled, **own}
    assert seed.seed(root, private, "c1", told["digest"]).files == 0


def test_what_the_driver_removed_is_the_drivers_affair(sealed, private) -> None:
    root, told = sealed
    seed.seed(root, private, "c1", told["digest"])
    (private / "nv/b/e/b3e48a12e5899a").unlink()
    assert seed.seed(root, private, "c1", told["digest"]).files == 0


def test_a_server_that_is_frozen_while_it_copies_holds_up_no_other(
    sealed, private, monkeypatch
) -> None:
    root, told = sealed
    monkeypatch.setattr(seed, "_LOCK_S", 0.2)
    with (private / ".seed.lock").open("w") as frozen:
        fcntl.flock(frozen, fcntl.LOCK_EX)
        with pytest.raises(seed.SeedRefused, match="Another of your servers"):
            seed.seed(root, private, "c1", told["digest"])
    assert content_of(private) == {}
    assert seed.seed(root, private, "c1", told["digest"]).files == len(FILES)


def test_two_servers_of_one_person_seed_one_after_the_other(sealed, private) -> None:
    root, told = sealed
    (private / ".seed-left-by-a-crash").mkdir()
    with ThreadPoolExecutor(4) as threads:
        done = list(
            threads.map(lambda _: seed.seed(root, private, "c1", told["digest"]).files, range(8))
        )
    assert sorted(done) == [0] * 7 + [len(FILES)]
    assert content_of(private) == FILES
    assert not list(private.glob(".seed-*"))


def test_what_the_student_compiled_stays(sealed, private) -> None:
    write(private, {"inductor/fxgraph/zz/own/graph": b"own"})
    root, told = sealed
    seed.seed(root, private, "c1", told["digest"])
    assert content_of(private) == {**FILES, "inductor/fxgraph/zz/own/graph": b"own"}


def opened(root: Path) -> None:
    for folder, _, names in os.walk(root):
        Path(folder).chmod(0o755)
        for name in names:
            Path(folder, name).chmod(0o644)


TAMPERING = {
    "one byte changed": lambda root: (root / "inductor/ab/wrapper.py").write_bytes(
        b"def call(args): ..?\n"
    ),
    "one line put in front": lambda root: (root / "inductor/ab/wrapper.py").write_bytes(
        b"import os\n" + FILES["inductor/ab/wrapper.py"]
    ),
    "truncated": lambda root: (root / "triton/XYZ/kernel.cubin").write_bytes(b"\x7fELF"),
    "emptied": lambda root: (root / "triton/XYZ/kernel.cubin").write_bytes(b""),
    "removed": lambda root: (root / "inductor/fxgraph/ab/key/graph").unlink(),
    "a link instead": lambda root: (
        (root / "inductor/ab/wrapper.py").unlink(),
        (root / "inductor/ab/wrapper.py").symlink_to("/etc/passwd"),
    ),
    "a pipe instead": lambda root: (
        (root / "inductor/ab/wrapper.py").unlink(),
        os.mkfifo(root / "inductor/ab/wrapper.py"),
    ),
    "the manifest edited to match": lambda root: _forge(root),
    "the manifest gone": lambda root: (root / "manifest.json").unlink(),
    "the manifest is no JSON": lambda root: (root / "manifest.json").write_text("{"),
}


def _forge(root: Path) -> None:
    said = json.loads((root / "manifest.json").read_text())
    (root / "inductor/ab/wrapper.py").write_bytes(b"evil")
    said["files"]["inductor/ab/wrapper.py"] = [4, hashlib.sha256(b"evil").hexdigest()]
    (root / "manifest.json").write_text(json.dumps(said))


@pytest.mark.parametrize("tamper", TAMPERING.values(), ids=TAMPERING.keys())
def test_of_an_altered_cache_nothing_is_used(tamper, sealed, private) -> None:
    root, told = sealed
    opened(root)
    tamper(root)
    with pytest.raises(seed.SeedRefused):
        seed.seed(root, private, "c1", told["digest"])
    assert content_of(private) == {}


def test_a_file_added_after_sealing_reaches_nobody(sealed, private) -> None:
    root, told = sealed
    opened(root)
    (root / "inductor/fxgraph/ab/key/0-poison").write_bytes(b"\x80evil")
    seed.seed(root, private, "c1", told["digest"])
    assert content_of(private) == FILES


def test_code_for_another_cpu_is_not_used(sealed, private, monkeypatch) -> None:
    root, told = sealed
    monkeypatch.setattr(seed, "cpu_features", lambda: "another")
    with pytest.raises(seed.SeedRefused, match="another kind of CPU"):
        seed.seed(root, private, "c1", told["digest"])


def test_a_place_that_cannot_be_written_is_a_sentence(sealed, private, monkeypatch) -> None:
    root, told = sealed

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(seed.SeedRefused, match="No space left on device"):
        seed.seed(root, private, "c1", told["digest"])
    assert content_of(private) == {}


def test_a_cache_directory_that_is_a_file_is_a_sentence(sealed, tmp_path) -> None:
    root, told = sealed
    (tmp_path / "file").write_text("")
    with pytest.raises(seed.SeedRefused, match="could not be copied"):
        seed.seed(root, tmp_path / "file", "c1", told["digest"])


@settings(max_examples=examples(60), deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"(inductor|triton)/[a-z0-9]{1,8}(/[a-z0-9]{1,8}){0,2}\.py", fullmatch=True),
        st.binary(max_size=200),
        min_size=1,
        max_size=8,
    )
)
def test_whatever_was_sealed_arrives(tmp_path_factory, files) -> None:
    root, target = tmp_path_factory.mktemp("sealed"), tmp_path_factory.mktemp("private")
    write(root, files)
    told = seed.seal(root, keep_cpu=False)
    seed.seed(root, target, "c1", told["digest"])
    assert content_of(target) == files
