"""Devices that need not be here: described by a table, or in short as in ``8x80GB``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from turboprefill.planner.cards import CARDS, UNKNOWN, card_of, find_card
from turboprefill.planner.cost import Rates
from turboprefill.planner.device_spec import DeviceSpec, card_source, mixed
from turboprefill.planner.errors import PlanError

__all__ = ["from_table", "from_text", "read_table"]

_UNITS = {"gb": 10**9, "gib": 2**30, "mb": 10**6, "mib": 2**20}
_PART = re.compile(r"(?:(\d+)\s*x\s*)?([^@*]+?)(?:@([\d.]+))?", re.IGNORECASE)
_MEMORY = re.compile(r"([\d.]+)\s*(gb|gib|mb|mib)", re.IGNORECASE)
_KEYS = {"name", "count", "memory_gb", "speed", "card", "tflops", "bandwidth_gbs", "rates", "source"}


def _described_alike(devices: list[DeviceSpec]) -> list[DeviceSpec]:
    """Devices whose speeds were said in the same way."""
    if mixed(devices):
        names = ", ".join(device.name for device in devices if not device.timed)
        raise PlanError(
            f"some devices are known cards, but {names} has only a relative speed: give a card (or tflops and "
            "bandwidth_gbs) for all devices, or for none"
        )
    return devices


def from_text(text: str) -> list[DeviceSpec]:
    """Devices in short: ``8x80GB``, ``4xH200``, ``2x24GB,1x12GB@0.5``; a number after @ is a speed, 1 by default.

    Raises:
        PlanError: it cannot be understood.
    """
    devices: list[DeviceSpec] = []
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        if not match:
            raise PlanError(_unknown(part))
        count, what, speed = int(match[1] or 1), match[2].strip(), _speed(match[3] or 1, part)
        memory = _MEMORY.fullmatch(what)
        card = find_card(what)
        if memory:
            size = int(float(memory[1]) * _UNITS[memory[2].lower()])
            device = DeviceSpec("", size, UNKNOWN.slower(1 / speed))
        elif card:
            source = card_source(card.name, measured=card.measured, speed=speed)
            device = DeviceSpec("", card.memory, card.rates.slower(1 / speed), source)
        else:
            raise PlanError(_unknown(part))
        if not 0 < count <= 1024:
            raise PlanError(f"{part.strip()!r} means {count} devices: expected 1 to 1024")
        devices += [replace(device, name=f"GPU{len(devices) + i}") for i in range(count)]
    return _described_alike(devices)


def _speed(value: Any, where: str) -> float:
    try:
        speed = float(value)
    except (TypeError, ValueError):
        speed = 0.0
    if not 0 < speed < 1e6:
        raise PlanError(f"the speed of {where.strip()!r} is {value!r}: expected a number above 0, 1 for full speed")
    return speed


def _unknown(part: str) -> str:
    names = ", ".join(card.name for card in CARDS.values())
    return (
        f"{part.strip()!r} does not describe devices: expected COUNTxMEMORY as in 8x80GB, COUNTxCARD with one of "
        f"{names}, the name of a device as `turboprefill doctor` shows it, or a JSON file (docs/planner.md)"
    )


def from_table(data: Any) -> list[DeviceSpec]:
    """Devices from a table as JSON has it: a list of objects, or an object with that list as ``devices``.

    Each has ``memory_gb``, and its speed as one of: ``rates`` (of a calibration), ``card``, ``tflops`` with
    ``bandwidth_gbs``, or ``speed`` relative to the others; ``count`` for several alike; ``name``.

    Raises:
        PlanError: something is missing, wrong or unknown.
    """
    rows = data.get("devices") if isinstance(data, Mapping) else data
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise PlanError('the table of devices has no rows: expected {"devices": [{"memory_gb": 80}, ...]}')
    devices: list[DeviceSpec] = []
    for row in rows:
        if unknown := set(row) - _KEYS:
            raise PlanError(f"unknown key {sorted(unknown)[0]!r} of a device: expected {', '.join(sorted(_KEYS))}")
        for _ in range(int(row.get("count", 1))):
            name = str(row.get("name", f"GPU{len(devices)}"))
            devices.append(_row(row, name))
    return _described_alike(devices)


def _row(row: Mapping[str, Any], name: str) -> DeviceSpec:
    speed = _speed(row.get("speed", 1), name)
    try:
        memory = None if row.get("memory_gb") is None else int(float(row["memory_gb"]) * 1e9)
        if "rates" in row:
            rates = Rates(**{key: float(value) for key, value in row["rates"].items()})
            return DeviceSpec(name, memory, rates.slower(1 / speed), str(row.get("source", "measured")))
        if "card" in row:
            card = find_card(str(row["card"]))
            if card is None:
                raise PlanError(_unknown(str(row["card"])))
        elif "tflops" in row:
            card = card_of(float(row["tflops"]), float(row["bandwidth_gbs"]), memory or 0, name)
        else:
            return DeviceSpec(name, memory, UNKNOWN.slower(1 / speed))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, PlanError):
            raise
        raise PlanError(f"device {name} is {dict(row)}: {error}") from error
    memory = card.memory if memory is None else memory
    return DeviceSpec(
        name, memory, card.rates.slower(1 / speed), card_source(card.name, measured=card.measured, speed=speed)
    )


def read_table(path: Path) -> Any:
    """The JSON of a table of devices.

    Raises:
        PlanError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlanError(f"cannot read the devices from {path}: {error}") from error
