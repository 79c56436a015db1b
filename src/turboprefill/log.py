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

__all__ = ["Messages", "collect", "flush", "logger"]

logger = logging.getLogger("turboprefill.llama")
# A library is quiet until the application sets up logging.
logging.getLogger("turboprefill").addHandler(logging.NullHandler())

_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}


class Messages:
    """Warnings and errors that llama.cpp logged during one call."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.errors: list[str] = []

    def __str__(self) -> str:
        return "\n".join([*self.warnings, *self.errors])

    @property
    def reason(self) -> str:
        """The line that most likely explains why the call failed."""
        # The innermost function reports first and best; after it comes "failed to load model" and the like.
        lines = self.errors[:1] or self.warnings[-1:] or ["llama.cpp gave no reason"]
        return lines[0]


_collecting: list[Messages] = []


def flush() -> None:
    """Hand over the lines that llama.cpp wrote since the last call."""
    lines, n_dropped = core.drain_log()
    if n_dropped:
        logger.warning("%d older lines of llama.cpp's log were lost", n_dropped)
    for level, text in lines:
        severity = _LEVELS.get(level, logging.INFO)
        for messages in _collecting if severity >= logging.WARNING else ():
            (messages.errors if severity >= logging.ERROR else messages.warnings).append(text)
        logger.log(severity, "%s", text)


@contextmanager
def collect() -> Iterator[Messages]:
    """Flush afterwards and keep the warnings and errors. Another thread's may be among them."""
    messages = Messages()
    flush()
    _collecting.append(messages)
    try:
        yield messages
    finally:
        try:
            flush()
        finally:
            _collecting.remove(messages)
