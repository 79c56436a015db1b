"""llama.cpp's ``-ts``: which device gets which layer, and the numbers that give a device exactly the layers wanted.

A model of n layers has n + 1 places, of which the last is the output layer. llama.cpp (``load_tensors`` in
llama-model.cpp) sums the shares up, divides by the total, and gives place i to the first device whose sum is above
i / (n + 1), all in single precision.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["layers_of", "places_of", "shares_for"]


def places_of(shares: Sequence[float], n_layer: int) -> list[int]:
    """The device of each layer, and of the output layer as the last entry, for ``-ts shares`` and ``-ngl 99``.

    Raises:
        ValueError: the shares are negative or all zero.
    """
    if min(shares, default=-1) < 0 or sum(shares) <= 0:
        raise ValueError(f"the shares are {list(shares)}: expected numbers of at least 0, not all 0")
    ends = np.cumsum(np.asarray(shares, np.float32), dtype=np.float32)
    ends = ends / ends[-1]
    places = np.arange(n_layer + 1, dtype=np.float32) / np.float32(n_layer + 1)
    return [int(device) for device in np.searchsorted(ends, places, side="right")]


def layers_of(shares: Sequence[float], n_layer: int) -> list[int]:
    """The number of layers that each device gets, without the output layer."""
    places = places_of(shares, n_layer)[:-1]
    return [places.count(device) for device in range(len(shares))]


def shares_for(places: Sequence[int]) -> list[int]:
    """Whole-number shares for devices that get so many places each; the output layer counts as one.

    llama.cpp gives back exactly these places: both sides of its comparison are then the same division of the same
    whole numbers.

    Raises:
        ValueError: llama.cpp would not (no such case is known).
    """
    shares = list(places)
    got = places_of(shares, sum(shares) - 1)
    if [got.count(device) for device in range(len(shares))] != shares:
        raise ValueError(f"llama.cpp would read -ts {','.join(map(str, shares))} as {got}: expected {shares} places")
    return shares
