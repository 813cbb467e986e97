"""In which container a process is, on trees of /proc as real machines have them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pytorch_spawner.adapters.processes import (
    container_of,
    containers_of,
    pid_inside,
    process_name,
)

ONE, TWO = "1a" * 32, "2b" * 32
HOST, OTHER = "pid:[4026531836]", "pid:[4026532415]"


def make_proc(root: Path, pid: int, files: dict[str, bytes], namespace: str = HOST) -> Path:
    (root / "self" / "ns").mkdir(parents=True, exist_ok=True)
    link = root / "self" / "ns" / "pid"
    if not link.is_symlink():
        link.symlink_to(namespace)
    (root / str(pid)).mkdir(parents=True)
    for name, content in files.items():
        (root / str(pid) / name).write_bytes(content)
    return root


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        (f"0::/system.slice/docker-{ONE}.scope\n", (ONE,)),
        (f"0::/docker/{ONE}\n", (ONE,)),
        (f"0::/system.slice/docker-{ONE}.scope/init\n", (ONE,)),
        (f"0::/docker/{ONE}/docker/{TWO}\n", (ONE, TWO)),
        (f"0::/system.slice/docker-{ONE}.scope/system.slice/docker-{TWO}.scope\n", (ONE, TWO)),
        (f"0::/../docker-{ONE}.scope\n", (ONE,)),
        (f"12:pids:/docker/{ONE}\n11:memory:/docker/{ONE}\n1:name=systemd:/docker/{ONE}\n", (ONE,)),
        (f"9:name=systemd:/\n4:memory:/system.slice/docker-{ONE}.scope\n0::/\n", (ONE,)),
        (f"0::/lab.slice/docker-{ONE}.scope\n", (ONE,)),
        (f"0::/kubepods.slice/pod1.slice/cri-containerd-{ONE}.scope\n", (ONE,)),
        (f"3:cpu:/system.slice/containerd.service/pod1:cri-containerd:{ONE}\n", (ONE,)),
        ("0::/user.slice/user-1000.slice/session-2.scope\n", ()),
        ("0::/\n", ()),
        (f"0::/docker/{ONE[:-1]}\n", ()),
        (f"0::/docker/{ONE}a\n", ()),
        (f"0::/docker/x{ONE}\n", ()),
        (f"0::/docker/{ONE.upper()}\n", ()),
    ],
)
def test_the_container_is_read_from_the_cgroup(
    tmp_path: Path, text: str, ids: tuple[str, ...]
) -> None:
    proc = make_proc(tmp_path, 42, {"cgroup": text.encode()})
    assert containers_of(42, proc) == ids
    assert container_of(42, proc) == (ids[-1] if ids else "")


def test_a_process_that_is_gone_is_in_no_container_that_can_be_told(tmp_path: Path) -> None:
    assert containers_of(42, tmp_path) is None
    assert container_of(42, tmp_path) == ""
    assert process_name(42, tmp_path) == ""


def test_where_the_hosts_processes_are_not_seen_no_container_means_unknown(tmp_path: Path) -> None:
    # The service runs in a container of its own: number 42 is another process there.
    proc = make_proc(tmp_path, 42, {"cgroup": b"0::/\n"}, OTHER)
    assert containers_of(42, proc) is None
    make_proc(tmp_path, 43, {"cgroup": f"0::/../docker-{ONE}.scope\n".encode()})
    assert containers_of(43, proc) == (ONE,)


def test_a_huge_or_unreadable_file_is_no_trouble(tmp_path: Path) -> None:
    proc = make_proc(tmp_path, 42, {"cgroup": b"\xff" * 10**6, "cmdline": b"\xfe" * 10**6})
    assert containers_of(42, proc) == ()
    assert len(process_name(42, proc)) <= 64
    (tmp_path / "43").mkdir()
    (tmp_path / "43" / "cgroup").mkdir()
    assert containers_of(43, proc) is None


@pytest.mark.parametrize(
    ("cmdline", "comm", "name"),
    [
        (b"/opt/conda/bin/python3\0train.py\0", b"pt_main_thread\n", "python3"),
        (b"python\0-m\0ipykernel_launcher\0", b"python\n", "python"),
        (b"sshd: ana@pts/0\0\0\0", b"sshd\n", "sshd: ana@pts/0"),
        (b"", b"kworker/0:1\n", "kworker/0:1"),
        (b"\0\0", b"odd\n", "odd"),
        (b"/bin/<b>\x1b[31m\n\xe2\x80\xae\0", b"x\n", "<b>[31m"),
        (b"x" * 500, b"x\n", "x" * 64),
        (b"", b"", ""),
    ],
)
def test_a_name_is_that_of_the_program_short_and_printable(
    tmp_path: Path, cmdline: bytes, comm: bytes, name: str
) -> None:
    proc = make_proc(tmp_path, 42, {"cmdline": cmdline, "comm": comm})
    assert process_name(42, proc) == name


@pytest.mark.skipif(not Path("/proc/self/cgroup").exists(), reason="no procfs")
def test_a_real_process_has_a_name_until_it_ends() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert process_name(os.getpid()) != ""
        containers_of(child.pid)
    finally:
        child.kill()
        child.wait()
    assert process_name(child.pid) == ""
    assert containers_of(child.pid) is None


@pytest.mark.parametrize(
    ("status", "inside"),
    [
        ("Name:\tpython3\nNSpid:\t12345\t17\n", 17),
        ("NSpid:\t12345\t17\t3\n", 17),
        ("NSpid:\t12345\n", 12345),
        ("Name:\tpython3\n", None),
        ("", None),
    ],
    ids=["in a container", "nested in one", "in none", "an old kernel", "gone"],
)
def test_a_process_is_known_by_its_number_in_its_container(
    tmp_path: Path, status: str, inside: int | None
) -> None:
    proc = make_proc(tmp_path, 12345, {"status": status.encode()})
    assert pid_inside(12345, proc) == inside
    assert pid_inside(99, proc) is None
