"""Rates from measured times: least squares without negative results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from turboprefill.planner.cost import Rates
from turboprefill.planner.errors import PlanError
from turboprefill.planner.facts import Layer

__all__ = ["Sample", "fit_rates", "non_negative"]

_EVEN = Rates(0, 0, 0)


@dataclass(frozen=True)
class Sample:
    """A measured time: `c` tokens, after `p` others, through these layers.

    `scale` is the time that its error is compared with; its own by default.
    """

    layers: Sequence[Layer]
    c: int
    p: int
    seconds: float
    scale: float = 0.0


def non_negative(rows: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The x of at least 0 that minimises |rows @ x - values|; for a handful of columns.

    The best x is the plain least-squares solution for those columns that are not 0 in it: try all choices of them.
    """
    n = rows.shape[1]
    best, least = np.zeros(n), float(np.square(values).sum())
    for size in range(1, n + 1):
        for columns in combinations(range(n), size):
            x = np.zeros(n)
            x[list(columns)] = np.linalg.lstsq(rows[:, columns], values, rcond=None)[0]
            error = float(np.square(rows @ x - values).sum())
            if (x >= 0).all() and error < least:
                best, least = x, error
    return best


def fit_rates(samples: Iterable[Sample], like: Rates = _EVEN) -> Rates:
    """Rates of a device, so that relative errors are small: three parameters.

    Args:
        samples: times on one device.
        like: whose ratios for experts to take: one model's times cannot tell them from the other numbers.

    Raises:
        PlanError: there are no samples, or times of 0.
    """
    rows, values = [], []
    for sample in samples:
        scale = sample.scale or sample.seconds
        if scale <= 0 or sample.seconds < 0:
            raise PlanError(f"a measured time is {sample.seconds} s: expected more than 0")
        keys = sum(x.key_flops * (min(sample.p, x.window) if x.window else sample.p) for x in sample.layers)
        row = (
            sum(like.reading(layer) for layer in sample.layers),
            sample.c * sum(like.work(layer) for layer in sample.layers),
            sample.c * keys,
        )
        rows.append([x / scale for x in row])
        values.append(sample.seconds / scale)
    if not any(values):
        raise PlanError("there are no measured times above 0 to fit: expected at least one")
    matrix = np.asarray(rows)
    units = np.where(matrix.max(axis=0) > 0, matrix.max(axis=0), 1.0)
    per_byte, per_flop, per_key_flop = non_negative(matrix / units, np.asarray(values)) / units
    return replace(like, per_byte=float(per_byte), per_flop=float(per_flop), per_key_flop=float(per_key_flop))
