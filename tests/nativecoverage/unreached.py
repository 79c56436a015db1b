"""Lines that no test runs, against the list of those that are known, each with its reason."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nativecoverage.counts import Counts

__all__ = ["Known", "Verdict", "function_of", "judge", "read_known"]

_NAME = re.compile(r"([\w:~]+)\s*\(")


@dataclass(frozen=True)
class Known:
    """Lines of one function that no test runs, and why; each is the text of a line without the spaces around it.

    The function is the one that :func:`function_of` finds, empty inside of a class.
    """

    file: str
    function: str
    lines: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Verdict:
    """Attributes:
    unknown: file, line number and text of lines that no test runs and that are not listed.
    outdated: entries with lines that do run, or that are not there any more.
    """

    unknown: tuple[tuple[str, int, str], ...]
    outdated: tuple[tuple[Known, str], ...]


def read_known(path: Path) -> tuple[Known, ...]:
    """The list of known lines."""
    return tuple(
        Known(entry["file"], entry["function"], tuple(entry["lines"]), entry["reason"])
        for entry in json.loads(path.read_text(encoding="utf-8"))
    )


def function_of(lines: Sequence[str], number: int) -> str:
    """Name of the function that a line belongs to: the last one above it whose definition begins at the margin."""
    for line in reversed(lines[:number]):
        if line and not line[0].isspace() and "(" in line and not line.startswith(("//", "#", "}")):
            found = _NAME.search(line)
            return found[1] if found else line
    return ""


def judge(counts: Counts, texts: Mapping[str, Sequence[str]], known: Sequence[Known]) -> Verdict:
    """Compare what ran with what is listed; `texts` has the lines of each file."""
    missed = {
        (file, number): (file, function_of(texts[file], number), texts[file][number - 1].strip())
        for file, lines in counts.items()
        for number, count in lines.items()
        if count == 0 and texts[file][number - 1].strip() not in ("", "}")
    }
    listed = {(entry.file, entry.function, text) for entry in known for text in entry.lines}
    unknown = [(file, number, place[2]) for (file, number), place in missed.items() if place not in listed]
    still = set(missed.values())
    outdated = [
        (entry, text) for entry in known for text in entry.lines if (entry.file, entry.function, text) not in still
    ]
    return Verdict(tuple(sorted(unknown)), tuple(outdated))
