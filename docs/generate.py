"""Writes docs/reference/traits.md and errors.md from the code; a test fails when they are old."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from pytorch_spawner import errors
from pytorch_spawner.traits import LabTraits

REFERENCE = Path(__file__).parent / "reference"


def traits_page() -> str:
    lines = [
        "# Settings of PyTorchSpawner",
        "",
        "Written from the code by `make docs`. Everything `DockerSpawner` and `Spawner` can be",
        "told works as well; what stands here is ours, or has another default than theirs.",
        "",
    ]
    own = LabTraits.class_own_traits(config=True)
    for name in sorted(own):
        trait = own[name]
        text = inspect.cleandoc(trait.help or "")
        lines += [f"## `c.PyTorchSpawner.{name}`", "", text, ""]
    return "\n".join(lines).rstrip() + "\n"


def errors_page() -> str:
    lines = [
        "# Errors",
        "",
        "Written from the code by `make docs`. The code is stable: pages, the API and scripts may",
        "branch on it. The sentence a student sees says what happened, why, and what to do.",
        "",
        "| code | meaning |",
        "| --- | --- |",
    ]
    for cls in vars(errors).values():
        if inspect.isclass(cls) and issubclass(cls, errors.LabError) and cls is not errors.LabError:
            first = inspect.cleandoc(cls.__doc__ or "").splitlines()[0]
            lines.append(f"| `{cls.code}` | {first} |")
    return "\n".join(lines) + "\n"


PAGES = {"traits.md": traits_page, "errors.md": errors_page}


def main() -> int:
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
