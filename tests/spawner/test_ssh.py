"""SSH to a server: OpenSSH's own client, through a real hub's proxy, into a real container."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab_driver import ROOT, Lab, running_lab

pytestmark = [pytest.mark.docker, pytest.mark.slow]

IMAGE = "pytorch-spawner/lab:cpu-ssh"
PROXY = ROOT / "share" / "images" / "ssh" / "lab_ssh_proxy.py"
# What apt and pip say where nobody answers; any other trouble, a pin that is gone too, is a fault.
OFFLINE = (
    "Temporary failure resolving",
    "Could not connect",
    "Failed to establish a new connection",
)
ONLY_THIS_SERVER = {"scopes": ["access:servers!server=ana/"]}


@pytest.fixture(scope="module")
def ssh_image(lab_image: str) -> str:
    """Made by the script that a site's admin runs; a second time from the builder's cache."""
    missing = [name for name in ("ssh", "scp", "ssh-keygen") if not shutil.which(name)]
    if missing:
        pytest.skip(f"{missing[0]} is not installed (openssh-client)")
    done = subprocess.run(
        [ROOT / "share" / "images" / "add-ssh", lab_image],
        env={**os.environ, "LAB_TAG": IMAGE},
        capture_output=True,
        text=True,
        timeout=280,
    )
    if done.returncode:
        reason = [line for line in done.stderr.splitlines() if any(w in line for w in OFFLINE)]
        if reason:
            pytest.skip(f"{IMAGE} cannot be built: {reason[0]}")
    assert done.returncode == 0, done.stderr[-3000:]
    return IMAGE


@pytest.fixture(scope="module")
def lab(ssh_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab"), image=ssh_image, gpus=1) as running:
        running.start_server("ana")
        yield running


@dataclass
class Laptop:
    """What a student has at home: a key, a token in a file, an entry in ~/.ssh/config."""

    folder: Path
    lab: Lab

    def new_key(self, name: str) -> str:
        """Make a key pair, and return the public half."""
        path = self.folder / name
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
        subprocess.run(words, check=True, timeout=60)
        return path.with_suffix(".pub").read_text().strip()

    def save_token(self, name: str, token: str) -> Path:
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(f"{token}\n")
        return path

    def write_config(self, *, key: str = "key", token: str = "token") -> None:
        proxy = f"{sys.executable} {PROXY} --token-file {self.folder / token}"
        lines = [
            "Host lab",
            "User ana",
            f"ProxyCommand {proxy} {self.lab.url}/user/ana/sshd/",
            f"IdentityFile {self.folder / key}",
            "IdentitiesOnly yes",
            f"UserKnownHostsFile {self.folder / 'known_hosts'}",
            "StrictHostKeyChecking accept-new",
            "BatchMode yes",
        ]
        (self.folder / "config").write_text("\n".join(lines))

    def run(self, program: str, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, "-F", str(self.folder / "config"), *words],
            input=given,
            capture_output=True,
            text=True,
            timeout=100,
        )

    def first_line(self, *words: str, given: str) -> str:
        """What ssh prints first while its input stays open: an end of it might come first."""
        command = ["ssh", "-F", str(self.folder / "config"), *words]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            ends = threading.Timer(100, process.kill)
            ends.start()
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(given)
                process.stdin.flush()
                return process.stdout.readline()
            finally:
                ends.cancel()
                process.kill()

    def ssh(self, *words: str) -> str:
        done = self.run("ssh", "lab", *words)
        assert done.returncode == 0, f"{done.stderr}\n{self.lab.tail()}"
        return done.stdout.strip()


@pytest.fixture
def laptop(lab: Lab, tmp_path: Path) -> Laptop:
    mine = Laptop(tmp_path, lab)
    public = mine.new_key("key")
    script = f"""
        mkdir -p -m 700 ~/.ssh && cd ~/.ssh
        echo '{public}' > authorized_keys && chmod 600 authorized_keys
    """
    lab.exec("ana", "sh", "-c", script)
    answer = lab.api("POST", "users/ana/tokens", json=ONLY_THIS_SERVER)
    assert answer.status_code == 201, answer.text
    mine.save_token("token", answer.json()["token"])
    mine.write_config()
    return mine


def test_a_student_logs_in_as_their_own_uid_without_any_right(lab: Lab, laptop: Laptop) -> None:
    uid, hi, *status = laptop.ssh("id -u; echo hi; cat /proc/self/status").splitlines()
    assert (int(uid), hi) == (lab.ledger().identity("ana", None, (1000, 1000)).uid, "hi")
    fields = dict(line.split(":", 1) for line in status if ":" in line)
    assert int(fields["CapEff"], 16) == 0
    assert fields["NoNewPrivs"].strip() == "1"
    assert fields["Seccomp"].strip() == "2"


def test_a_session_has_what_a_notebook_has(lab: Lab, laptop: Laptop) -> None:
    session = dict(line.split("=", 1) for line in laptop.ssh("env -0").split("\0") if "=" in line)
    server = dict(
        line.split("=", 1)
        for line in lab.exec("ana", "sh", "-c", "tr '\\0' '\\n' < /proc/1/environ").splitlines()
        if "=" in line
    )
    its_own = {"SHLVL", "PWD", "_", "OLDPWD", "TERM"}
    assert {
        name: (value, session.get(name))
        for name, value in server.items()
        if name not in its_own and session.get(name) != value
    } == {}
    assert session["TEST_GPU_0"] == "1"  # what CDI gives a container with this GPU
    ask = "import sys, torch; print(sys.prefix, torch.tensor([2.0]).item())"
    assert laptop.ssh(f"python3 -c '{ask}'") == "/opt/lab 2.0"


def test_a_login_shell_has_a_terminal_and_the_labs_python(laptop: Laptop) -> None:
    said = laptop.run("ssh", "-tt", "lab", "tty; bash -lc 'command -v python3'").stdout
    terminal, python = said.split()
    assert terminal.startswith("/dev/pts/")
    assert python == "/opt/lab/bin/python3"


@pytest.mark.parametrize("protocol", ["-s", "-O"], ids=["sftp", "old scp"])
def test_files_are_copied_both_ways(laptop: Laptop, tmp_path: Path, protocol: str) -> None:
    content = os.urandom(8_000_000)
    (tmp_path / "there").write_bytes(content)
    for words in (
        (str(tmp_path / "there"), "lab:data.bin"),
        ("lab:data.bin", str(tmp_path / "back")),
    ):
        done = laptop.run("scp", protocol, "-q", *words)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "back").read_bytes() == content


def test_a_port_in_the_server_is_forwarded(laptop: Laptop) -> None:
    # -W is -L for one connection, on standard input and output.
    request = "GET /user/ana/api HTTP/1.0\r\n\r\n"
    assert "200 OK" in laptop.first_line("-W", "127.0.0.1:8888", "lab", given=request)


def test_another_key_is_refused(laptop: Laptop) -> None:
    laptop.new_key("stolen")
    laptop.write_config(key="stolen")
    done = laptop.run("ssh", "lab", "true")
    assert done.returncode == 255
    assert "Permission denied (publickey)" in done.stderr


@pytest.mark.parametrize("login", ["root", "nobody", "sshd"])
def test_nobody_else_logs_in_with_the_key(laptop: Laptop, login: str) -> None:
    done = laptop.run("ssh", "-l", login, "lab", "true")
    assert done.returncode == 255
    assert "Permission denied" in done.stderr


def test_another_students_token_is_refused(lab: Lab, laptop: Laptop) -> None:
    lab.add_users("bo")
    laptop.save_token("bo", lab.user_token("bo"))
    laptop.write_config(token="bo")
    done = laptop.run("ssh", "lab", "true")
    assert done.returncode == 255
    assert "The token is not one for this server" in done.stderr
    assert "403" in done.stderr


def test_a_token_that_was_revoked_is_refused(lab: Lab, laptop: Laptop) -> None:
    answer = lab.api("POST", "users/ana/tokens", json=ONLY_THIS_SERVER).json()
    assert lab.api("DELETE", f"users/ana/tokens/{answer['id']}").status_code == 204
    laptop.save_token("revoked", answer["token"])
    laptop.write_config(token="revoked")
    done = laptop.run("ssh", "lab", "true")
    assert done.returncode == 255
    assert "403" in done.stderr


# 127.0.0.1, the engine's resolver at 127.0.0.11, and ::1, as the kernel writes them.
LOOPBACK = ("0100007F", "0B00007F", "00000000000000000000000001000000")
LISTENING = """
for name in ("tcp", "tcp6"):
    for line in open(f"/proc/net/{name}").read().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A":
            address, port = fields[1].split(":")
            print(address, int(port, 16))
"""


def test_no_port_is_published_and_sshd_listens_to_its_own_container_alone(
    lab: Lab, laptop: Laptop
) -> None:
    laptop.ssh("true")  # sshd runs from the first connection on
    assert not any((lab.container("ana").attrs["NetworkSettings"]["Ports"] or {}).values())
    rows = [line.split() for line in lab.exec("ana", "python3", "-c", LISTENING).splitlines()]
    assert {port for address, port in rows if address not in LOOPBACK} == {"8888"}
    assert lab.exec("ana", "sh", "-c", "pgrep -c -x sshd") != "0"


def test_no_secret_is_in_a_command_line(lab: Lab, laptop: Laptop) -> None:
    laptop.ssh("true")
    token = lab.exec("ana", "printenv", "JUPYTERHUB_API_TOKEN")
    commands = str(lab.container("ana").top(ps_args="-eo pid,args")["Processes"])
    assert "sshd" in commands
    assert token not in commands


def test_what_ssh_says_is_use_of_the_server_and_silence_is_not(lab: Lab, laptop: Laptop) -> None:
    token = (laptop.folder / "token").read_text().strip()

    def last_use() -> str:
        address = f"{lab.url}/user/ana/api/status"
        headers = {"Authorization": f"token {token}"}
        return str(lab.session.get(address, headers=headers, timeout=20).json()["last_activity"])

    before = last_use()
    words = ["ssh", "-F", str(laptop.folder / "config"), "lab", "echo hi; cat"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:
        assert session.stdin is not None
        assert session.stdout is not None
        assert session.stdout.readline() == b"hi\n"
        time.sleep(1)  # the last of what both sides say of themselves
        said = last_use()
        time.sleep(3)
        silent = last_use()
        session.stdin.close()
    assert said > before
    assert silent == said


def test_the_host_key_is_the_same_after_a_restart(lab: Lab, laptop: Laptop) -> None:
    laptop.ssh("true")
    lab.stop_server("ana")
    stopped = laptop.run("ssh", "lab", "true")
    assert "Start it in the browser" in stopped.stderr
    lab.start_server("ana")
    done = laptop.run("ssh", "-o", "StrictHostKeyChecking=yes", "lab", "echo hi")
    assert (done.returncode, done.stdout) == (0, "hi\n"), done.stderr


# -- the image ---------------------------------------------------------------------------------


def inside(image: str, script: str) -> str:
    options = "--rm --network none --user 54321:54321 --cap-drop ALL --env HOME=/tmp"
    done = subprocess.run(
        ["docker", "run", *options.split(), image, "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_image_has_no_key_no_new_right_and_nothing_left_of_its_build(
    ssh_image: str, lab_image: str
) -> None:
    privileged = "find / -xdev -perm /6000 -type f 2>/dev/null | sort"
    assert inside(ssh_image, privileged) == inside(lab_image, privileged)
    left = """
        ls /etc/ssh/ssh_host_* 2>/dev/null
        find /tmp /var/tmp -mindepth 1
        find /var/lib/apt/lists /var/cache/apt -type f
        true
    """
    assert inside(ssh_image, left) == ""
    ask = ["docker", "image", "inspect", "--format", "{{.Config.User}} {{.Config.ExposedPorts}}"]
    of = [subprocess.check_output([*ask, image], text=True) for image in (ssh_image, lab_image)]
    assert of[0] == of[1]


def test_the_servers_modules_come_from_one_file_and_the_plain_image_has_none_of_it(
    ssh_image: str, lab_image: str
) -> None:
    script = """python3 -s - <<'END'
import runpy
runpy.run_path("/opt/lab/bin/jupyterhub-singleuser")["prepare"]()
import jupyter_server_proxy.handlers as module
print(type(module.__spec__.loader).__name__)
END"""
    assert inside(ssh_image, script) == "RecordedLoader\n"
    absent = "python3 -c 'import jupyter_server_proxy' 2>&1 | tail -1; command -v sshd || echo none"
    module, sshd = inside(lab_image, absent).splitlines()
    assert "No module named 'jupyter_server_proxy'" in module
    assert sshd == "none"
