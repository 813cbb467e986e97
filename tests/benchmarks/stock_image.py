"""The image that a site without us would use: built once from ours, with our trimming undone."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.harness import ROOT

LAB_IMAGE = "pytorch-spawner/lab:cpu"
TAG = "pytorch-spawner-bench/stock:latest"
_LABEL = "org.pytorch-spawner.bench.made-from"
_FOLDER = Path(__file__).with_name("stock")
_OURS = ROOT / "share" / "images" / "etc"


def lab_image() -> str:
    """The image of our arms."""
    return os.environ.get("LAB_IMAGE") or LAB_IMAGE


def stock_image() -> str:
    """The image of the stock arm: LAB_BENCH_STOCK_IMAGE, else one that is built when it is due."""
    if named := os.environ.get("LAB_BENCH_STOCK_IMAGE"):
        return named
    made_from = _made_from(lab_image())
    label = "{{index .Config.Labels " + f'"{_LABEL}"' + "}}"
    if _docker("image", "inspect", "--format", label, TAG) != made_from:
        sys.stderr.write(f"building {TAG}\n")
        _build(made_from)
    return TAG


def _made_from(image: str) -> str:
    """Changes whenever the result could."""
    digest = hashlib.sha256(_docker("image", "inspect", "--format", "{{.Id}}", image).encode())
    digest.update((_FOLDER / "Dockerfile").read_bytes())
    for path in sorted(_OURS.rglob("*")):
        digest.update(str(path.relative_to(_OURS)).encode())
    return digest.hexdigest()[:16]


def _build(made_from: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ca, pip = Path(folder, "ca.pem"), Path(folder, "pip.conf")
        authorities = next(filter(None, map(os.environ.get, _AUTHORITIES)), "")
        ca.write_bytes(Path(authorities).read_bytes() if authorities else b"")
        pip.write_text(_pip_settings(bool(authorities)))
        done = subprocess.run(
            [
                "docker", "buildx", "build", "--load", "--tag", TAG,
                "--label", f"{_LABEL}={made_from}",
                "--build-arg", f"BASE={lab_image()}",
                "--build-context", f"ours={_OURS}",
                "--secret", f"id=ca,src={ca}", "--secret", f"id=pip,src={pip}",
                str(_FOLDER),
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(
            f"{TAG} could not be built; behind a proxy that re-signs TLS, LAB_CA names the site's "
            f"CA; LAB_BENCH_STOCK_IMAGE names another image.\n{done.stderr[-2000:]}"
        )


_AUTHORITIES = ("LAB_CA", "PIP_CERT", "SSL_CERT_FILE")


def _pip_settings(has_authorities: bool) -> str:
    """The index that pip knows on this machine, as share/images/build passes it."""
    lines = ["[global]", "timeout = 180", "disable-pip-version-check = true"]
    if has_authorities:
        lines.append("cert = /run/ca.pem")
    for name in ("index-url", "extra-index-url"):
        asked = [sys.executable, "-m", "pip", "config", "get", f"global.{name}"]
        said = (
            os.environ.get(f"PIP_{name.upper().replace('-', '_')}")
            or subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        )
        # A build sees no file:// of this machine.
        if web := [word for word in said.split() if word.startswith("http")]:
            lines.append(f"{name} = {' '.join(web)}")
    return "\n".join(lines) + "\n"


def _docker(*words: str) -> str:
    """Output of a command; "" when it failed."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
