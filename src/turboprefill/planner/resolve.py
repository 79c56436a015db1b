"""From what a user types to the devices of a plan."""

from __future__ import annotations

from pathlib import Path

from turboprefill.planner.descriptions import from_table, from_text, read_table
from turboprefill.planner.device_spec import DeviceSpec
from turboprefill.planner.errors import PlanError

__all__ = ["described_devices"]


def described_devices(text: str) -> list[DeviceSpec] | None:
    """Devices from a JSON file or a short description; None if `text` names devices of this process.

    Raises:
        PlanError: it is neither, and no description either.
    """
    path = Path(text)
    if text.endswith(".json") or path.is_file():
        return from_table(read_table(path))
    try:
        return from_text(text)
    except PlanError:
        if set(_names(text)) <= _known():
            return None
        raise


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _known() -> set[str]:
    try:
        from turboprefill.device import devices

        return {device.name for device in devices()}
    except ImportError:  # without the native module there are none
        return set()
