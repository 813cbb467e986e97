"""The demo's own parts: a generated password, and simulated GPUs where there is no real one."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

CREDENTIALS = "credentials.json"
DEMO_SPEC = Path("/etc/cdi/pytorch-spawner-demo.json")
_NVIDIA = Path("/proc/driver/nvidia/version")


def demo_password(lab_dir: Path, url: str) -> str:
    """Return the demo's password, generating and keeping it (mode 0600) on first use."""
    path = lab_dir / CREDENTIALS
    if path.exists():
        known = json.loads(path.read_text())
        if known.get("url") == url:
            return str(known["password"])
        password = str(known["password"])
    else:
        password = secrets.token_urlsafe(12)
    content = json.dumps({"url": url, "admin": "admin", "password": password}, indent=1)
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(content + "\n")
    temporary.replace(path)
    return password


def demo_gpus(spec: Path = DEMO_SPEC, driver: Path = _NVIDIA) -> list[dict[str, Any]]:
    """Return the simulated GPUs of the demo's CDI specification; none beside a real driver."""
    if driver.exists() or not spec.exists():
        return []
    said = json.loads(spec.read_text())
    return [
        {
            "uuid": device["name"],
            "index": index,
            "name": "Simulated GPU",
            "cdi_name": f"{said['kind']}={device['name']}",
            "is_simulated": True,
        }
        for index, device in enumerate(said["devices"])
    ]
