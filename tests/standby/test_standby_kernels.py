"""A standby kernel behaves as an ordinary one: what a notebook, a restart and a signal can tell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from standby_kernels import Kernel, Site, site, variables

pytestmark = pytest.mark.programs

# Files and devices. How many sockets ZeroMQ has open changes from moment to moment, and so does
# whether IPython is just writing its history.
FILES = """sorted(
    place
    for fd in __import__('os').listdir('/proc/self/fd')
    if __import__('os').path.lexists('/proc/self/fd/' + fd)
    for place in [__import__('os').readlink('/proc/self/fd/' + fd)]
    if place.startswith('/') and not place.startswith('/proc/') and '.sqlite' not in place
)"""
# What a student can ask of a process.
TOLD = {
    "environment": "dict(__import__('os').environ)",
    "sys.path": "__import__('sys').path",
    "arguments": "[w.rpartition('.json')[1] or w for w in __import__('sys').argv]",
    "original arguments": "[w.rpartition('.json')[1] or w for w in __import__('sys').orig_argv]",
    "flags": "list(__import__('sys').flags)",
    "working directory": "__import__('os').getcwd()",
    "name": "__name__",
    "main": "sorted(n for n in vars(__import__('__main__')) if not n.startswith('_i'))",
    "session": "__import__('os').getsid(0) == __import__('os').getpid()",
    "group": "__import__('os').getpgid(0) == __import__('os').getpid()",
    "parent": "__import__('os').getppid()",
    "signals": "[str(__import__('signal').getsignal(n)) for n in (1, 2, 10, 13, 15, 17)]",
    "blocked": "[str(n) for n in __import__('signal').pthread_sigmask(0, [])]",
    "umask": "[__import__('os').umask(0o22), __import__('os').umask(0o22)]",
    "open files": FILES,
    "threads": "sorted(t.name.split('-')[0] for t in __import__('threading').enumerate())",
    "stdin": "__import__('os').read(0, 1).decode()",
    "recursion": "__import__('sys').getrecursionlimit()",
    "garbage": "__import__('gc').get_threshold()",
    "frozen": "__import__('gc').get_freeze_count()",
    "log": "len(__import__('logging').getLogger().handlers)",
    "meta path": "[str(type(f)) for f in __import__('sys').meta_path]",
    "limits": "__import__('resource').getrlimit(7)",
    "nice": "__import__('os').nice(0)",
    "encoding": "[__import__('sys').stdout.encoding, __import__('locale').getlocale()]",
}


@pytest.fixture(scope="module")
def pair(lab: Site, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kernel]:
    folder = tmp_path_factory.mktemp("notebook")
    given = {**variables(), "JPY_SESSION_NAME": "a.ipynb", "CUDA_VISIBLE_DEVICES": "1"}
    options: dict[str, Any] = {"cwd": str(folder), "env": given}
    return {
        "standby": lab.start(**options),
        "ordinary": lab.start(standby=False, **options),
    }


def test_which_is_which(pair: dict[str, Kernel]) -> None:
    loaded = "'numpy' in __import__('sys').modules"
    assert pair["standby"].was_standby
    assert pair["standby"].tell(loaded) is True
    assert not pair["ordinary"].was_standby
    assert pair["ordinary"].tell(loaded) is False


@pytest.mark.parametrize("name", TOLD)
def test_tells_the_same(name: str, pair: dict[str, Kernel]) -> None:
    # Threads and files come and go for a moment; what differs for good is a difference.
    for _ in range(5):
        standby, ordinary = (pair[kind].tell(TOLD[name]) for kind in ("standby", "ordinary"))
        if standby == ordinary:
            return
        time.sleep(0.2)
    assert standby == ordinary


# A worker that does not find the module ends, and the pool waits for ever: hence the deadline.
IN_A_POOL = """
import multiprocessing, helper_of_this_notebook as helper
with multiprocessing.get_context("{}").Pool(1) as pool:
    print(pool.map_async(helper.twice, [3]).get(15))
"""


def test_child_processes_import_the_modules_beside_the_notebook(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "helper_of_this_notebook.py").write_text("def twice(x):\n    return 2 * x\n")
    # torch would import it.
    monkeypatch.setenv("PYTORCH_SPAWNER_STANDBY_IMPORTS", "multiprocessing.pool")
    with site() as lab:
        kernel = lab.start(cwd=str(folder))
        assert kernel.was_standby
        for method in ("spawn", "forkserver"):
            assert kernel.run(IN_A_POOL.format(method)) == "[6]", method


def test_random_numbers_are_not_shared(lab: Site) -> None:
    ask = "[__import__('random').random(), __import__('numpy').random.rand()]"
    first, second = lab.start(), lab.start()
    assert first.was_standby
    assert second.was_standby
    assert first.tell(ask)[0] != second.tell(ask)[0]
    assert first.tell(ask)[1] != second.tell(ask)[1]


def test_the_gpus_named_at_the_start_are_seen(pair: dict[str, Kernel]) -> None:
    ask = "import os, subprocess; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True)"
    child = "; print(subprocess.check_output('echo $CUDA_VISIBLE_DEVICES', shell=True).decode())"
    assert pair["standby"].run(ask + child).split() == ["1", "1"]


def test_what_a_child_process_prints(pair: dict[str, Kernel]) -> None:
    # ipykernel reads a child's two outputs in two threads, beside the cell and in no order.
    ask = "import os, time; os.system('echo out; echo err >&2'); time.sleep(1)"
    for kernel in pair.values():
        assert sorted(kernel.run(ask).split()) == ["err", "out"]


@pytest.mark.parametrize("now", [False, True])
def test_restarts(now: bool, lab: Site) -> None:
    kernel = lab.start()
    seen = {kernel.pid}
    for _ in range(3):
        kernel.run("x = 1")
        lab.wait_for_ready()
        kernel.restart(now=now)
        assert kernel.run("x").startswith("NameError")
        assert kernel.was_standby
        seen.add(kernel.pid)
    assert len(seen) == 4


@pytest.mark.parametrize(
    "code", ["import time; time.sleep(30)", "while True: pass"], ids=["sleep", "busy loop"]
)
def test_interrupts(code: str, lab: Site) -> None:
    kernel = lab.start()
    timer = threading.Timer(0.5, kernel.interrupt)
    timer.start()
    began = time.monotonic()
    assert kernel.run(code).startswith("KeyboardInterrupt")
    assert time.monotonic() - began < 5
    timer.join()
    assert kernel.run("print(1 + 1)") == "2"


def test_an_interrupt_reaches_a_child_process(lab: Site) -> None:
    kernel = lab.start()
    timer = threading.Timer(0.5, kernel.interrupt)
    timer.start()
    began = time.monotonic()
    kernel.run("__import__('subprocess').run(['sleep', '20'])")
    timer.join()
    assert time.monotonic() - began < 5


def test_several_at_once() -> None:
    with site(kernels=2) as lab:
        kernels = [lab.start(ready=2), lab.start(ready=0), lab.start(ready=0)]
        assert [kernel.was_standby for kernel in kernels][:2] == [True, True]
        for number, kernel in enumerate(kernels):
            kernel.run(f"x = {number}")
        assert [kernel.run("print(x)") for kernel in kernels] == ["0", "1", "2"]
        assert len({kernel.pid for kernel in kernels}) == 3


def test_input(lab: Site) -> None:
    kernel = lab.start()
    client = kernel.client
    client.execute("print(input('name? ')[::-1])", allow_stdin=True)
    assert client.get_stdin_msg(timeout=10)["content"]["prompt"] == "name? "
    client.input("ana")
    said = ""
    while True:
        message = client.get_iopub_msg(timeout=10)
        if message["msg_type"] == "stream":
            said += message["content"]["text"]
        if message["content"].get("execution_state") == "idle" and said:
            break
    assert said.strip() == "ana"[::-1]


def test_the_debugger_answers(lab: Site) -> None:
    answers = []
    for standby in (True, False):
        client = lab.start(standby=standby).client
        content = {
            "type": "request",
            "seq": 1,
            "command": "initialize",
            "arguments": {"clientID": "t", "adapterID": "", "pathFormat": "path"},
        }
        client.control_channel.send(client.session.msg("debug_request", content))
        reply = client.get_control_msg(timeout=20)["content"]
        answers.append((reply["success"], sorted(reply["body"])))
    assert answers[0] == answers[1]
    assert answers[0][0] is True


def test_start_up_files_are_read_after_the_hand_over(lab: Site, environment: Path) -> None:
    lab.wait_for_ready()
    folder = environment / ".ipython/profile_default/startup"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "00.py").write_text("from_start_up = 7")
    try:
        kernel = lab.start()
        assert kernel.was_standby
        assert kernel.run("print(from_start_up)") == "7"
    finally:
        (folder / "00.py").unlink()


def test_its_end_is_seen(lab: Site) -> None:
    for standby in (True, False):
        kernel = lab.start(standby=standby)
        os.kill(kernel.pid, signal.SIGKILL)
        lab.wait_until(lambda kernel=kernel: not kernel.is_alive(), 5)
        kernel.restart(now=True)
        assert kernel.run("print(1)") == "1"


def test_one_that_ends_early_by_itself_is_followed_by_an_ordinary_one(lab: Site) -> None:
    kernel = lab.start()
    assert kernel.was_standby
    kernel.client.execute("__import__('os')._exit(3)")
    lab.wait_until(lambda: not kernel.is_alive(), 5)
    lab.wait_for_ready()
    kernel.restart(now=True)
    assert not kernel.was_standby
    kernel.restart(now=True)
    lab.wait_for_ready()
    kernel.restart(now=True)
    assert kernel.was_standby


def test_a_standby_and_a_kernel_end_with_the_server(environment: Path) -> None:
    script = """
import os, sys, time
sys.path[:0] = [os.environ["PYTHONPATH"], os.environ["TESTS"]]
from standby_kernels import Site
made = Site()
kernel = made.start()
made.wait_for_ready()
print(kernel.pid, made.pool._ready[0].process.pid, flush=True)
time.sleep(60)
"""
    given = {**os.environ, "TESTS": str(Path(__file__).parent)}
    server = subprocess.Popen(
        [sys.executable, "-c", script], env=given, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    pids = [int(word) for word in server.stdout.readline().split()]
    assert len(pids) == 2
    server.kill()
    server.wait()
    server.stdout.close()
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/cmdline").exists() and runs(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.05)


def runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
