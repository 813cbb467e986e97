from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pytorch_spawner.core.course_manifest import Manifest, Slot
from pytorch_spawner.core.course_text import read_manifest
from pytorch_spawner.traits import LabTraits

ROOT = Path(__file__).resolve().parents[1]


def _generator():  # type: ignore[no-untyped-def]
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name",
    [
        "traits.md",
        "errors.md",
        "cli.md",
        "api-routes.md",
        "compatibility.md",
        "course.schema.json",
    ],
)
def test_the_generated_pages_are_up_to_date(name: str) -> None:
    assert (ROOT / "docs" / "reference" / name).read_text() == _generator().PAGES[name]()


def test_every_key_of_a_course_is_explained() -> None:
    page = (ROOT / "docs" / "reference" / "course.md").read_text()
    places = []
    for name, field in Manifest.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        places += [f"{name}.{key}" for key in inner] if inner else [name]
    assert [place for place in places if f"`{place}" not in page] == []
    assert all(f"`.{key}`" in page or f"[].{key}`" in page for key in Slot.model_fields)


def test_the_manifest_in_the_docs_is_usable() -> None:
    for page in ("reference/course.md", "how-to/class-sessions.md"):
        (text, *_) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)
        least = "" if "source:" in text else "name: a\ntitle: a\nsource: {git: 'https://a.org/b'}\n"
        assert read_manifest((least + text).encode()).timetable.sessions


@pytest.mark.parametrize("name", sorted(LabTraits.class_own_traits(config=True)))
def test_a_setting_says_what_it_does_its_default_and_an_example(name: str) -> None:
    text = LabTraits.class_own_traits(config=True)[name].help
    assert text
    if name != "remove":  # always true; there is nothing to set
        assert f"c.PyTorchSpawner.{name}" in text
        assert re.search(r"[Dd]efault|Empty|auto", text)


def test_every_link_in_the_docs_leads_somewhere() -> None:
    broken = []
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def test_the_readme_names_the_two_commands_and_the_picture() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make run" in readme
    assert "make test" in readme
    (picture,) = re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme)
    assert (ROOT / picture).stat().st_size > 10_000
    assert len(readme.splitlines()) < 120


def test_the_package_itself_imports_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import pytorch_spawner; "
        "print(sorted(m for m in set(sys.modules) - before if not m.startswith('pytorch_spawner')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_committed_names_a_registry_or_this_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\0")
    words = re.compile(
        r"registry\.npmjs|pypi\.org|files\.pythonhosted|deb\.debian\.org|/root/\.pyenv"
    )
    found = [
        name
        for name in listed
        if name
        and name != "tests/test_docs.py"
        and (ROOT / name).is_file()
        and words.search((ROOT / name).read_text(errors="ignore"))
    ]
    assert found == []
