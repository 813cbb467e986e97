"""Which kernel is which process and what it holds, on trees of /proc as containers have them."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from pytorch_spawner.agent import kernel_processes as processes
from pytorch_spawner.agent import kernels

CV, NLP = "73eb6456-1163-4c18-9a66-3db7ca473c57", "276ab0f6-b1c4-462c-9aa7-d4615c5c0b4d"


class Proc:
    """A tree like /proc: processes with a parent, memory, open files, sockets that listen."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "net").mkdir(parents=True)
        self._lines = ["  sl  local_address rem_address   st ..."]
        (root / "net" / "tcp").write_text(self._lines[0])

    def add(
        self,
        pid: int,
        parent: int,
        *words: str,
        pss_kib: int | None = 1024,
        terminal: bool = False,
        state: str = "S",
        files: tuple[str, ...] = (),
        environ: str = "",
    ) -> None:
        folder = self.root / str(pid)
        (folder / "fd").mkdir(parents=True)
        tty = 34816 if terminal else 0
        (folder / "stat").write_text(f"{pid} (a (b) c) {state} {parent} {pid} {pid} {tty} -1")
        (folder / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
        (folder / "environ").write_bytes(environ.encode())
        if pss_kib is not None:
            (folder / "smaps_rollup").write_text(f"0-1 ---p\nRss: 9 kB\nPss:   {pss_kib} kB\n")
        for number, target in enumerate(files):
            (folder / "fd" / str(number)).symlink_to(target)

    def listen(self, port: int, inode: int, *, state: str = "0A") -> str:
        row = f"   0: 0100007F:{port:04X} 00000000:0000 {state} 0:0 00:0 0 1000 0 {inode} 1 0"
        self._lines.append(row)
        (self.root / "net" / "tcp").write_text("\n".join(self._lines))
        return f"socket:[{inode}]"


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path / "proc")


def test_a_kernel_is_known_by_its_command_line(proc: Proc) -> None:
    proc.add(7, 1, "python3", "-s", "/opt/lab/bin/jupyterhub-singleuser")
    proc.add(82, 7, "python3", "-m", "ipykernel_launcher", "-f", f"/run/kernel-{NLP}.json")
    proc.add(83, 82, "python3", "train.py")
    proc.add(84, 83, "sh")
    there = processes.read_all(str(proc.root))
    assert processes.kernel_pids([NLP, CV], there, (), str(proc.root)) == {NLP: 82}
    assert processes.tree(there, 82) == {82, 83, 84}


def test_a_standby_that_became_a_kernel_is_known_by_its_ports(proc: Proc, tmp_path: Path) -> None:
    shell = proc.listen(40001, 900)
    proc.listen(40002, 901, state="01")  # a connection, not a listener
    proc.add(54, 7, "python3", "-m", "pytorch_spawner_standby.kernel", "14", files=(shell,))
    proc.add(55, 54, "a child that inherited the socket", files=(shell,))
    connection = {"transport": "tcp", "shell_port": 40001, "iopub_port": 40002}
    (tmp_path / f"kernel-{CV}.json").write_text(json.dumps(connection))
    there = processes.read_all(str(proc.root))
    assert processes.kernel_pids([CV], there, [str(tmp_path)], str(proc.root)) == {CV: 54}


@pytest.mark.parametrize(
    "said",
    ["", "no JSON", "[]", '{"transport": "ipc", "shell_port": 1}', "[" * 60_000],
    ids=lambda said: said[:20],
)
def test_a_connection_file_that_says_nothing_finds_nobody(
    proc: Proc, tmp_path: Path, said: str
) -> None:
    proc.add(54, 7, "python3", files=(proc.listen(1, 900),))
    (tmp_path / f"kernel-{CV}.json").write_text(said)
    there = processes.read_all(str(proc.root))
    assert processes.kernel_pids([CV, "../x"], there, [str(tmp_path)], str(proc.root)) == {}


def test_a_connection_file_that_is_a_pipe_is_not_waited_for(proc: Proc, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"kernel-{CV}.json")
    assert processes.kernel_pids([CV], {}, [str(tmp_path)], str(proc.root)) == {}


def test_memory_is_that_of_the_tree_and_unknown_is_not_nothing(proc: Proc) -> None:
    proc.add(1, 0, "tini", pss_kib=2048)
    proc.add(2, 1, "python3", pss_kib=10 * 1024)
    proc.add(3, 1, "python3", pss_kib=None)
    (proc.root / "3" / "status").write_text("Name:\tpython3\nVmRSS:\t  4096 kB\n")
    proc.add(4, 1, "root's own", pss_kib=None)
    where = str(proc.root)
    assert processes.memory_mib([1, 2], where) == 12
    assert processes.memory_mib([2, 3], where) == 14, "resident, where shares are not said"
    assert processes.memory_mib([4], where) is None
    assert processes.memory_mib([999], where) is None


@pytest.mark.parametrize(
    ("files", "uses"),
    [
        (("/dev/null", "/dev/nvidia0", "/dev/nvidia-uvm"), True),
        (("/dev/nvidiactl", "/dev/nvidia0"), False),
        (("/dev/nvidia-caps/nvidia-cap1",), False),
        (("/home/ana/dev/nvidia-uvm",), False),
        ((), False),
    ],
)
def test_who_has_cuda_open_uses_the_gpu_and_who_only_asks_does_not(
    proc: Proc, files: tuple[str, ...], uses: bool
) -> None:
    proc.add(5, 1, "python3", files=files)
    assert processes.uses_gpu([5, 999], str(proc.root)) is uses


def test_of_whom_nothing_can_be_read_it_is_unknown(proc: Proc) -> None:
    assert processes.uses_gpu([999], str(proc.root)) is None


def test_the_dead_are_not_counted_and_names_may_hold_anything(proc: Proc) -> None:
    proc.add(6, 1, "python3", state="Z")
    proc.add(7, 1)
    proc.add(8, 1, "/usr/bin/python3", "/home/ana/train.py", "--epochs", "3")
    proc.add(9, 1, "python3", "-m", "http.server")
    there = processes.read_all(str(proc.root))
    assert sorted(there) == [7, 8, 9]
    assert [there[pid].name for pid in (7, 8, 9)] == [
        "a (b) c",
        "python3 train.py",
        "python3 -m http.server",
    ]


# -- with a single-user server --------------------------------------------------------------------


class Jupyter:
    """What the agent asks of a single-user server."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []
        self.sessions: Any = []
        self.kernels: Any = []
        self.status = 200
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(("GET", self.path, self.headers["Authorization"]))
                said = outer.sessions if "sessions" in self.path else outer.kernels
                self._send(outer.status, json.dumps(said).encode())

            def do_DELETE(self) -> None:
                outer.asked.append(("DELETE", self.path, self.headers["Authorization"]))
                known = any(one["id"] in self.path for one in outer.kernels)
                self._send(204 if known else 404, b"")

            def _send(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                return

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def open(self, path: str, kernel: str, kind: str = "notebook", **more: Any) -> None:
        row = {"id": kernel, "name": "python3", "execution_state": "idle", **more}
        self.sessions.append({"path": path, "type": kind, "kernel": row})
        self.kernels.append(row)

    def environ(self, **more: str) -> dict[str, str]:
        return {
            "JUPYTERHUB_SERVICE_URL": f"http://0.0.0.0:{self.port}/user/ana",
            "JUPYTERHUB_SERVICE_PREFIX": "/user/ana/",
            "JUPYTERHUB_API_TOKEN": "secret",
            "HOME": "/home/ana",
            **more,
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def jupyter() -> Iterator[Jupyter]:
    running = Jupyter()
    yield running
    running.close()


def test_notebooks_are_named_with_what_their_processes_hold(jupyter: Jupyter, proc: Proc) -> None:
    at = datetime.now(timezone.utc) - timedelta(minutes=40)
    jupyter.open("week-1/cv-03.ipynb", CV, last_activity=at.isoformat().replace("+00:00", "Z"))
    jupyter.open("nlp.ipynb", NLP, execution_state="busy", last_activity="yesterday")
    jupyter.open("nlp.ipynb-console", NLP, "console")
    jupyter.kernels.append({"id": "lonely", "execution_state": "idle", "last_activity": None})
    server = proc.listen(jupyter.port, 1)
    proc.add(1, 0, "tini")
    proc.add(7, 1, "python3", "jupyterhub-singleuser", pss_kib=80 * 1024, files=(server,))
    proc.add(
        82, 7, "python3", "-f", f"/r/kernel-{CV}.json", pss_kib=2**20, files=("/dev/nvidia-uvm",)
    )
    proc.add(83, 82, "python3", pss_kib=2**20)
    proc.add(90, 7, "python3", "-f", f"/r/kernel-{NLP}.json", pss_kib=51_200)

    said = kernels.look(jupyter.environ(), proc=str(proc.root))
    first, second, third = said["kernels"]
    assert (first["path"], first["state"], first["pids"]) == (
        "week-1/cv-03.ipynb",
        "idle",
        [82, 83],
    )
    assert (first["memory_mib"], first["uses_gpu"]) == (2048, True)
    assert 2400 <= first["idle_s"] <= (datetime.now(timezone.utc) - at).total_seconds()
    assert (second["path"], second["idle_s"], second["memory_mib"]) == ("nlp.ipynb", None, 50)
    assert second["uses_gpu"] is False
    assert (third["path"], third["pids"], third["memory_mib"]) == ("", [], None)
    assert third["uses_gpu"] is None
    assert (said["others"], said["gpu"], said["trouble"]) == ([], None, "")
    assert jupyter.asked == [
        ("GET", f"/user/ana/api/{what}?no_track_activity=1", "token secret")
        for what in ("sessions", "kernels")
    ]


def test_a_server_with_another_runtime_directory_is_followed_there(
    jupyter: Jupyter, proc: Proc, tmp_path: Path
) -> None:
    jupyter.open("cv.ipynb", CV)
    shell, server = proc.listen(40001, 900), proc.listen(jupyter.port, 1)
    proc.add(
        7, 1, "python3", "singleuser", files=(server,), environ=f"JUPYTER_RUNTIME_DIR={tmp_path}"
    )
    proc.add(54, 7, "python3", "-m", "pytorch_spawner_standby.kernel", "14", files=(shell,))
    (tmp_path / f"kernel-{CV}.json").write_text(json.dumps({"shell_port": 40001}))
    (row,) = kernels.look(jupyter.environ(), proc=str(proc.root))["kernels"]
    assert row["pids"] == [54]


def test_what_is_no_notebooks_is_named_with_where_it_came_from(
    jupyter: Jupyter, proc: Proc
) -> None:
    jupyter.open("cv.ipynb", CV)
    big = {"pss_kib": 200 * 1024}
    agent = ("python3", "-I", "/opt/pytorch-spawner/agent.pyz", "--worker", "agent")
    proc.add(1, 0, "tini")
    proc.add(7, 1, "python3", "singleuser", files=(proc.listen(jupyter.port, 1),), **big)
    proc.add(20, 1, *agent, pss_kib=20_480)
    proc.add(21, 20, "python3", "-c", "warm up", **big)
    proc.add(30, 7, "bash", terminal=True)
    proc.add(31, 30, "python3", "train.py", terminal=True, pss_kib=300 * 1024)
    proc.add(40, 1, "python3", environ="A=1\0JPY_SESSION_NAME=/home/ana/w/cv.ipynb\0B=2", **big)
    proc.add(50, 7, "python3", "-m", "pytorch_spawner_standby.kernel", "14", **big)
    proc.add(60, 7, "tensorboard", **big)
    proc.add(70, 7, "small", pss_kib=1024)
    proc.add(71, 7, "small, on a GPU", pss_kib=1024, files=("/dev/nvidia-uvm",))
    proc.add(82, 7, "python3", "-f", f"/r/kernel-{CV}.json", **big)

    found = kernels.look(jupyter.environ(), proc=str(proc.root))["others"]
    told = {one["pid"]: (one["kind"], one["name"], one["path"], one["memory_mib"]) for one in found}
    assert told == {
        31: ("terminal", "python3 train.py", "", 301),
        21: ("lab", "Checks and warm-up", "", 220),
        40: ("leftover", "python3", "w/cv.ipynb", 200),
        50: ("lab", "A kernel kept ready", "", 200),
        60: ("other", "tensorboard", "", 200),
        71: ("other", "small, on a GPU", "", 1),
    }


NOT_ASKED = "5b2f9c1e-7a63-4e51-9d1f-2f4a5be0c9d1"
BIG: dict[str, Any] = {"pss_kib": 200 * 1024}
ON_GPU: dict[str, Any] = {**BIG, "files": ("/dev/nvidia-uvm",)}


def add_kernels_that_live_and_what_is_left_of_others(proc: Proc, server: int) -> None:
    proc.add(12, server, "python3", "-f", f"/r/kernel-{CV}.json", **ON_GPU, environ=from_("cv"))
    proc.add(13, 12, "sh", "-c", "python3 train.py", terminal=True)
    proc.add(14, 13, "python3", "train.py", pss_kib=300 * 1024, terminal=True, environ=from_("cv"))
    proc.add(20, server, "R", "--args", f"/r/kernel-{NOT_ASKED}.json", **BIG)
    proc.add(30, server, "python3", "-m", "pytorch_spawner_standby.kernel", "14", **ON_GPU)
    proc.add(50, server, "bash", terminal=True)
    proc.add(51, 50, "python3", "serve.py", terminal=True, **BIG)
    proc.add(60, 1, "python3", environ=from_("rnn"), **BIG)
    proc.add(61, 1, "python3", "-m", "pytorch_spawner_standby.kernel", "14", **BIG)


def from_(notebook: str) -> str:
    return f"A=1\0JPY_SESSION_NAME=/home/ana/{notebook}.ipynb\0"


def kinds(said: dict[str, Any]) -> dict[int, tuple[str, str]]:
    return {one["pid"]: (one["kind"], one["path"]) for one in said["others"]}


LEFT_AND_TERMINAL = {51: ("terminal", ""), 60: ("leftover", "rnn.ipynb"), 61: ("leftover", "")}


def test_kernels_of_a_server_that_is_slow_are_not_called_left_over(
    jupyter: Jupyter, proc: Proc
) -> None:
    jupyter.open("cv.ipynb", CV)
    jupyter.status = 503
    proc.add(1, 0, "tini")
    proc.add(7, 1, "python3", "singleuser", files=(proc.listen(jupyter.port, 1),))
    add_kernels_that_live_and_what_is_left_of_others(proc, server=7)
    proc.add(40, 7, "python3", "-m", "pytorch_spawner_standby.kernel", "15", **BIG)
    said = kernels.look(jupyter.environ(), proc=str(proc.root))
    assert said["trouble"]
    assert kinds(said) == LEFT_AND_TERMINAL


def test_kernels_that_began_after_the_question_are_not_called_left_over(
    jupyter: Jupyter, proc: Proc
) -> None:
    proc.add(1, 0, "tini")
    proc.add(7, 1, "python3", "singleuser", files=(proc.listen(jupyter.port, 1),))
    add_kernels_that_live_and_what_is_left_of_others(proc, server=7)
    proc.add(40, 7, "python3", "-m", "pytorch_spawner_standby.kernel", "15", **BIG)
    said = kernels.look(jupyter.environ(), proc=str(proc.root))
    assert kinds(said) == {**LEFT_AND_TERMINAL, 40: ("lab", "")}


def test_what_is_left_over_is_named_where_the_server_is_the_first_process(
    jupyter: Jupyter, proc: Proc
) -> None:
    proc.add(1, 0, "python3", "singleuser", files=(proc.listen(jupyter.port, 1),))
    add_kernels_that_live_and_what_is_left_of_others(proc, server=1)
    said = kernels.look(jupyter.environ(), proc=str(proc.root))
    assert kinds(said) == {
        51: ("terminal", ""),
        60: ("leftover", "rnn.ipynb"),
        61: ("lab", ""),  # its parent does not tell it from a standby
    }


def test_where_the_server_is_not_found_no_kernel_below_it_is_called_left_over(
    jupyter: Jupyter, proc: Proc
) -> None:
    proc.add(1, 0, "tini")
    proc.add(7, 1, "python3", "singleuser")
    proc.add(12, 7, "python3", "-f", f"/r/kernel-{CV}.json", environ=from_("cv"), **BIG)
    proc.add(60, 1, "python3", environ=from_("rnn"), **BIG)
    said = kernels.look(jupyter.environ(), proc=str(proc.root))
    assert kinds(said) == {60: ("leftover", "rnn.ipynb")}


def test_a_server_that_does_not_answer_is_trouble_and_not_no_notebooks(
    jupyter: Jupyter, proc: Proc
) -> None:
    jupyter.status = 403
    said = kernels.look(jupyter.environ(), proc=str(proc.root))
    assert said["kernels"] == []
    assert "status 403" in said["trouble"]
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        said = kernels.look(jupyter.environ(JUPYTERHUB_SERVICE_URL=url), proc=str(proc.root))
    assert said["trouble"] == "JupyterLab does not answer just now, so its notebooks are not known."


@pytest.mark.parametrize("said", [{}, None, [1, {"kernel": 2}, {"kernel": {"id": 3}}], "x"])
def test_odd_answers_name_no_notebook(jupyter: Jupyter, proc: Proc, said: Any) -> None:
    jupyter.sessions = jupyter.kernels = said
    assert kernels.look(jupyter.environ(), proc=str(proc.root))["kernels"] == []


def test_a_kernel_is_ended_through_the_server(jupyter: Jupyter) -> None:
    jupyter.open("cv.ipynb", CV)
    assert kernels.stop(CV, jupyter.environ()) == {"v": 1, "status": 204}
    assert kernels.stop("../../x", jupyter.environ()) == {"v": 1, "status": 404}
    assert [path for _, path, _ in jupyter.asked] == [
        f"/user/ana/api/kernels/{CV}?no_track_activity=1",
        "/user/ana/api/kernels/..%2F..%2Fx?no_track_activity=1",
    ]


def test_the_driver_inside_counts_for_processes_that_have_cuda_open(
    jupyter: Jupyter, proc: Proc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc.add(82, 7, "python3", files=("/dev/nvidia-uvm",))
    proc.add(83, 7, "python3")
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nprintf '82, 7000\\n82, 500\\n83, 900\\n4000, 100\\n82, [N/A]\\n'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    said = kernels.look(jupyter.environ(), with_gpu=True, proc=str(proc.root))
    assert said["gpu"] == {82: 7500}, "83 is somebody's of the host who has this number here"
    smi.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert kernels.look(jupyter.environ(), with_gpu=True, proc=str(proc.root))["gpu"] is None


def test_the_packed_agent_answers_without_any_installed_package(
    pyz: Path, jupyter: Jupyter
) -> None:
    jupyter.open("cv.ipynb", CV)
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(pyz), "--kernels"],
        env=jupyter.environ(), capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert [row["path"] for row in said["kernels"]] == ["cv.ipynb"]
    assert said["v"] == 1


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HOME": "/home/ana"}, "/home/ana/.local/share/jupyter/runtime"),
        ({"HOME": "/h", "XDG_DATA_HOME": "/x"}, "/x/jupyter/runtime"),
        ({"HOME": "/h", "JUPYTER_DATA_DIR": "/d"}, "/d/runtime"),
        ({"HOME": "/h", "JUPYTER_RUNTIME_DIR": "/r"}, "/r"),
    ],
)
def test_connection_files_are_where_jupyter_puts_them(environ: dict[str, str], folder: str) -> None:
    assert kernels._folders(environ) == [folder]
