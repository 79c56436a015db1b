"""llama.cpp's log as Python logging, under the logger ``turboprefill.llama``.

llama.cpp logs from many threads, some of which must never wait for Python. Its lines are queued in C++ and handed to
logging after each call into this package, so a line may appear a little later than it was written.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from turboprefill.native import core

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Captured", "capture", "flush", "logger"]

logger = logging.getLogger("turboprefill.llama")
# A library is quiet until the application sets up logging.
logging.getLogger("turboprefill").addHandler(logging.NullHandler())

_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}


class Captured:
    """Warnings and errors that llama.cpp logged during one call."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __str__(self) -> str:
        return "\n".join(self.lines)

    @property
    def last(self) -> str:
        """The most telling line, for an error message; "" without any."""
        # The outermost function reports last and least: "failed to load model".
        telling = [line for line in self.lines if not line.endswith(("failed to load model", "failed to initialize batch"))]
        lines = [line for line in telling or self.lines if "failed to decode, ret" not in line] or self.lines
        return lines[-1] if lines else ""


_captures: list[Captured] = []


def flush() -> None:
    """Hand over the lines that llama.cpp wrote since the last call."""
    lines, n_dropped = core.drain_log()
    if n_dropped:
        logger.warning("%d older lines of llama.cpp's log were lost", n_dropped)
    for level, text in lines:
        severity = _LEVELS.get(level, logging.INFO)
        if severity >= logging.WARNING:
            for captured in _captures:
                captured.lines.append(text)
        logger.log(severity, "%s", text)


@contextmanager
def capture() -> Iterator[Captured]:
    """Flush afterwards and keep the warnings and errors. Another thread's may be among them."""
    captured = Captured()
    flush()
    _captures.append(captured)
    try:
        yield captured
    finally:
        try:
            flush()
        finally:
            _captures.remove(captured)
