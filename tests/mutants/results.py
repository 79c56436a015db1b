"""What came of mutants, and whether that is what the catalogue expects."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mutants.catalogue import Mutant

__all__ = ["Options", "Result", "Tell", "Verdict", "show_summary", "write_json"]


class Verdict(str, enum.Enum):
    """What the tests made of a mutant."""

    KILLED = "killed"
    SURVIVED = "survived"
    ERROR = "error"  # it could not be tried


@dataclass(frozen=True)
class Result:
    """One mutant's outcome; `note` is the test that failed, or what else happened."""

    mutant: Mutant
    verdict: Verdict
    note: str = ""
    seconds: float = 0.0

    @property
    def expected(self) -> bool:
        """Whether it was killed, or survived for the reason that the catalogue gives."""
        return self.verdict is (Verdict.SURVIVED if self.mutant.survives else Verdict.KILLED)

    @property
    def line(self) -> str:
        """For the progress."""
        return f"{self.verdict.value:8} {self.mutant.id:44} {self.seconds:5.1f} s  {self.note}"

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "id": self.mutant.id,
            "file": self.mutant.file,
            "verdict": self.verdict.value,
            "expected": self.expected,
            "note": self.note,
            "survives": self.mutant.survives,
            "seconds": round(self.seconds, 2),
        }


Tell = Callable[[Result], None]


@dataclass(frozen=True)
class Options:
    """How to run mutants: how many at once, and the most seconds of one (None: by the time of its tests)."""

    jobs: int
    timeout_s: float | None = None


def show_summary(results: Sequence[Result], console: Console) -> bool:
    """Print the survivors, with reasons, and what is not as expected; whether everything is."""
    table = Table(show_edge=False, pad_edge=False)
    for column in ("mutant", "outcome"):
        table.add_column(column, no_wrap=True)
    table.add_column("reason")
    for result in results:
        if result.verdict is not Verdict.KILLED or not result.expected:
            table.add_row(result.mutant.id, result.verdict.value, escape(_reason(result)))
    if table.row_count:
        console.print(table)
    counts = [f"{sum(r.verdict is verdict for r in results)} {verdict.value}" for verdict in Verdict]
    wrong = sum(not result.expected for result in results)
    mark = f"[red]{wrong} not as expected[/]" if wrong else "[green]all as expected[/]"
    console.print(f"{len(results)} mutants: {', '.join(counts)}; {mark}")
    return not wrong


def _reason(result: Result) -> str:
    if result.verdict is Verdict.ERROR:
        return result.note
    if result.verdict is Verdict.KILLED:
        return f"killed by {result.note}: the reason why it survives is out of date: {result.mutant.survives}"
    return result.mutant.survives or "no test noticed it"


def write_json(results: Sequence[Result], path: Path) -> None:
    """Write all results to a file.

    Raises:
        OSError: the file cannot be written.
    """
    path.write_text(json.dumps([result.as_json() for result in results], indent=1) + "\n", encoding="utf-8")
