"""``agent.pyz --report``: the checks for people in a terminal; nothing is sent anywhere."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Dict, List, Mapping

from pytorch_spawner.agent import session
from pytorch_spawner.agent.codes import worst
from pytorch_spawner.agent.config import parse
from pytorch_spawner.agent.launch import CONFIG_ENV

_MARKS = {"ok": "ok  ", "warn": "NOTE", "fail": "FAIL", "unknown": "?   "}


def main(*, as_json: bool) -> int:
    """Run and print the checks.

    Returns:
        1 when a check failed, else 0.
    """
    config, trouble = parse(os.environ.get(CONFIG_ENV))
    if trouble:
        sys.stderr.write(f"{trouble}\n")
    found: List[Dict[str, Any]] = []

    def take(kind: str, data: Mapping[str, Any]) -> None:
        if kind == "check" and data.get("phase") == "done":
            found.append(dict(data))
            if not as_json:
                print(render(data), flush=True)

    session.run_checks(config, take, lambda: None)
    if as_json:
        print(json.dumps(found, indent=2))
    return int(worst([str(check["level"]) for check in found]) == "fail")


def render(check: Mapping[str, Any]) -> str:
    """One check as lines of text, without control characters."""
    lines = [
        f"{_MARKS[check['level']]}  {check['code']:<16} {check['sentence']} "
        f"({check['seconds']:.2f} s)"
    ]
    for who, remedy in (("you", check["remedy"]), ("admin", check["admin_remedy"])):
        if remedy and check["level"] in ("warn", "fail"):
            lines.append(f"      {who}: {remedy}")
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)
