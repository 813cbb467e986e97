"""Writes the generated pages of docs/reference from the code; a test fails when they are old."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pytorch_spawner import cli, errors
from pytorch_spawner.cli import course_files
from pytorch_spawner.core import catalog, compat, cuda_rules, cuda_tables
from pytorch_spawner.lab import auth, openapi
from pytorch_spawner.lab.operations import base as operations
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


_EVERYWHERE = ("json", "ledger", "hub", "help")


def cli_page() -> str:
    lines = [
        "# Command line",
        "",
        "Written from the code by `make docs`. Exit status: 0 fine, 1 something is wrong (the",
        "reason is on the standard error), 2 wrong usage. Every command has `--help` and `--json`;",
        "all but `simulate` have `--ledger URL` (default: `$PYTORCH_SPAWNER_LEDGER`) and",
        "`--hub ID` (default: `$PYTORCH_SPAWNER_HUB_ID`, else the only hub in the ledger).",
        "",
    ]
    for words, command in _commands(cli.parser(), ()):
        own = [
            action
            for action in command._actions
            if action.dest not in _EVERYWHERE and not isinstance(action, argparse._SubParsersAction)
        ]
        names = [_operand(action) for action in own if not action.option_strings]
        lines += [f"## `{' '.join(('pytorch-spawner', *words, *names))}`", ""]
        text = str(command.description)
        lines += [f"{text[:1].upper()}{text[1:].rstrip('.')}.", ""]
        lines += [line for action in own if (line := _option(action))]
        lines += [""] if lines[-1] else []
    return "\n".join(lines).rstrip() + "\n"


def _operand(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest)
    if action.nargs in ("+", "*"):
        name += "..."
    return f"[{name}]" if action.nargs in ("?", "*") else name


def _option(action: argparse.Action) -> str:
    if not action.help:
        return ""
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    if action.option_strings and action.nargs != 0:
        name += f" {action.metavar or action.dest.upper()}"
    return f"- `{name}`: {action.help}"


def _commands(
    parser: argparse.ArgumentParser, words: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    if words:
        yield words, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from _commands(command, (*words, name))


def routes_page() -> str:
    lines = [
        "# The API, route by route",
        "",
        "Written from the code by `make docs`. The bodies are in `/services/lab/api/openapi.json`",
        '(OpenAPI 3.1), which needs no login. "yes" says that the role may; the roles are',
        "explained in [the lab service](api.md#rights).",
        "",
        "| route | method | what | student | instructor | viewer | admin |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for operation in openapi.OPERATIONS:
        ticks = " | ".join("yes" if may else "" for may in _who(operation.who))
        method = operation.method.upper()
        path = operation.path.replace("{", "<").replace("}", ">")
        lines.append(f"| `api/{path}` | {method} | {operation.summary} | {ticks} |")
    return "\n".join(lines) + "\n"


def _who(who: str) -> tuple[bool, bool, bool, bool]:
    """Whether a student, an instructor, a viewer and an admin may."""
    return {
        auth.VIEW: (False, False, True, True),
        auth.ADMIN: (False, False, False, True),
        auth.INSTRUCT: (False, True, False, True),
        operations.COURSE: (False, True, False, True),
        operations.CACHES: (False, True, True, True),
        operations.SERVER: (False, False, False, False),
        operations.OWNER: (True, True, True, True),
    }.get(who, (True, True, True, True))


def compatibility_page() -> str:
    cases = _cases()
    lines = [
        "# Which image runs on which GPU",
        "",
        "Written by `make docs` from the table that the tests run (`tests/core/compat_cases.py`)",
        "and from the tables of the code (`core/cuda_tables.py`, where each names its source).",
        "What the kinds of fit mean is said in [the catalog of images](images.md#kinds-of-fit);",
        "`pytorch-spawner images fit` says the same of a lab's own images and GPUs.",
        "",
        "## CUDA and drivers",
        "",
        "Compiled code runs from the driver in the second column on (minor-version compatibility);",
        "PTX needs the one in the third.",
        "",
        "| CUDA | runs from driver | its own driver |",
        "| --- | --- | --- |",
    ]
    for toolkit in sorted(cuda_tables.TOOLKIT_DRIVERS):
        cuda = ".".join(map(str, toolkit))
        drivers = catalog.drivers_of(cuda) or {}
        lines.append(f"| {cuda} | {drivers['minimum']} | {drivers['full']} |")
    lines += [
        "",
        "## GPUs and drivers",
        "",
        "| compute capability | generation | first driver | last branch |",
        "| --- | --- | --- | --- |",
    ]
    older = ((3, 7), (5, 0), (5, 2), (6, 0), (6, 1), (7, 0), (7, 5))
    for capability in sorted({*older, *cuda_tables.FIRST_DRIVERS}):
        first = cuda_tables.FIRST_DRIVERS.get(capability)
        last = [str(branch) for since, branch in cuda_tables.LAST_BRANCHES if capability < since]
        cells = (
            ".".join(map(str, capability)),
            *cuda_rules.generation(capability),
            catalog.say_driver(first) if first else "",
            *last[:1],
        )
        lines.append(f"| {' | '.join((*cells, '')[:4])} |")
    lines += [
        "",
        "## The images of the cases",
        "",
        "| image | CUDA | built for |",
        "| --- | --- | --- |",
    ]
    for name, image in cases.IMAGES.items():
        archs = "unknown" if image.archs is None else " ".join(image.archs) or "none"
        extra = " and the forward compatibility package" if image.compat else ""
        cuda = "unknown" if image.cuda is None else image.cuda or "none"
        lines.append(f"| {name} | {cuda} | {archs}{extra} |")
    lines += [
        "",
        f"## {len(cases.CASES)} cases",
        "",
        "| case | image | GPU | driver | fit | what people are told |",
        "| --- | --- | --- | --- | --- | --- |",
        *_case_rows(cases),
    ]
    return "\n".join(lines) + "\n"


def _cases() -> Any:
    path = Path(__file__).parents[1] / "tests" / "core" / "compat_cases.py"
    spec = importlib.util.spec_from_file_location("compat_cases", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _case_rows(cases: Any) -> Iterable[str]:
    for case in cases.CASES:
        gpu = cases.GPUS[case.gpu]
        told = compat.fit(cases.IMAGES[case.image], gpu, case.driver)
        driver = case.driver or "unknown"
        cells = (case.says, case.image, case.gpu, driver, told.kind, told.sentence)
        yield f"| {' | '.join(cells)} |"


def course_schema() -> str:
    return json.dumps(course_files.schema(), indent=1) + "\n"


PAGES = {
    "traits.md": traits_page,
    "errors.md": errors_page,
    "cli.md": cli_page,
    "api-routes.md": routes_page,
    "compatibility.md": compatibility_page,
    "course.schema.json": course_schema,
}


def main() -> int:
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
