"""The lab image, as the spawner runs it: any uid, no capability, nothing left of its build."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.docker

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 3_200_000_000  # of the CPU variant
BEGINNING = "-----BEGIN CERTIFICATE-----"


def inside(image: str, script: str, *, uid: int = 0, given: str = "") -> str:
    options = f"--rm --interactive --network none --user {uid}:{uid} --cap-drop ALL"
    done = subprocess.run(
        ["docker", "run", *options.split(), "--env", "HOME=/tmp", image, "sh", "-c", script],
        input=given,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def of_image(image: str, template: str) -> str:
    words = ["docker", "image", "inspect", "--format", template, image]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_an_arbitrary_uid_finds_all_that_a_server_needs(lab_image: str) -> None:
    done = subprocess.run(
        [ROOT / "share/images/smoke", lab_image], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout
    assert "54321" in done.stdout
    assert "FAILED" not in done.stdout


def test_a_student_can_install_into_the_home_and_nowhere_else(lab_image: str) -> None:
    script = """
        python3 -c 'import site; print(site.ENABLE_USER_SITE, site.getusersitepackages())'
        test ! -w /opt/lab/lib/python3.11/site-packages && echo read-only
    """
    assert inside(lab_image, script, uid=54321).splitlines() == [
        "True /tmp/.local/lib/python3.11/site-packages",
        "read-only",
    ]


@pytest.mark.parametrize("how", ["bash -lc", "sh -lc", "bash -c"])
def test_a_terminal_finds_the_python_of_the_notebooks(lab_image: str, how: str) -> None:
    script = f"{how} 'command -v python3 && echo $PATH'"
    python, path = inside(lab_image, script, uid=54321).splitlines()
    assert python == "/opt/lab/bin/python3"
    assert path.split(":").count("/opt/lab/bin") == 1


def test_what_a_student_installs_cannot_break_the_servers_start(lab_image: str) -> None:
    script = """
        at=/tmp/.local/lib/python3.11/site-packages
        mkdir -p $at && echo 'raise SystemExit("broken by the home")' > $at/traitlets.py
        cp $at/traitlets.py $at/tornado.py
        jupyterhub-singleuser --version
    """
    assert inside(lab_image, script, uid=54321).split(".")[0].isdigit()


def test_nothing_is_left_of_the_build(lab_image: str) -> None:
    script = """
        find /var/lib/apt/lists /var/cache/apt -type f 2>/dev/null
        find /root -name .cache -o -name .npm
        find /tmp /var/tmp -mindepth 1
        find /opt/lab -name '*.whl' -not -path '*/site-packages/*'
        ls -d /wheels/* /etc/pip.conf /root/.config/pip /root/.pip 2>/dev/null || true
    """
    left = inside(lab_image, script).splitlines()
    # A bind mount's mount point may stay behind; it must be empty.
    assert [line for line in left if line not in ("/etc/pip.conf",)] == []
    assert inside(lab_image, "cat /etc/pip.conf 2>/dev/null || true").strip() == ""


def test_the_sites_certificates_are_in_no_layer(lab_image: str) -> None:
    history = subprocess.run(
        ["docker", "history", "--no-trunc", lab_image], capture_output=True, text=True, check=True
    ).stdout
    environment = of_image(lab_image, "{{json .Config.Env}}")
    assert BEGINNING not in history
    assert "CERT" not in environment
    assert "PIP_" not in environment
    assert inside(lab_image, "cat /run/ca.pem 2>/dev/null || true") == ""
    # What the machine's own bundle has and Debian's package does not is the site's.
    site = os.environ.get("LAB_CA") or os.environ.get("PIP_CERT")
    if not site or not Path(site).is_file():
        return
    lines = {line for line in Path(site).read_text().splitlines() if len(line) == 64}
    shipped = inside(lab_image, "cat /etc/ssl/certs/ca-certificates.crt").splitlines()
    places = "/etc /root /run /tmp /usr/local /var /opt/lab/bin /opt/lab/etc /opt/lab/share"
    own = "\n".join(lines - set(shipped))
    assert not own or inside(lab_image, f"grep -rlFf - {places} || true", given=own) == ""


def test_python_finds_its_bytecode_and_writes_none(lab_image: str) -> None:
    script = """python3 - <<'PY'
import importlib.util, os
for name in ("torch", "numpy", "jupyterlab", "jupyterhub.singleuser.app", "tornado.web", "json"):
    cached = importlib.util.find_spec(name).cached
    print(name, os.path.exists(cached))
PY"""
    assert [line.split()[1] for line in inside(lab_image, script, uid=54321).splitlines()] == (
        ["True"] * 6
    )


def test_its_slow_imports_are_gone_and_its_dependencies_still_agree(lab_image: str) -> None:
    # rfc3987_syntax builds a parser for seconds at import; the recipe says why it may go.
    script = "python3 -c 'import jsonschema, jupyter_events, sys; print(\"lark\" in sys.modules)'"
    assert inside(lab_image, script, uid=54321) == "False\n"


LEAN = """
import runpy, sys
runpy.run_path("/opt/lab/bin/jupyterhub-singleuser")["import_without_the_hub"]()
from jupyterhub.singleuser import app, extension
import jupyterlab.labapp
print([name for name in ("sqlalchemy", "alembic", "jupyterhub.user") if name in sys.modules])
from jupyterhub import orm, roles, scopes, utils
print(orm.User.__name__, roles.get_default_roles()[0]["name"], callable(scopes.sa.select))
from jupyterhub.handlers.pages import HealthCheckHandler
print(HealthCheckHandler.__mro__[-2].__name__)
"""


def test_the_single_user_server_imports_what_it_needs_and_the_rest_when_asked(
    lab_image: str,
) -> None:
    said = inside(lab_image, "python3 -s -", given=LEAN).splitlines()
    assert said == ["[]", "User user True", "RequestHandler"]


def test_a_jupyterhub_that_changed_is_imported_whole(lab_image: str) -> None:
    script = """
        sed 's/jupyterhub.orm/jupyterhub.nowhere/' /opt/lab/bin/jupyterhub-singleuser > /tmp/changed
        python3 -s /tmp/changed --version 2>&1
    """
    first, *_, last = inside(lab_image, script).splitlines()
    assert first.startswith("pytorch-spawner: all of JupyterHub is imported (")
    assert last.startswith("6.")


BOOT = """
import runpy
runpy.run_path("/opt/lab/bin/jupyterhub-singleuser")["prepare"]()
import jupyterlab.labapp, tornado.locale, tornado.web
def source(module): return type(module.__spec__.loader).__name__
print(source(tornado.web), source(tornado.locale), getattr(tornado.locale, "edited", False))
"""


def test_the_servers_modules_come_from_one_file(lab_image: str) -> None:
    said = inside(lab_image, "python3 -s -", uid=54321, given=BOOT)
    assert said.split() == ["RecordedLoader", "RecordedLoader", "False"]


def test_a_module_that_a_derived_image_changed_is_imported_as_it_is_now(lab_image: str) -> None:
    script = """
        echo 'edited = True' >> /opt/lab/lib/python3.11/site-packages/tornado/locale.py
        python3 -s -
    """
    said = inside(lab_image, script, given=BOOT)
    assert said.split() == ["RecordedLoader", "SourceFileLoader", "True"]


def test_a_derived_image_can_record_its_own_modules(lab_image: str) -> None:
    script = """
        at=/opt/lab/share/pytorch-spawner/boot
        echo 'edited = True' >> /opt/lab/lib/python3.11/site-packages/tornado/locale.py
        HOME=/tmp/home python3 -s $at/record_boot.py /opt/lab/bin/jupyterhub-singleuser
        python3 -s -
    """
    assert inside(lab_image, script, given=BOOT).split() == [
        "RecordedLoader",
        "RecordedLoader",
        "True",
    ]


@pytest.mark.parametrize(
    "damage",
    [
        "rm $at/boot.bin",
        "echo nonsense > $at/boot.bin",
        "truncate -s 1000 $at/boot.bin",
        "rm $at/boot_archive.py",
        "export PYTHONPATH=/tmp",
    ],
)
def test_without_an_archive_that_fits_everything_is_imported_from_its_files(
    lab_image: str, damage: str
) -> None:
    script = f"at=/opt/lab/share/pytorch-spawner/boot; {damage}; python3 -s -"
    said = inside(lab_image, script, given=BOOT)
    assert said.split() == ["SourceFileLoader", "SourceFileLoader", "False"]


LATER = """
import re, runpy, ssl, sys
runpy.run_path("/opt/lab/bin/jupyterhub-singleuser")["prepare"]()
import aiohttp.connector, jupyterlab.labapp, jupyterlab.extensions.pypi as panel
import jupyterlab_server.listings_handler as listings
print([name for name in ("httpx", "requests", "aiodns", "IPython") if name in sys.modules])
context = aiohttp.connector._SSL_CONTEXT_VERIFIED
context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="hub")
print(len(context.get_ca_certs()) > 100, context.verify_mode.name, context.check_hostname)
client = panel.httpx.AsyncClient()
print(client.headers["user-agent"].split("/")[0], client.get.__self__.__class__.__name__)
print(listings.requests.request.__module__)
match = re.compile(r"(?P<year>[0-9]+)-(x)?", re.IGNORECASE).fullmatch("2026-X")
print(match.group("year"), match.lastindex)
"""


def test_clients_and_certificates_are_loaded_when_they_are_used_and_are_the_real_ones(
    lab_image: str,
) -> None:
    said = inside(lab_image, "python3 -s -", uid=54321, given=LATER).splitlines()
    assert said == [
        "[]",
        "True CERT_REQUIRED True",
        "python-httpx AsyncClient",
        "requests.api",
        "2026 2",
    ]


PATTERNS = """
import re, runpy, sys
sys.path.insert(0, "/opt/lab/share/pytorch-spawner/boot")
import boot_archive, marshal
content = open(boot_archive.PATH, "rb").read()
size = int.from_bytes(content[:8], "little")
patterns = marshal.loads(content[8:8 + size])[2]
given = {key: re._compiler.compile(*key) for key in patterns}
boot_archive.use_patterns(dict(patterns))
def facts(one): return one.pattern, one.flags, one.groups, dict(one.groupindex)
same = all(facts(re._compiler.compile(*key)) == facts(given[key]) for key in given)
print(len(given) > 100, same, all(re._compiler.compile(*key) == given[key] for key in given))
"""


def test_recorded_patterns_are_what_python_would_compile(lab_image: str) -> None:
    # Patterns are equal when their compiled code is.
    assert inside(lab_image, "python3 -s -", uid=54321, given=PATTERNS) == "True True True\n"


def test_the_launchers_entry_is_a_file_that_any_uid_can_read_and_no_server_imports(
    lab_image: str,
) -> None:
    script = """
        python3 - <<'END'
from pathlib import Path
from jupyter_core.paths import jupyter_path
from jupyterlab_server.config import get_federated_extensions
found = get_federated_extensions(jupyter_path("labextensions"))["@pytorch-spawner/my-gpu"]
load = Path(found["ext_path"], found["jupyterlab"]["_build"]["load"])
print(len(load.read_text()) > 1000, [path.suffix for path in load.parent.iterdir()])
END
        grep -rl my-gpu /opt/lab/etc /opt/lab/lib/python3*/site-packages/*.dist-info || echo none
    """
    assert inside(lab_image, script, uid=54321).splitlines() == ["True ['.js']", "none"]


def test_its_size_and_labels(lab_image: str) -> None:
    labels = '{{index .Config.Labels "org.pytorch-spawner.image.%s"}}'
    variant = of_image(lab_image, labels % "variant")
    if variant == "cpu" and "+cpu" in of_image(lab_image, labels % "torch"):
        assert int(of_image(lab_image, "{{.Size}}")) < MOST_BYTES
    version = inside(lab_image, "python3 -c 'import torch; print(torch.__version__)'").strip()
    assert of_image(lab_image, labels % "torch") == version
    assert of_image(lab_image, "{{json .Config.Entrypoint}}") == '["tini","-g","--"]'
    assert of_image(lab_image, "{{json .Config.Cmd}}") == '["jupyterhub-singleuser"]'
