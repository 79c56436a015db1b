"""Contiguous units for each device, so that the slowest device is as fast as it can be. Exact, by dynamic programming.

A unit is what is placed on a device as a whole: a layer or, as the last one, the output.

Three passes over "the first d devices hold the first i units", each of which only looks at where the last of the
d devices begins:

1. the smallest possible time of the slowest device;
2. of all splits that reach it, the one with the smallest sum of squared times, which is the most even one; where
   several are as even, the last devices get more, as in turboprefill_balance of overlay/src/turboprefill-split.cpp
   (the last layer of most models does less for tokens without outputs);
3. only if nothing fits: the smallest number of bytes by which any split does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from turboprefill.planner.errors import DoesNotFitError, PlanError

__all__ = ["balance"]

_TIE = 1e-9  # relative; times that are closer are the same, and differ by rounding only
_NEVER = float("inf")


def balance(
    sizes: Sequence[int],
    times: Sequence[Sequence[float]],
    capacities: Sequence[int | None] | None = None,
    names: Sequence[str] | None = None,
) -> list[int]:
    """How many units each device gets, in order.

    Args:
        sizes: bytes of each unit, on whichever device it is.
        times: for each device, the seconds (or any other measure) that each unit takes there for a whole prompt.
        capacities: for each device, the bytes that its units may take; None for no limit, as for all by default.
        names: of the devices, for messages.

    Raises:
        DoesNotFitError: no split fits; it says by how many bytes.
        PlanError: there are no devices, or times that are not numbers of at least 0.
    """
    if not times:
        raise PlanError("there are no devices to plan for: expected at least one")
    sums = [np.concatenate([[0.0], np.cumsum(np.asarray(own, float))]) for own in times]
    if any(len(own) != len(sizes) + 1 or not np.isfinite(own).all() or (np.diff(own) < 0).any() for own in sums):
        raise PlanError(f"expected {len(sizes)} times of at least 0 for each device")
    limits = list(capacities) if capacities is not None else [None] * len(times)
    ends = np.concatenate([[0], np.cumsum(np.asarray(sizes, np.int64))])

    slowest = _slowest(ends, sums, limits)
    if slowest == _NEVER:
        raise _does_not_fit(ends, limits, list(names) if names is not None else [""] * len(times))
    return _most_even(ends, sums, limits, slowest * (1 + _TIE))


def _lacks(ends: NDArray[np.int64], capacity: int | None, stop: int) -> NDArray[np.float64]:
    """For each begin 0..stop: the bytes that a device lacks for units begin..stop-1."""
    if capacity is None:
        return np.zeros(stop + 1)
    lacking = np.maximum((ends[stop] - ends[: stop + 1]).astype(float) - capacity, 0.0)
    lacking[stop] = 0.0  # without any unit
    return np.asarray(lacking, float)


def _slowest(ends: NDArray[np.int64], sums: Sequence[NDArray[np.float64]], capacities: Sequence[int | None]) -> float:
    n = len(ends) - 1
    best = np.full(n + 1, _NEVER)
    best[0] = 0.0
    for time, capacity in zip(sums, capacities, strict=True):
        now = np.full(n + 1, _NEVER)
        for stop in range(n + 1):
            cost = np.maximum(best[: stop + 1], time[stop] - time[: stop + 1])
            cost[_lacks(ends, capacity, stop) > 0] = _NEVER
            now[stop] = cost.min()
        best = now
    return float(best[n])


def _most_even(
    ends: NDArray[np.int64], sums: Sequence[NDArray[np.float64]], capacities: Sequence[int | None], limit: float
) -> list[int]:
    n = len(ends) - 1
    best = np.full(n + 1, _NEVER)
    best[0] = 0.0
    begins = []  # for each device and stop: where it begins
    for time, capacity in zip(sums, capacities, strict=True):
        now, begin = np.full(n + 1, _NEVER), np.zeros(n + 1, int)
        for stop in range(n + 1):
            own = time[stop] - time[: stop + 1]
            cost = best[: stop + 1] + own**2
            cost[(own > limit) | (_lacks(ends, capacity, stop) > 0)] = _NEVER
            now[stop] = cost.min()
            # the first of the equally good begins: this device gets most, those before it fewer
            begin[stop] = int(np.argmax(cost <= now[stop] * (1 + _TIE))) if now[stop] < _NEVER else 0
        best = now
        begins.append(begin)
    return _counts(begins, n)


def _counts(begins: Sequence[NDArray[np.int64]], n_units: int) -> list[int]:
    """Units of each device, given for each device where it begins if it stops at 0..n_units."""
    counts, stop = [], n_units
    for begin in reversed(begins):
        counts.append(stop - int(begin[stop]))
        stop = int(begin[stop])
    return counts[::-1]


def _does_not_fit(ends: NDArray[np.int64], capacities: Sequence[int | None], names: Sequence[str]) -> DoesNotFitError:
    n = len(ends) - 1
    best = np.full(n + 1, _NEVER)
    best[0] = 0.0
    begins = []
    for capacity in capacities:
        now, begin = np.full(n + 1, _NEVER), np.zeros(n + 1, int)
        for stop in range(n + 1):
            cost = best[: stop + 1] + _lacks(ends, capacity, stop)
            now[stop], begin[stop] = cost.min(), int(cost.argmin())
        best = now
        begins.append(begin)
    lacking, stop = [], 0
    for capacity, name, count in zip(capacities, names, _counts(begins, n), strict=True):
        stop += count
        if missing := int(_lacks(ends, capacity, stop)[stop - count]):
            lacking.append((name, missing))
    missing = int(best[n])
    where = ", ".join(f"{name or 'a device'} {bytes_ / 1e9:.2f} GB" for name, bytes_ in lacking)
    return DoesNotFitError(
        f"the model does not fit: even the best split is {missing:,} bytes short ({where}). "
        "Use a smaller n_ctx, n_ubatch or KV cache type, a smaller quantization, or more or larger devices",
        missing=missing,
        lacking=tuple(lacking),
    )
