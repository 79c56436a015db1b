"""Rates from measured times: least squares without negative results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from turboprefill.planner.cost import Rates, layer_cost, total
from turboprefill.planner.errors import PlanError
from turboprefill.planner.facts import Layer

__all__ = ["Sample", "fit_devices", "fit_rates", "non_negative"]

_EVEN = Rates(0, 0, 0)
_OF_ONE_MODEL = ("per_byte", "per_flop", "per_key_flop")
_SECONDS = (*_OF_ONE_MODEL, "per_layer")
_ALIKE = 1.05  # devices whose times differ by less are equal
_RATIOS = {"scan": "per_flop", "expert": "per_flop", "expert_byte": "per_byte"}


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


def fit_rates(samples: Iterable[Sample], like: Rates = _EVEN, names: Sequence[str] = _OF_ONE_MODEL) -> Rates:
    """Rates of a device, so that relative errors are small.

    Args:
        samples: times on one device.
        like: whose ratios to take, unless they are in `names`: one model's times cannot tell them from the rest.
        names: what to fit; by default three numbers. `per_layer` is 0 unless it is one of them: a model's layers have
            about the same bytes, so that its times alone cannot tell what a layer costs from what its bytes do.

    Raises:
        PlanError: there are no samples, or times of 0.
    """
    rows, values = [], []
    nothing = replace(like, **dict.fromkeys(_SECONDS, 0.0), **{name: 0.0 for name in names if name in _RATIOS})
    for sample in samples:
        scale = sample.scale or sample.seconds
        if scale <= 0 or sample.seconds < 0:
            raise PlanError(f"a measured time is {sample.seconds} s: expected a positive number")
        rows.append([_share(sample, nothing, name) / scale for name in names])
        values.append(sample.seconds / scale)
    if not any(values):
        raise PlanError("there is nothing to fit: expected at least one measured time above 0")
    matrix = np.asarray(rows)
    units = np.where(matrix.max(axis=0) > 0, matrix.max(axis=0), 1.0)
    found = dict(zip(names, map(float, non_negative(matrix / units, np.asarray(values)) / units), strict=True))
    for name in found.keys() & _RATIOS.keys():
        found[name] /= found[_RATIOS[name]] or 1.0
    return replace(nothing, **found)


def _share(sample: Sample, nothing: Rates, name: str) -> float:
    """What a sample would take if this number were 1 and the others 0; for a ratio, if it and what it is of were 1."""
    of = _RATIOS.get(name)
    with_it = replace(nothing, **{name: 1.0}, **({of: 1.0} if of else {}))
    without = replace(nothing, **{of: 1.0}) if of else nothing
    return sum(
        layer_cost(layer, with_it).seconds(sample.c, sample.p) - layer_cost(layer, without).seconds(sample.c, sample.p)
        for layer in sample.layers
    )


def fit_devices(samples: Mapping[str, Sequence[Sample]], layers: Sequence[Layer], like: Rates) -> dict[str, Rates]:
    """Rates of each device; devices that are about equally fast are taken as equal, so that noise moves no layers."""
    alone = {name: fit_rates(mine, like) for name, mine in samples.items()}
    c, p = max((sample.c, sample.p) for mine in samples.values() for sample in mine)
    speed = {name: total(layer_cost(layer, r) for layer in layers).seconds(c, p) for name, r in alone.items()}
    rates: dict[str, Rates] = {}
    group: list[str] = []
    for name in [*sorted(speed, key=lambda name: speed[name]), ""]:
        if group and (not name or speed[name] > _ALIKE * speed[group[0]]):
            together = fit_rates([sample for member in group for sample in samples[member]], like)
            rates.update(dict.fromkeys(group, together))
            group = []
        group.append(name)
    return rates
