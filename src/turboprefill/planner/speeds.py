"""Speeds measured earlier, kept in the cache for the same model file, devices and build."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from turboprefill import __version__
from turboprefill.device import Device
from turboprefill.native import core
from turboprefill.paths import cache_dir
from turboprefill.planner.cost import Rates
from turboprefill.planner.device_spec import DeviceSpec, from_devices

__all__ = ["MEASURED", "measured", "store_speeds", "with_stored_speeds"]

MEASURED = "measured on this machine"
_HEADER = 1 << 16  # bytes of a model file that tell it from others


def with_stored_speeds(path: Path, devices: Sequence[Device]) -> list[DeviceSpec]:
    """The devices with the speeds that were measured for this model; those of :func:`from_devices` if none were."""
    try:
        rates = json.loads(_file(path, devices).read_text(encoding="utf-8"))["rates"]
        return measured(devices, {device.name: Rates(**rates[device.name]) for device in devices})
    except (OSError, ValueError, KeyError, TypeError):
        return from_devices(devices)


def measured(devices: Sequence[Device], rates: Mapping[str, Rates]) -> list[DeviceSpec]:
    """The devices with speeds measured on this machine, given by name."""
    return [replace(spec, rates=rates[spec.name], source=MEASURED) for spec in from_devices(devices)]


def store_speeds(path: Path, devices: Sequence[Device], rates: Mapping[str, Rates]) -> None:
    """Keep the speeds of the devices, by name, with this model.

    Raises:
        OSError: the cache cannot be written.
    """
    file = _file(path, devices)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps({"rates": {name: asdict(r) for name, r in rates.items()}}, indent=1))
    partial.replace(file)


def _file(path: Path, devices: Sequence[Device]) -> Path:
    return cache_dir() / "planner" / f"{_key(path, devices)}.json"


def _key(path: Path, devices: Sequence[Device]) -> str:
    """Changes with the model file, the devices and what computes on them."""
    status = path.stat()
    with path.open("rb") as file:
        header = hashlib.blake2b(file.read(_HEADER), digest_size=16).hexdigest()
    facts = [
        [status.st_size, status.st_mtime_ns, header],
        [[d.name, d.description, d.memory_total] for d in devices],
        [__version__, core.OVERLAY_VERSION, core.llama_version()],
    ]
    return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()
