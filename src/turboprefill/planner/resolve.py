"""From what a user types to the devices of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from turboprefill.planner.descriptions import from_table, from_text, read_table
from turboprefill.planner.device_spec import DeviceSpec
from turboprefill.planner.errors import PlanError

if TYPE_CHECKING:
    from turboprefill.device import Device

__all__ = ["default_devices", "described_devices", "live_devices"]


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
    import turboprefill

    try:
        return {device.name for device in turboprefill.devices()}
    except ImportError:  # without the native module there are none
        return set()


def default_devices() -> list[Device]:
    """The GPUs that llama.cpp takes by itself: those of this machine, else an integrated one; perhaps none."""
    import turboprefill

    found = turboprefill.devices()
    local = [device for device in found if device.type == "gpu" and device.backend not in ("RPC", "VIRT")]
    return local or [device for device in found if device.type == "igpu"][:1]


def live_devices(names: Sequence[str] | None = None, endpoints: Sequence[str] = ()) -> list[Device]:
    """Devices of this process: by name, or those of RPC servers, or the GPUs that llama.cpp takes by itself.

    Raises:
        PlanError: there are none, or not this one.
        EndpointError: an RPC server cannot be used.
    """
    import turboprefill
    from turboprefill import rpc

    remote = [name for endpoint in endpoints for name in rpc.add_server(endpoint)]
    known = {device.name: device for device in turboprefill.devices()}
    if names is None:
        names = remote or [device.name for device in default_devices()]
    if not names:
        raise PlanError(
            "there is no GPU here: name the devices to plan for with --devices, as in --devices 8x80GB, or give "
            "RPC servers with --rpc"
        )
    if missing := [name for name in names if name not in known]:
        raise PlanError(f"there is no device {missing[0]!r}: expected some of {', '.join(known)}")
    return [known[name] for name in names]
