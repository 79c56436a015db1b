"""A device as the planner sees it: a name, memory and a speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from turboprefill.planner.cards import UNKNOWN, find_card
from turboprefill.planner.cost import Rates

if TYPE_CHECKING:
    from turboprefill.device import Device

__all__ = ["RELATIVE", "DeviceSpec", "card_source", "from_devices", "mixed"]

RELATIVE = "not measured: only ratios are meaningful"
_HEADROOM = 0.02  # of a device's free memory is left: drivers and kernels take some later


@dataclass(frozen=True)
class DeviceSpec:
    """A device that layers can be placed on.

    Attributes:
        name: as llama.cpp calls it, or as it was given.
        memory: bytes that may be used; None if that is not known.
        rates: its speed.
        source: where the speed comes from, in words.
    """

    name: str
    memory: int | None
    rates: Rates = UNKNOWN
    source: str = RELATIVE

    @property
    def timed(self) -> bool:
        """Whether the rates are seconds, rather than ratios to the other devices."""
        return self.source != RELATIVE

    def as_row(self) -> dict[str, Any]:
        """The device as a row of a table that :func:`~turboprefill.planner.descriptions.from_table` reads."""
        row: dict[str, Any] = {"name": self.name}
        if self.memory is not None:
            row["memory_gb"] = self.memory / 1e9
        if self.timed:
            return {**row, "rates": asdict(self.rates), "source": self.source}
        return {**row, "speed": UNKNOWN.per_flop / self.rates.per_flop if self.rates.per_flop else 1.0}


def from_devices(devices: Sequence[Device]) -> list[DeviceSpec]:
    """Devices of this machine, with the memory that is free now; speeds of cards that we know."""
    specs = []
    for device in devices:
        free = int(device.memory_free * (1 - _HEADROOM)) if device.memory_free or device.memory_total else None
        card = find_card(device.description)
        source = RELATIVE if card is None else card_source(card.name, measured=card.measured)
        specs.append(DeviceSpec(device.name, free, card.rates if card else UNKNOWN, source))
    return _alike(specs)


def _alike(specs: list[DeviceSpec]) -> list[DeviceSpec]:
    """If one device's speed is unknown, seconds and ratios would be mixed: then all of them count as equally fast."""
    return [replace(spec, rates=UNKNOWN, source=RELATIVE) for spec in specs] if mixed(specs) else specs


def mixed(specs: Sequence[DeviceSpec]) -> bool:
    """Whether seconds are known of some devices, and only relative speeds of others."""
    return len({spec.timed for spec in specs}) > 1


def card_source(name: str, *, measured: bool, speed: float = 1.0) -> str:
    """Where the speed of a card comes from, in words."""
    text = f"{name}, measured" if measured else f"{name}, estimated from its datasheet"
    return text if speed == 1 else f"{text}, at {speed:g}x its speed"
