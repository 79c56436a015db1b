"""Lines that no test runs, against the list of those that are known, each with its reason."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nativecoverage.counts import Counts

__all__ = ["Known", "Verdict", "judge", "read_known"]


@dataclass(frozen=True)
class Known:
    """Lines of one file that no test runs, and why; each is the text of a line without the spaces around it."""

    file: str
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
        Known(entry["file"], tuple(entry["lines"]), entry["reason"])
        for entry in json.loads(path.read_text(encoding="utf-8"))
    )


def judge(counts: Counts, texts: Mapping[str, Sequence[str]], known: Sequence[Known]) -> Verdict:
    """Compare what ran with what is listed; `texts` has the lines of each file."""
    missed = {
        (file, number): texts[file][number - 1].strip()
        for file, lines in counts.items()
        for number, count in lines.items()
        if count == 0 and texts[file][number - 1].strip() not in ("", "}")
    }
    listed = {(entry.file, text) for entry in known for text in entry.lines}
    unknown = [(file, number, text) for (file, number), text in missed.items() if (file, text) not in listed]
    still = {(file, text) for (file, _), text in missed.items()}
    outdated = [(entry, text) for entry in known for text in entry.lines if (entry.file, text) not in still]
    return Verdict(tuple(sorted(unknown)), tuple(outdated))
