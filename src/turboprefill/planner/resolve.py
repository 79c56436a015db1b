"""From what a user types to the devices of a plan.

Devices that are only described need no native module, so it is imported where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from turboprefill.lists import split_list
from turboprefill.planner.descriptions import from_table, from_text, read_table
from turboprefill.planner.device_spec import DeviceSpec, from_devices
from turboprefill.planner.errors import DescribedDevicesError, PlanError

if TYPE_CHECKING:
    from turboprefill.device import Device

__all__ = ["Measure", "described_devices", "find_devices"]

Measure = Callable[[Sequence["Device"]], list[DeviceSpec]]


def find_devices(
    model: str, text: str | None, endpoints: Sequence[str] = (), measure: Measure | None = None
) -> list[DeviceSpec]:
    """The devices to plan for, with measured speeds where there are any.

    Args:
        model: the model file. If it does not exist, no speeds were measured with it.
        text: a JSON file, a short description, or names of devices of this process; None for all GPUs.
        endpoints: RPC servers whose devices to plan for.
        measure: measures the speed of devices; without it, speeds that were measured earlier are used.

    Raises:
        DescribedDevicesError: devices that are only described are to be measured, or to be those of RPC servers.
        PlanError: there are no such devices.
        EndpointError: an RPC server cannot be used.
    """
    described = described_devices(text) if text else None
    if described is None:
        return _live(Path(model), split_list(text) or None, endpoints, measure)
    if measure is not None or endpoints:
        raise DescribedDevicesError(
            f"--devices {text} only describes devices, but --calibrate and --rpc need real ones: name devices of this "
            "machine, or leave one of the options out"
        )
    return described


def _live(
    model: Path, names: Sequence[str] | None, endpoints: Sequence[str], measure: Measure | None
) -> list[DeviceSpec]:
    from turboprefill.planner.live import live_devices
    from turboprefill.planner.speeds import with_stored_speeds

    devices = live_devices(names, endpoints)
    if not model.is_file():
        return from_devices(devices)
    return measure(devices) if measure is not None else with_stored_speeds(model, devices)


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
        if set(split_list(text)) <= _known():
            return None
        raise


def _known() -> set[str]:
    """Names of the devices of this process."""
    try:
        from turboprefill.device import devices

        return {device.name for device in devices()}
    except ImportError:  # without the native module there are none
        return set()
