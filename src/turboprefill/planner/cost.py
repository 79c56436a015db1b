"""How long a ubatch takes: t(c, p) = a + b c + d c p, for c tokens after p others.

a is what every ubatch costs (reading weights, starting kernels), b what a token costs, d what a token costs for each
key it attends to. Layers with a sliding window attend to no more keys than their window.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from turboprefill.planner.facts import Layer

__all__ = ["Cost", "Rates", "flow_seconds", "layer_cost", "pipeline_seconds", "prompt_seconds", "total", "ubatches"]


@dataclass(frozen=True)
class Rates:
    """Speed of a device, as seconds per unit of work: four numbers, and three ratios.

    Attributes:
        per_byte: for each byte of weights, once in every ubatch.
        per_flop: for each operation in matrices.
        per_key_flop: for each operation between queries and keys or values.
        per_layer: for each layer, once in every ubatch: starting its kernels, whatever their size.
        scan: what a value of a recurrent state takes for a token, in operations in dense matrices.
        expert: what an operation in experts takes, in operations in dense matrices.
        expert_byte: what a byte of an expert's weights takes, in bytes of dense matrices. Few tokens meet each expert,
            so their kernels work in small pieces, which costs about the same for any number of tokens.
    """

    per_byte: float
    per_flop: float
    per_key_flop: float
    per_layer: float = 0.0
    scan: float = 0.0
    expert: float = 1.0
    expert_byte: float = 1.0

    def slower(self, factor: float) -> Rates:
        """Rates of a device that takes `factor` times as long for everything."""
        return replace(
            self,
            per_byte=self.per_byte * factor,
            per_flop=self.per_flop * factor,
            per_key_flop=self.per_key_flop * factor,
            per_layer=self.per_layer * factor,
        )

    def reading(self, layer: Layer) -> float:
        """Bytes of a layer's weights, those of experts as often as they count."""
        return layer.read_bytes + self.expert_byte * layer.expert_bytes

    def work(self, layer: Layer) -> float:
        """Operations of a layer for a token, those of experts and of recurrent states as often as they count."""
        return layer.flops + self.expert * layer.expert_flops + self.scan * layer.state_values


@dataclass(frozen=True)
class Cost:
    """Coefficients of t(c, p), in seconds. `windows` holds a window and its d for layers with sliding windows."""

    a: float = 0.0
    b: float = 0.0
    d: float = 0.0
    windows: tuple[tuple[int, float], ...] = ()

    def seconds(self, c: float, p: float) -> float:
        """Time of `c` tokens after `p` others."""
        keys = self.d * p + sum(d * min(p, window) for window, d in self.windows)
        return self.a + c * (self.b + keys)

    def many(self, c: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.float64]:
        """As :meth:`seconds`, for arrays of the same shape."""
        keys = self.d * p
        for window, d in self.windows:
            keys = keys + d * np.minimum(p, window)
        return np.asarray(self.a + c * (self.b + keys), float)

    def __add__(self, other: Cost) -> Cost:
        merged = dict(self.windows)
        for window, d in other.windows:
            merged[window] = merged.get(window, 0.0) + d
        return Cost(self.a + other.a, self.b + other.b, self.d + other.d, tuple(sorted(merged.items())))

    def __mul__(self, factor: float) -> Cost:
        return Cost(self.a * factor, self.b * factor, self.d * factor, tuple((w, d * factor) for w, d in self.windows))


def layer_cost(layer: Layer, rates: Rates) -> Cost:
    """What a layer costs on a device with these rates."""
    if not layer.flops:
        return Cost()  # prompts do not go through it
    keys = layer.key_flops * rates.per_key_flop
    return Cost(
        a=rates.per_layer + rates.reading(layer) * rates.per_byte,
        b=rates.work(layer) * rates.per_flop,
        d=0.0 if layer.window else keys,
        windows=((layer.window, keys),) if layer.window else (),
    )


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of costs."""
    return sum(costs, Cost())


def ubatches(n_tokens: int, n_ubatch: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tokens of each ubatch of a prompt, and the number of tokens before it."""
    before = np.arange(0, n_tokens, n_ubatch, dtype=float)
    return np.minimum(n_ubatch, n_tokens - before), before


def prompt_seconds(cost: Cost, n_tokens: int, n_ubatch: int) -> NDArray[np.float64]:
    """Time of each ubatch of a prompt."""
    return cost.many(*ubatches(n_tokens, n_ubatch))


def flow_seconds(times: Sequence[NDArray[np.float64]]) -> float:
    """Time until the last ubatch leaves the last stage, if nothing but devices takes time.

    Args:
        times: for each stage, the time of each ubatch. A stage starts a ubatch when it has done the one before, and
            the stage before it has done this one.
    """
    arrived = np.zeros(len(times[0]) if times else 0)
    for own in times:
        done = np.cumsum(own)
        # the latest of: an earlier ubatch arrives, and all from it on are computed without a pause
        arrived = done + np.maximum.accumulate(arrived - (done - own))
    return float(arrived[-1]) if len(arrived) else 0.0


def pipeline_seconds(times: Sequence[float] | NDArray[np.float64], n_stages: int) -> float:
    """Time of a perfect pipeline of equal stages, in each of which the ubatches take `times`."""
    values = np.asarray(times, float)
    return float(values.sum() + (n_stages - 1) * values.max(initial=0.0))
