"""Where the command line writes: results to stdout, progress and errors to stderr."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from turboprefill.tools.progress import Advance, Progress

__all__ = ["Lines", "Live", "err", "out", "progress"]

# soft_wrap: paths and commands stay in one piece, so that they can be copied.
out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def progress() -> Progress:
    """Progress bars on a terminal, lines in a log."""
    return Live() if err.is_terminal else Lines()


class _Count(ProgressColumn):
    """Steps done of all steps; nothing while that is not known."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.completed:.0f}/{task.total:.0f}" if task.total else "")


class Live:
    """Bars that move."""

    def note(self, message: str) -> None:
        """Print above the bars."""
        err.print(f"[dim]{escape(message)}[/]")

    @contextlib.contextmanager
    def task(self, title: str, unit: str = "") -> Iterator[Advance]:
        """Show a bar, or a spinner while the total is not known."""
        counted: list[ProgressColumn] = [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [_Count()]
        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), *counted, TimeElapsedColumn()]
        with Bars(*columns, console=err, transient=True) as bars:
            task = bars.add_task(escape(title), total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)


class Lines:
    """A line now and then, for logs and pipes."""

    every = 5.0  # seconds

    def note(self, message: str) -> None:
        """Print one line."""
        err.print(escape(message))

    @contextlib.contextmanager
    def task(self, title: str, unit: str = "") -> Iterator[Advance]:
        """Print the title, and the progress every few seconds."""
        _ = unit  # percentages suit bytes too
        err.print(f"{escape(title)} ...")
        last = time.monotonic()

        def advance(done: float, total: float | None) -> None:
            nonlocal last
            if time.monotonic() - last >= self.every and total:
                last = time.monotonic()
                err.print(f"{escape(title)}: {100 * done / total:.0f} %")

        yield advance
