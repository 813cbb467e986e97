"""In every doubt an ordinary kernel is started, and the server's log says why."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from standby_kernels import Site, site, variables

pytestmark = pytest.mark.programs


def refused(lab: Site, why: str, **options: Any) -> str:
    """Start a kernel that must be an ordinary one for this reason; return what it prints."""
    kernel = lab.start(**options)
    assert not kernel.was_standby
    assert lab.said(why), lab.heard
    return kernel.run("print('works')")


def test_a_students_own_numpy(lab: Site, folder: Path) -> None:
    (folder / "numpy.py").write_text("mine = True")
    assert refused(lab, "numpy.py in its directory", cwd=str(folder)) == "works"
    assert lab.kernels[-1].run("import numpy; print(numpy.mine)") == "True"
    assert lab.start().was_standby  # the same one is still good for others


def test_another_variable(lab: Site) -> None:
    given = {**variables(), "OMP_NUM_THREADS": "1"}
    assert refused(lab, "its environment differs: OMP_NUM_THREADS", env=given) == "works"


def test_other_arguments(lab: Site) -> None:
    with Path(os.devnull).open("w") as nothing:
        assert refused(lab, "unusual options: stderr", stderr=nothing) == "works"


def test_a_directory_that_is_gone(lab: Site) -> None:
    lab.wait_for_ready()
    with pytest.raises(FileNotFoundError):
        lab.start(cwd="/nowhere")


def test_a_package_installed_meanwhile(environment: Path) -> None:
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    user_site = environment / f".local/lib/{version}/site-packages"
    with site(tick_s=60) as lab:
        lab.wait_for_ready()
        user_site.mkdir(parents=True)
        (user_site / "numpy.py").write_text("mine = True")
        try:
            kernel = lab.start()
            assert not kernel.was_standby
            assert lab.said("packages were installed or removed")
            assert lab.start(ready=1).was_standby
        finally:
            (user_site / "numpy.py").unlink()
            user_site.rmdir()


def test_a_module_edited_meanwhile(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "of_course.py").write_text("version = 1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{os.environ['PYTHONPATH']}{os.pathsep}{tmp_path}")
        patch.setenv("PYTORCH_SPAWNER_STANDBY_IMPORTS", "of_course, not_there")
        with site(tick_s=60) as lab:
            first = lab.start()
            assert first.was_standby
            assert first.tell("'of_course' in __import__('sys').modules") is True
            assert lab.said("not in the image: not_there")
            lab.wait_for_ready()
            (tmp_path / "of_course.py").write_text("version = 22")
            kernel = lab.start()
            assert not kernel.was_standby
            assert lab.said("of_course.py changed since")
            assert kernel.run("import of_course; print(of_course.version)") == "22"


def test_one_that_does_not_answer_is_killed(lab: Site) -> None:
    lab.wait_for_ready()
    pid = lab.pool._ready[0].process.pid
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    assert refused(lab, "did not answer within 0.5 s", ready=0) == "works"
    assert time.monotonic() - began < 5
    assert not Path(f"/proc/{pid}").exists()
    assert lab.start().was_standby


def test_one_that_is_dead(lab: Site) -> None:
    with site(tick_s=60) as slow:
        slow.wait_for_ready()
        os.kill(slow.pool._ready[0].process.pid, signal.SIGKILL)
        slow.wait_until(lambda: not slow.pool.ready)
        assert refused(slow, "had ended", ready=0) == "works"
        assert slow.start().was_standby


def test_a_backend_of_matplotlib_that_is_another_by_now(tmp_path: Path) -> None:
    text = "import os\nbackend = os.environ.get('MPLBACKEND')\n"
    (tmp_path / "matplotlib.py").write_text(text)
    inline = "module://matplotlib_inline.backend_inline"
    ask = "import matplotlib, os; print(matplotlib.backend, os.environ['MPLBACKEND'])"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MPLBACKEND", raising=False)
        patch.setenv("PYTHONPATH", f"{os.environ['PYTHONPATH']}{os.pathsep}{tmp_path}")
        patch.setenv("PYTORCH_SPAWNER_STANDBY_IMPORTS", "matplotlib")
        with site() as lab:
            given = {**variables(), "MPLBACKEND": "svg"}
            assert refused(lab, "its environment differs: MPLBACKEND", env=given) == "works"
            assert lab.kernels[-1].run(ask) == "svg svg"
            kernel = lab.start()
            assert kernel.was_standby
            assert kernel.run(ask) == f"{inline} {inline}"


@pytest.fixture
def bad_import(tmp_path: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:

        def write(source: str) -> None:
            (tmp_path / "bad.py").write_text(textwrap.dedent(source))
            patch.setenv("PYTHONPATH", f"{os.environ['PYTHONPATH']}{os.pathsep}{tmp_path}")
            patch.setenv("PYTORCH_SPAWNER_STANDBY_IMPORTS", "bad")

        yield write


@pytest.mark.parametrize(
    ("source", "status"),
    [("import os; os._exit(7)", 7), ("raise ValueError('no')", 1), ("raise SystemExit", 0)],
)
def test_one_that_dies_at_import_is_tried_three_times(
    source: str, status: int, bad_import: Any
) -> None:
    bad_import(source)
    with site() as lab:
        lab.wait_until(lambda: lab.said("none is tried any more"))
        time.sleep(0.5)
        assert sum("could not be made" in line for line in lab.heard) == 3
        assert lab.said(f"it ended with status {status}")
        assert refused(lab, "no standby could be made", ready=0) == "works"


def test_one_that_hangs_at_import(bad_import: Any) -> None:
    bad_import("import time; time.sleep(60)")
    with site(import_s=0.3, failures=1) as lab:
        lab.wait_until(lambda: lab.said("imports took more than 0.3 s"))
        assert refused(lab, "no standby could be made", ready=0) == "works"


def test_little_memory_starts_none_and_ends_what_is_there() -> None:
    left = 1000
    with site(available_mib=lambda: left) as lab:
        assert refused(lab, "memory is short (1000 MiB left, 1536 needed)", ready=0) == "works"
        left = 4000
        lab.wait_for_ready()
        standby = lab.pool._ready[0].process
        left = 1023
        lab.wait_until(lambda: not lab.pool.ready)
        lab.wait_until(lambda: standby.poll() is not None)
        left = 1560  # what it gave back is not enough to begin again
        assert refused(lab, "memory is short", ready=0) == "works"
        assert not lab.pool.ready


def test_a_machine_without_a_core_to_spare_starts_none_until_it_has_one() -> None:
    busy = True
    with site(is_busy=lambda: busy, quiet_s=0.05) as lab:
        assert refused(lab, "busy with other starts", ready=0) == "works"
        time.sleep(0.3)
        assert not lab.pool.ready
        busy = False
        lab.wait_for_ready()


def test_a_machine_that_never_has_one_starts_one_all_the_same() -> None:
    began = time.monotonic()
    with site(is_busy=lambda: True, quiet_s=0.05, patience_s=0.3) as lab:
        lab.wait_for_ready()
        assert lab.pool.ready == 1
        assert time.monotonic() - began >= 0.3


def test_another_event_loop(lab: Site) -> None:
    import asyncio

    lab.wait_for_ready()
    assert asyncio.run(lab.pool.take([], {})) is None
    assert lab.said("outside the server's event loop")


def test_no_pool_at_all(lab: Site) -> None:
    assert not lab.start(standby=False).was_standby
