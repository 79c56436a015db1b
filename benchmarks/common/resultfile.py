"""Results files: JSON with one record a line, so that a diff shows which measurements are new.

The document's keys have a line each, and so has every element of its lists. What holds a list of objects further inside
is broken up in the same way; all else, such as a measurement with its samples, stays on one line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["format_document", "write_document"]


def format_document(document: Mapping[str, Any]) -> str:
    """The text of a results file; what it parses to is equal to `document`."""
    return "\n".join(_object(document, 0, top=True)) + "\n"


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write a results file."""
    path.write_text(format_document(document), encoding="utf-8")


def _lines(value: Any, depth: int) -> list[str]:
    """A value whose first line begins after `depth` blanks and perhaps a key."""
    if not _holds_records(value):
        return [json.dumps(value)]
    return _object(value, depth) if isinstance(value, Mapping) else _list(value, depth)


def _object(value: Mapping[str, Any], depth: int, *, top: bool = False) -> list[str]:
    entries = []
    for key, inner in value.items():
        lines = _list(inner, depth + 1) if top and isinstance(inner, list) and inner else _lines(inner, depth + 1)
        entries.append([f"{json.dumps(key)}: {lines[0]}", *lines[1:]])
    return _bracketed("{", entries, "}", depth)


def _list(value: list[Any], depth: int) -> list[str]:
    return _bracketed("[", [_lines(inner, depth + 1) for inner in value], "]", depth)


def _bracketed(begin: str, entries: list[list[str]], end: str, depth: int) -> list[str]:
    """Entries one below the other, one blank deeper than their brackets."""
    out = [begin]
    for i, (first, *others) in enumerate(entries):
        out += [" " * (depth + 1) + first, *others]
        out[-1] += "," if i < len(entries) - 1 else ""
    return [*out, " " * depth + end]


def _holds_records(value: Any) -> bool:
    """Whether there is a list of objects anywhere inside."""
    if isinstance(value, Mapping):
        return any(map(_holds_records, value.values()))
    return isinstance(value, list) and any(isinstance(inner, Mapping) or _holds_records(inner) for inner in value)
