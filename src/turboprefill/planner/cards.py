"""Speeds of graphics cards: one that we have measured, and a few scaled from it by published numbers.

The H200's rates are a fit of t(c, p) to our own single-GPU runs (listed in docs/planner-validation.md). The others are
estimates: work by the published dense BF16/FP16 tensor throughput (with float32 accumulation), reading by the
published memory bandwidth. Both say what a card could do, not what llama.cpp's kernels make of it. What each layer
costs beside that is the H200's for all cards: starting kernels is work of the host and its driver.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from turboprefill.planner.cost import Rates
from turboprefill.planner.errors import PlanError

__all__ = ["CARDS", "REFERENCE", "UNKNOWN", "Card", "find_card"]


@dataclass(frozen=True)
class Card:
    """A kind of device.

    Attributes:
        name: as one would type it.
        tflops: dense BF16/FP16 tensor operations per second, as published.
        bandwidth: GB/s of its memory, as published.
        memory: bytes.
        measured: whether the rates are a fit to measurements, rather than scaled.
    """

    name: str
    tflops: float
    bandwidth: float
    memory: int
    measured: bool = False

    @property
    def rates(self) -> Rates:
        """Measured rates, or the H200's scaled to this card."""
        work, reading = _H200.tflops / self.tflops, _H200.bandwidth / self.bandwidth
        return replace(
            REFERENCE,
            per_byte=REFERENCE.per_byte * reading,
            per_flop=REFERENCE.per_flop * work,
            per_key_flop=REFERENCE.per_key_flop * work,
        )


# benchmarks/planner/validate.py --fit prints these; docs/planner-validation.md says from which rows.
REFERENCE = Rates(
    per_byte=3.230e-13,
    per_flop=5.704e-15,
    per_key_flop=3.865e-15,
    per_layer=2.597e-4,
    scan=136.3,
    expert=1.479,
    expert_byte=7.323,
)

# For devices of which no more than relative speeds are known. Seconds for a layer would mean nothing on a device that
# may be much slower: here they are put onto the bytes of a large dense model's layer, 469 MB.
_PER_BYTE = REFERENCE.per_byte + REFERENCE.per_layer / 469e6
UNKNOWN = replace(
    REFERENCE,
    per_byte=_PER_BYTE,
    per_layer=0.0,
    expert_byte=REFERENCE.expert_byte * REFERENCE.per_byte / _PER_BYTE,
)

_H200 = Card("H200", 989, 4800, 141_000_000_000, measured=True)
CARDS = {
    card.name.lower(): card
    for card in (
        _H200,
        Card("H100", 989, 3350, 80_000_000_000),
        Card("A100", 312, 2039, 80_000_000_000),
        Card("L40S", 362, 864, 48_000_000_000),
        Card("RTX5090", 209.5, 1792, 32_000_000_000),
        Card("RTX4090", 165.2, 1008, 24_000_000_000),
        Card("RTX3090", 71, 936, 24_000_000_000),
    )
}


def find_card(name: str) -> Card | None:
    """The card that a name means: ``H200``, ``RTX 4090``, ``NVIDIA H200 SXM``; None if we know nothing."""
    text = name.lower().replace(" ", "").replace("-", "")
    if text in CARDS:
        return CARDS[text]
    return next((card for key, card in CARDS.items() if key in text), None)


def card_of(tflops: float, bandwidth: float, memory: int, name: str = "") -> Card:
    """A card described by its datasheet.

    Raises:
        PlanError: a number is not above 0.
    """
    if min(tflops, bandwidth) <= 0:
        raise PlanError(f"{name or 'a device'} has {tflops} TFLOP/s and {bandwidth} GB/s: expected both above 0")
    return Card(name, tflops, bandwidth, memory)
