"""Virtual devices: GPUs for tests and demonstrations that compute on the CPU, with properties and faults by choice.

The backend and the keys of its specification are described in docs/virtual.md.
"""

from __future__ import annotations

import ctypes
import os

from turboprefill import log
from turboprefill.device import devices
from turboprefill.errors import InvalidInputError
from turboprefill.native import core, virtual_backend_path

__all__ = ["COUNTERS", "NUMBERS", "VARIABLE", "counters", "load", "loaded", "numbers", "release"]

VARIABLE = "TURBOPREFILL_VIRTUAL"
COUNTERS = ("graphs", "copies", "faults", "events", "buffers", "bytes", "streams", "threads")
NUMBERS = (
    "graphs",
    "copies",
    "downloads",
    "buffers",
    "events",
    "new_events",
    "streams",
    "host_buffers",
    "tensors",
    "async_copies",
)


def _library() -> ctypes.CDLL:
    """The backend's own functions; opening the same file again gives the library that is already there."""
    library = ctypes.CDLL(str(virtual_backend_path()))
    for name in ("turboprefill_virtual_check", "turboprefill_virtual_configure"):
        getattr(library, name).argtypes = [ctypes.c_char_p]
        getattr(library, name).restype = ctypes.c_char_p
    library.turboprefill_virtual_counter.argtypes = [ctypes.c_char_p]
    library.turboprefill_virtual_counter.restype = ctypes.c_int64
    library.turboprefill_virtual_number.argtypes = [ctypes.c_int32, ctypes.c_char_p]
    library.turboprefill_virtual_number.restype = ctypes.c_int64
    library.turboprefill_virtual_release.argtypes = []
    library.turboprefill_virtual_release.restype = ctypes.c_int64
    return library


def _refuse(why: bytes | None) -> None:
    if why is not None:
        raise InvalidInputError(why.decode())


def loaded() -> list[str]:
    """Names of the virtual devices of this process, however they came here; empty if there are none."""
    return [device.name for device in devices() if device.backend == "VIRT"]


def load(spec: str) -> list[str]:
    """Make virtual devices, as in ``load("4,split_us=5000,peer=refused")``, and return their names.

    A process has them once. Another call gives them other properties, repairs them after a copy that failed, and
    counts what faults are numbered by from the start again; do that while no context is computing.

    Raises:
        InvalidInputError: the specification is wrong, or has another number of devices than the process already has.
        NativeModuleError: the backend is not installed, or does not load.
    """
    library = _library()
    _refuse(library.turboprefill_virtual_check(spec.encode()))
    if names := loaded():
        _refuse(library.turboprefill_virtual_configure(spec.encode()))
        return names
    os.environ[VARIABLE] = spec
    with log.collect():
        return core.load_backend(str(virtual_backend_path()))


def counters() -> dict[str, int]:
    """What was done (graphs, copies between devices, faults) and what is alive (events, buffers, their bytes, ...)."""
    library = _library()
    return {name: library.turboprefill_virtual_counter(name.encode()) for name in COUNTERS}


def numbers() -> list[dict[str, int]]:
    """What each device was asked for since it got its properties: what faults are numbered by.

    ``graphs``; ``copies`` into its memory, from the host or another device; ``downloads`` to the host; ``buffers``;
    ``events`` that were recorded, and ``new_events`` that were created; ``streams`` (backend instances);
    ``host_buffers`` of pinned memory; ``tensors`` that were initialized in its memory; ``async_copies`` into it from a
    device, itself included.
    """
    library = _library()
    return [
        {name: library.turboprefill_virtual_number(device, name.encode()) for name in NUMBERS}
        for device in range(len(loaded()))
    ]


def release() -> int:
    """Let the events happen that were lost so far (``lost_event``), and return how many; from any thread."""
    return int(_library().turboprefill_virtual_release())
