"""How long-running work reports its progress, without knowing how it is displayed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

__all__ = ["Advance", "Progress", "Silent"]

# Called with how much is done, and how much there is in all (None: not known).
Advance = Callable[[float, "float | None"], None]


class Progress(Protocol):
    """Receives the progress of a running operation."""

    def note(self, message: str) -> None:
        """A sentence that stays visible."""

    def task(self, title: str, unit: str = "") -> contextlib.AbstractContextManager[Advance]:
        """Something that takes a while. ``unit`` is "bytes" or empty."""


class Silent:
    """Says nothing; for use as a library."""

    def note(self, message: str) -> None:
        """Drop the message."""

    @contextlib.contextmanager
    def task(self, title: str, unit: str = "") -> Iterator[Advance]:
        """Drop every step."""
        _ = title, unit
        yield lambda _done, _total: None
