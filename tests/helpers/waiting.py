"""Waiting for a condition that a process or a thread brings about, instead of for some time."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["until"]

_POLL_S = 0.02


def until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Return as soon as the condition holds.

    Args:
        condition: asked again and again.
        what: the failure, in words: "the workers were not started".
        seconds: so long at most; generous, because a machine may be busy.

    Raises:
        AssertionError: it did not hold in time.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} within {seconds:g} s"
        time.sleep(_POLL_S)
