"""How upstream shares layers between devices, and the shares that make it give all devices equally many."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np


def layers_per_device(shares: Sequence[float], n_layer: int) -> list[int]:
    """Layers that each device gets for `-ts shares`, without the output layer.

    As in llama-model.cpp: of n_layer + 1 places, place i belongs to the first device whose share of the running sum
    is above i / (n_layer + 1), in single precision. The output layer is the last place.
    """
    sums = np.cumsum(np.asarray(shares, np.float32), dtype=np.float32)
    ends = [float(end) for end in sums / sums[-1]]
    counts = [0] * len(ends)
    for layer in range(n_layer):
        counts[bisect_right(ends, float(np.float32(layer) / np.float32(n_layer + 1)))] += 1
    return counts


def balanced_shares(n_layer: int, n_device: int) -> list[int]:
    """Whole-number shares that give all devices the same number of layers, or one fewer to the last ones.

    Raises:
        ValueError: fewer layers than devices.
    """
    if not 0 < n_device <= n_layer:
        raise ValueError(f"{n_layer} layers cannot be shared by {n_device} devices: expected at least one for each")
    few, extra = divmod(n_layer, n_device)
    counts = [few + (device < extra) for device in range(n_device)]
    shares = [*counts[:-1], counts[-1] + 1]  # the last one's place for the output layer
    if (got := layers_per_device(shares, n_layer)) != counts:
        raise ValueError(f"upstream would share {n_layer} layers as {got}: expected {counts}")
    return shares
