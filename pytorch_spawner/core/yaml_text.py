"""YAML that people write, and the keys in it that are there twice. Pure.

PyYAML keeps the last of two equal keys, although YAML 1.2 (3.2.1.1) asks for unique ones. So a list
of members that somebody adds below another one would quietly take its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from pytorch_spawner.errors import Problem


def read(text: str) -> tuple[Any, tuple[Problem, ...]]:
    """Read one document.

    Args:
        text: Of at most a few hundred KiB.

    Returns:
        What it says (None for nothing), and a fault for each key that is there again, with its
        place, such as "timetable.sessions.0.start", and its line, from 1.

    Raises:
        yaml.YAMLError: It is no YAML.
    """
    loader = yaml.SafeLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None, ()
        # Before it is constructed: that puts merged keys (``<<``) among a mapping's own.
        twice = tuple(_twice(root))
        return loader.construct_document(root), twice
    finally:
        loader.dispose()


def _twice(root: yaml.Node) -> Iterator[Problem]:
    """Outer ones first; what an alias repeats is looked at once."""
    stack: list[tuple[str, yaml.Node]] = [("", root)]
    seen: set[int] = set()
    while stack:
        place, node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        inner: list[tuple[str, yaml.Node]] = []
        if isinstance(node, yaml.MappingNode):
            first: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
                below = f"{place}.{name}".removeprefix(".")
                inner.append((below, value))
                if not isinstance(key, yaml.ScalarNode):
                    continue
                line = int(key.start_mark.line) + 1
                if (key.tag, name) in first:
                    yield Problem(_say(first[key.tag, name], line), below, line)
                else:
                    first[key.tag, name] = line
        elif isinstance(node, yaml.SequenceNode):
            inner = [(f"{place}.{n}".removeprefix("."), one) for n, one in enumerate(node.value)]
        stack += reversed(inner)


def _say(earlier: int, line: int) -> str:
    where = f"in line {earlier}" if earlier == line else f"in lines {earlier} and {line}"
    return f"it is there twice, {where}; keep one of them"
