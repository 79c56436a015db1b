"""How often each line of the overlay ran, from gcov's counters."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from turboprefill.tools.errors import ToolError

__all__ = ["Counts", "clear_counts", "read_counts"]

Counts = dict[str, dict[int, int]]  # file in the overlay -> line -> how often it ran

_OURS = re.compile(r"turboprefill[^/]*\.(?:cpp|inc|h)$")


def clear_counts(folders: Iterable[Path]) -> None:
    """Forget what earlier runs counted."""
    for folder in folders:
        for path in folder.rglob("*.gcda"):
            path.unlink()


def read_counts(folders: Iterable[Path], overlay: Path) -> Counts:
    """Sum over all objects that a line is compiled into.

    Raises:
        ToolError: gcov fails, or nothing was counted.
    """
    homes = {path.name: path.relative_to(overlay).as_posix() for path in overlay.rglob("*") if _OURS.search(path.name)}
    counts: Counts = {name: {} for name in sorted(homes.values())}
    notes = [path for folder in folders for path in sorted(folder.rglob("*.gcno"))]
    if not any(path.with_suffix(".gcda").exists() for path in notes):
        raise ToolError("nothing was counted: no program has ended normally")
    for path in notes:
        for file in _gcov(path):
            if home := homes.get(Path(str(file["file"])).name):
                _add(counts[home], file["lines"])
    return counts


def _gcov(notes: Path) -> list[dict[str, list[dict[str, int]]]]:
    command = ["gcov", "--json-format", "--stdout", str(notes)]
    done = subprocess.run(command, cwd=notes.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(f"{' '.join(command)} failed:\n{done.stderr[-500:]}")
    found: list[dict[str, list[dict[str, int]]]] = json.loads(done.stdout)["files"]
    return found


def _add(lines: dict[int, int], found: Iterable[Mapping[str, int]]) -> None:
    for line in found:
        number = line["line_number"]
        lines[number] = lines.get(number, 0) + line["count"]
