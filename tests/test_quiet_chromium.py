"""What the browser tests start in Chromium's place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.quiet_chromium import quiet

_ASK = """
import errno, socket
socket.socket(socket.AF_INET).close()
try:
    socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="netlink is Linux's")
def test_a_quiet_program_has_the_network_and_is_told_nothing_about_its_interfaces(
    tmp_path: Path,
) -> None:
    try:
        import pyseccomp  # noqa: F401
    except (OSError, RuntimeError) as error:
        pytest.skip(f"this machine has no libseccomp: {error}")
    program = quiet(sys.executable, tmp_path)
    done = subprocess.run([program, "-c", _ASK], capture_output=True, text=True, timeout=20)
    assert (done.stdout, done.stderr) == ("EAFNOSUPPORT\n", "")
