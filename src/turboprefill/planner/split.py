"""llama.cpp's ``-ts``: which device gets which layer, and the numbers that give a device exactly the layers wanted.

A model of n layers has n + 1 units, of which the last is the output. llama.cpp (``load_tensors`` in llama-model.cpp)
sums the shares up, divides by the total, and gives unit i to the first device whose sum is above i / (n + 1), all in
single precision.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["device_of_units", "equal_shares", "layers_per_device", "shares_for", "units_per_device"]


def device_of_units(shares: Sequence[float], n_layer: int) -> list[int]:
    """The index of the device of each layer, and of the output as the last entry, for ``-ts shares`` and ``-ngl 99``.

    Raises:
        ValueError: the shares are negative or all zero.
    """
    if min(shares, default=-1) < 0 or sum(shares) <= 0:
        raise ValueError(f"the shares are {list(shares)}: expected numbers of at least 0, not all 0")
    ends = np.cumsum(np.asarray(shares, np.float32), dtype=np.float32)
    ends = ends / ends[-1]
    units = np.arange(n_layer + 1, dtype=np.float32) / np.float32(n_layer + 1)
    return [int(device) for device in np.searchsorted(ends, units, side="right")]


def units_per_device(shares: Sequence[float], n_layer: int) -> list[int]:
    """The number of units (layers, and the output) that each device gets.

    Raises:
        ValueError: the shares are negative or all zero.
    """
    units = device_of_units(shares, n_layer)
    return [units.count(device) for device in range(len(shares))]


def layers_per_device(shares: Sequence[float], n_layer: int) -> list[int]:
    """The number of layers that each device gets, without the output.

    Raises:
        ValueError: the shares are negative or all zero.
    """
    layers = device_of_units(shares, n_layer)[:-1]
    return [layers.count(device) for device in range(len(shares))]


def shares_for(units: Sequence[int]) -> list[int]:
    """Whole-number shares that give each device so many units.

    llama.cpp gives back exactly these numbers: both sides of its comparison are then the same division of the same
    whole numbers.

    Raises:
        ValueError: llama.cpp would not (no such case is known).
    """
    shares = list(units)
    if (got := units_per_device(shares, sum(shares) - 1)) != shares:
        raise ValueError(f"llama.cpp would read -ts {','.join(map(str, shares))} as {got}: expected {shares} units")
    return shares


def equal_shares(n_layer: int, n_device: int) -> list[int]:
    """Whole-number shares that give all devices the same number of layers, or one fewer to the last ones.

    Raises:
        ValueError: there are fewer layers than devices.
    """
    if not 0 < n_device <= n_layer:
        raise ValueError(f"{n_layer} layers cannot be shared by {n_device} devices: expected at least one for each")
    few, extra = divmod(n_layer, n_device)
    units = [few + (device < extra) for device in range(n_device)]
    units[-1] += 1  # the output
    return shares_for(units)
