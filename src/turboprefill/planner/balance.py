"""Contiguous layers for each device, so that the slowest device is as fast as it can be. Exact, by dynamic programming.

Three passes over "the first d devices hold the first i places", each of which only looks at where the last of the
d devices begins:

1. the smallest possible time of the slowest device;
2. of all plans that reach it, the one with the smallest sum of squared times, which is the most even one; where
   several are as even, devices in front get more (the output layer is at the end, and takes memory);
3. only if nothing fits: the smallest number of bytes by which any plan does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turboprefill.planner.errors import DoesNotFitError, PlanError

__all__ = ["Seat", "balance"]

_TIE = 1e-9  # relative; times that are closer are the same, and differ by rounding only
_NEVER = float("inf")


@dataclass(frozen=True)
class Seat:
    """A device that may take places.

    Attributes:
        times: seconds (or any unit) that each place takes there, for a whole prompt.
        memory: bytes that may be used; None for no limit.
        fixed: bytes that are needed as soon as there is at least one place.
        name: for messages.
    """

    times: Sequence[float]
    memory: int | None = None
    fixed: int = 0
    name: str = ""


def balance(sizes: Sequence[int], seats: Sequence[Seat]) -> list[int]:
    """How many places each device gets, in order.

    Args:
        sizes: bytes of each place, wherever it is.
        seats: the devices.

    Raises:
        DoesNotFitError: no plan fits; it says by how many bytes.
        PlanError: there are no devices, or times that are not numbers of at least 0.
    """
    if not seats:
        raise PlanError("there are no devices to plan for: expected at least one")
    times = [np.concatenate([[0.0], np.cumsum(np.asarray(seat.times, float))]) for seat in seats]
    if any(len(t) != len(sizes) + 1 or not np.isfinite(t).all() or (np.diff(t) < 0).any() for t in times):
        raise PlanError(f"expected {len(sizes)} times of at least 0 for each device")
    ends = np.concatenate([[0], np.cumsum(np.asarray(sizes, np.int64))])

    slowest = _slowest(ends, times, seats)
    if slowest == _NEVER:
        raise _does_not_fit(ends, seats)
    return _most_even(ends, times, seats, slowest * (1 + _TIE))


def _lacks(ends: NDArray[np.int64], seat: Seat, stop: int) -> NDArray[np.float64]:
    """For each begin 0..stop: the bytes that a device lacks for places begin..stop-1."""
    if seat.memory is None:
        return np.zeros(stop + 1)
    needs = (ends[stop] - ends[: stop + 1]).astype(float) + seat.fixed
    needs[stop] = 0.0  # without any place
    return np.asarray(np.maximum(needs - seat.memory, 0.0), float)


def _slowest(ends: NDArray[np.int64], times: Sequence[NDArray[np.float64]], seats: Sequence[Seat]) -> float:
    n = len(ends) - 1
    best = np.full(n + 1, _NEVER)
    best[0] = 0.0
    for time, seat in zip(times, seats, strict=True):
        now = np.full(n + 1, _NEVER)
        for stop in range(n + 1):
            cost = np.maximum(best[: stop + 1], time[stop] - time[: stop + 1])
            cost[_lacks(ends, seat, stop) > 0] = _NEVER
            now[stop] = cost.min()
        best = now
    return float(best[n])


def _most_even(
    ends: NDArray[np.int64], times: Sequence[NDArray[np.float64]], seats: Sequence[Seat], limit: float
) -> list[int]:
    n = len(ends) - 1
    best = np.full(n + 1, _NEVER)
    best[0] = 0.0
    begins = []  # for each device and stop: where it begins
    for time, seat in zip(times, seats, strict=True):
        now, begin = np.full(n + 1, _NEVER), np.zeros(n + 1, int)
        for stop in range(n + 1):
            own = time[stop] - time[: stop + 1]
            cost = best[: stop + 1] + own**2
            cost[(own > limit) | (_lacks(ends, seat, stop) > 0)] = _NEVER
            now[stop] = cost.min()
            # the last of the equally good begins: this device gets fewest, those before it more
            begin[stop] = int(np.flatnonzero(cost <= now[stop] * (1 + _TIE))[-1]) if now[stop] < _NEVER else 0
        best = now
        begins.append(begin)
    counts, stop = [], n
    for begin in reversed(begins):
        counts.append(stop - int(begin[stop]))
        stop = int(begin[stop])
    return counts[::-1]


def _does_not_fit(ends: NDArray[np.int64], seats: Sequence[Seat]) -> DoesNotFitError:
    n = len(ends) - 1
    best = np.full(n + 1, _NEVER)
    best[0] = 0.0
    begins = []
    for seat in seats:
        now, begin = np.full(n + 1, _NEVER), np.zeros(n + 1, int)
        for stop in range(n + 1):
            cost = best[: stop + 1] + _lacks(ends, seat, stop)
            now[stop], begin[stop] = cost.min(), int(cost.argmin())
        best = now
        begins.append(begin)
    lacking, stop = [], n
    for seat, begin in zip(reversed(seats), reversed(begins), strict=True):
        if missing := int(_lacks(ends, seat, stop)[begin[stop]]):
            lacking.append((seat.name, missing))
        stop = int(begin[stop])
    missing = int(best[n])
    where = ", ".join(f"{name or 'a device'} {bytes_ / 1e9:.2f} GB" for name, bytes_ in reversed(lacking))
    return DoesNotFitError(
        f"the model does not fit: even the best split lacks {missing:,} bytes ({where}). "
        "Use a smaller n_ctx, n_ubatch or KV type, a smaller quantisation, or more or larger devices",
        missing=missing,
        lacking=tuple(reversed(lacking)),
    )
