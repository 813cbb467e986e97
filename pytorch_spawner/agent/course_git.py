"""Git for a course: private settings, deadlines, and nbgitpuller in a child process.

What is asked of git here depends on nothing that a student or an image has configured: no hooks, no
filters, no editor, no prompt, no signature. It must NOT decide what happens to anybody's file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Tuple

DEADLINE_S = 900.0
TAIL = 4000
_NO_NBGITPULLER = 87

# Copied into every new repository: bytes stay as the course has them, and what both sides changed
# is one side's as a whole. ".git/info/attributes" is stronger than any .gitattributes.
# Source: gitattributes(5), "NOTES ON PRECEDENCE"; "binary" takes the student's side with -Xours.
ATTRIBUTES = "* -text -ident -filter !eol !working-tree-encoding merge=binary\n"

_SETTINGS: Dict[str, str] = {
    "core.hooksPath": os.devnull,
    "core.attributesFile": os.devnull,
    "core.excludesFile": os.devnull,
    "core.fsmonitor": "false",
    "core.autocrlf": "false",
    "core.safecrlf": "false",
    "core.fileMode": "false",
    "core.quotePath": "true",
    "core.editor": "true",
    "core.pager": "cat",
    "commit.gpgSign": "false",
    "merge.ff": "true",
    "merge.default": "binary",
    "merge.renames": "false",
    # Up to git 2.49, "ort" detects renames all the same, and an edit moves into another file.
    "pull.twohead": "recursive",
    "diff.renames": "false",
    "merge.verifySignatures": "false",
    "submodule.recurse": "false",
    "fetch.recurseSubmodules": "false",
    "fetch.prune": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "user.name": "course",
    "user.email": "course@localhost",
    "advice.detachedHead": "false",
}

# Without the package's own __init__, which imports a web server: 60 ms instead of a second.
_PULL = f"""
import importlib.util, sys, types
spec = importlib.util.find_spec("nbgitpuller")
if spec is None:
    sys.exit({_NO_NBGITPULLER})
package = types.ModuleType("nbgitpuller")
package.__path__ = list(spec.submodule_search_locations)
sys.modules["nbgitpuller"] = package
from nbgitpuller.pull import GitPuller
for line in GitPuller(sys.argv[1], sys.argv[3], branch=sys.argv[2], depth=0).pull():
    sys.stdout.write(line if line.endswith("\\n") else line + "\\n")
"""


class Refused(Exception):
    """The course could not be synced; nobody's file was harmed.

    Attributes:
        code: Stable; the event's "code".
        remedy: What the student can do; "" for nothing.
        admin_remedy: What an admin can do; "" for nothing.
    """

    def __init__(self, code: str, sentence: str, remedy: str = "", admin_remedy: str = "") -> None:
        super().__init__(sentence)
        self.code = code
        self.remedy = remedy
        self.admin_remedy = admin_remedy


class GitTrouble(Exception):
    """Git, or nbgitpuller, ended with an error; the text is the last that it said."""


def refusal(error: OSError, what: str) -> Refused:
    """What a failed system call means to a student.

    Args:
        error: What failed.
        what: What could not be done, as the end of "The course could not ...".
    """
    path = shown(os.fsdecode(error.filename)) if error.filename else "your home directory"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Refused(
            "disk-full",
            "There is no room left in your home directory, so the course's notebooks could not be "
            "updated. Your files are as they were.",
            "Delete what you do not need, then restart your server.",
            "Give this home more room.",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Refused(
            "read-only",
            f"The course's notebooks could not be updated, because {path} must not be written.",
            "Allow it again, in a terminal: chmod -R u+rwX and the course's directory.",
            "See who owns the directory; it should be the student.",
        )
    why = error.strerror or type(error).__name__
    return Refused(
        "sync-failed",
        f"The course's notebooks could not be {what}: {why} ({path}). Your files are kept.",
        "Restart your server; if it happens again, show this to your instructor.",
        "See the agent's log in the container's cache directory.",
    )


def shown(path: str) -> str:
    """A path for people and JSON: what is no UTF-8 becomes a replacement character."""
    return os.fsencode(path).decode("utf-8", "replace")


def environment(home: Path, template: Optional[Path] = None) -> Dict[str, str]:
    """The environment of every git of ours: nothing inherited that git reads.

    Args:
        home: No repository above a directory in it is ever used.
        template: What a new repository is begun with; ``None`` for nothing.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    for name in [name for name in kept if "TOKEN" in name or name.startswith("NBGITPULLER")]:
        del kept[name]
    kept.update(
        HOME=str(home),
        LANG="C",
        LC_ALL="C",
        GIT_TERMINAL_PROMPT="0",
        GIT_ASKPASS="true",
        GIT_EDITOR="true",
        GIT_MERGE_AUTOEDIT="no",
        GIT_OPTIONAL_LOCKS="0",
        GIT_CEILING_DIRECTORIES=str(home),
        GIT_CONFIG_NOSYSTEM="1",
        GIT_CONFIG_GLOBAL=os.devnull,
        GIT_TEMPLATE_DIR=str(template or ""),
        GIT_CONFIG_COUNT=str(len(_SETTINGS)),
    )
    for index, (name, value) in enumerate(_SETTINGS.items()):
        kept[f"GIT_CONFIG_KEY_{index}"] = name
        kept[f"GIT_CONFIG_VALUE_{index}"] = value
    return kept


def run(
    command: List[str], *, env: Mapping[str, str], cwd: Optional[Path] = None
) -> Tuple[int, bytes, bytes]:
    """Run a program to its end, or end it with all its children at ``DEADLINE_S``.

    Returns:
        Its status, and what it printed on its standard output and error.

    Raises:
        Refused: There is no such program, or it took too long.
    """
    try:
        process = subprocess.Popen(
            command, env=dict(env), cwd=cwd or Path("/"), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise Refused(
            "no-git",
            "This image has no git, so the course's notebooks could not be copied.",
            "Choose another image, or tell your instructor.",
            "Install git and nbgitpuller in the image.",
        ) from None
    except OSError as error:
        raise Refused(
            "no-process",
            f"The course's notebooks could not be updated, because no program could be started: "
            f"{error.strerror}.",
            "Shut down kernels and terminals that you do not need, then restart your server.",
            f"See the container's limits of processes and memory, and {command[0]}.",
        ) from error
    try:
        printed, complained = process.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise Refused(
            "too-slow",
            f"Copying the course's notebooks was stopped after {DEADLINE_S / 60:.0f} minutes.",
            "Restart your server; if it happens again, show this to your instructor.",
            "See whether the homes' storage is slow, or the course very large.",
        ) from None
    return process.returncode, printed, complained


def pull(bundle: Path, branch: str, target: Path, home: Path) -> None:
    """Let nbgitpuller make ``target``, or bring it up to date, as it does it everywhere.

    Raises:
        Refused: There is no nbgitpuller, or it took too long.
        GitTrouble: It gave up.
    """
    with tempfile.TemporaryDirectory(prefix="course-") as folder:
        template = Path(folder, "template")
        (template / "info").mkdir(parents=True)
        (template / "info" / "attributes").write_text(ATTRIBUTES, encoding="ascii")
        env = {**environment(home, template), "NBGITPULLER_DEPTH": "0"}
        arguments = [str(bundle), branch, str(target)]
        status, *printed = run([sys.executable, "-I", "-c", _PULL, *arguments], env=env)
        if status == _NO_NBGITPULLER:
            # The image's Jupyter may live in another Python than the one that runs the agent.
            program = shutil.which("gitpuller")
            if program is None:
                raise _no_nbgitpuller()
            status, *printed = run([program, *arguments], env=env)
    if status:
        text = b"\n".join(printed).decode("utf-8", "replace")[-TAIL:]
        if "No space left" in text or "quota exceeded" in text.lower():
            raise refusal(OSError(errno.ENOSPC, ""), "")
        raise GitTrouble(text)


def _no_nbgitpuller() -> Refused:
    return Refused(
        "no-nbgitpuller",
        "This image has no nbgitpuller, so the course's notebooks could not be copied.",
        "Choose another image, or tell your instructor.",
        "Install nbgitpuller in the image; the recipes of the lab have it.",
    )


def head(bundle: Path, branch: str, home: Path) -> str:
    """The publication that a bundle holds.

    Raises:
        Refused: There is no bundle, or it is none.
    """
    wanted = f"refs/heads/{branch}"
    command = ["git", "bundle", "list-heads", str(bundle), wanted]
    status, printed, _ = run(command, env=environment(home))
    said = printed.decode("ascii", "replace").split()
    if status == 0 and len(said) == 2 and len(said[0]) == 40:
        return said[0]
    is_there = bundle.is_file()
    raise Refused(
        "bundle-damaged" if is_there else "no-bundle",
        "The course has not been published yet, so there are no notebooks to copy."
        if not is_there
        else "What the lab keeps of this course is damaged, so its notebooks were not copied.",
        "Tell your instructor. Your own files are as they were.",
        "Preload and publish the course again.",
    )
