"""Devices of this process, to plan for."""

from __future__ import annotations

from collections.abc import Sequence

from turboprefill import rpc
from turboprefill.device import Device, devices
from turboprefill.planner.errors import PlanError

__all__ = ["default_devices", "live_devices"]


def default_devices() -> list[Device]:
    """The GPUs that llama.cpp takes by itself: those of this machine, else an integrated one; perhaps none."""
    found = devices()
    local = [device for device in found if device.type == "gpu" and device.backend not in ("RPC", "VIRT")]
    return local or [device for device in found if device.type == "igpu"][:1]


def live_devices(names: Sequence[str] | None = None, endpoints: Sequence[str] = ()) -> list[Device]:
    """Devices of this process: by name, or those of RPC servers, or the GPUs that llama.cpp takes by itself.

    Raises:
        PlanError: there are none, or not this one.
        EndpointError: an RPC server cannot be used.
    """
    remote = [name for endpoint in endpoints for name in rpc.add_server(endpoint)]
    known = {device.name: device for device in devices()}
    if names is None:
        names = remote or [device.name for device in default_devices()]
    if not names:
        raise PlanError(
            "no GPU was found on this machine: describe the devices to plan for, as in --devices 8x80GB, or give RPC "
            "servers with --rpc"
        )
    if missing := [name for name in names if name not in known]:
        raise PlanError(f"there is no device {missing[0]!r}: expected one of {', '.join(known)}")
    return [known[name] for name in names]
