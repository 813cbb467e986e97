"""CPU seconds that starts cost, by who spends them: hub, service, proxy, engine, containers.

On a machine that others use as well the clock says little; what a process used of a core changes
much less with its neighbours. Linux, cgroup v1 or v2, an engine on this machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.benchmarks.real_hub import RealHub, docker

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_ENGINE_PID = Path("/var/run/docker.pid")
_CGROUPS = (
    ("/sys/fs/cgroup/cpuacct/docker/{}/cpuacct.usage", 1e-9),
    ("/sys/fs/cgroup/docker/{}/cpu.stat", 1e-6),
    ("/sys/fs/cgroup/system.slice/docker-{}.scope/cpu.stat", 1e-6),
)


class CpuMeter:
    """Reads what a hub, its helpers and the engine have used so far.

    Args:
        hub: A running one.
    """

    def __init__(self, hub: RealHub) -> None:
        self._hub = hub

    def processes(self) -> dict[str, float]:
        """CPU seconds so far; only differences mean anything.

        Returns:
            {"hub", "service", "proxy", "engine"}: the engine's with its helpers that have ended
            (iptables, docker-proxy, a shim's first steps), and with what others ask of it.
        """
        found = dict.fromkeys(("hub", "service", "proxy", "engine"), 0.0)
        engine = _number(_ENGINE_PID)
        for pid, name, parent in _processes():
            if pid == self._hub.pid:
                found["hub"] += _used_s(pid)
            elif parent == self._hub.pid:
                found["proxy" if name.startswith("node") else "service"] += _used_s(pid)
            elif engine and (pid == engine or (name == "containerd" and parent == engine)):
                found["engine"] += _used_s(pid, with_children=True)
        return found

    def containers(self, users: Sequence[str]) -> dict[str, float]:
        """CPU seconds of these users' containers since they were made.

        Returns:
            {"server": the single-user servers, "agent": workers and their checks, "other": what
            else runs or ran in the containers, "shim": what made them and watches them}
        """
        found = dict.fromkeys(("server", "agent", "other", "shim"), 0.0)
        shims = {pid: _command(pid) for pid, name, _ in _processes() if "-shim" in name}
        for one in [name for user in users for name in self._hub.containers(user)]:
            rest_s = _cgroup_s(one)
            mine = [pid for pid, words in shims.items() if one in words]
            found["shim"] += sum(_used_s(pid, with_children=True) for pid in mine)
            for pid in map(int, docker("top", one, "-eo", "pid").split()[1:]):
                words = _command(pid)
                what = ""
                if "--worker" in words:
                    what, used_s = "agent", _used_s(pid, with_children=True)
                elif words[0].endswith("python3") and "jupyterhub-singleuser" in " ".join(words):
                    what, used_s = "server", _used_s(pid)
                if what:
                    found[what] += used_s
                    rest_s -= used_s
            found["other"] += max(rest_s, 0.0)
        return found


def per_start(
    before: Mapping[str, float], after: Mapping[str, float], starts: int
) -> dict[str, float]:
    """What each of some starts cost; ``before`` may lack what did not exist yet."""
    return {name: (value - before.get(name, 0.0)) / starts for name, value in after.items()}


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _processes() -> Iterable[tuple[int, str, int]]:
    """(process id, name, parent's id) of all."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        name, _, rest = stat.partition("(")[2].rpartition(")")
        yield int(folder.name), name, int(rest.split()[1])


def _command(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return [""]


def _used_s(pid: int, *, with_children: bool = False) -> float:
    """User and system time of a process; with what its ended children used."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    # proc(5): utime, stime, cutime, cstime are fields 14 to 17; "fields" begins with the third.
    return sum(map(int, fields[11 : 15 if with_children else 13])) * _TICK_S


def _cgroup_s(container: str) -> float:
    for pattern, unit_s in _CGROUPS:
        try:
            text = Path(pattern.format(container)).read_text()
        except OSError:
            continue
        return int(text.split()[1] if "usage_usec" in text else text) * unit_s
    return 0.0
