"""Pipeline parallelism for llama.cpp's prefill over several devices.

Names are loaded on first use: the command line tools, which also run while the native module is being
built, import this package without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turboprefill.context import Context
    from turboprefill.device import Device, devices
    from turboprefill.errors import (
        AbortedError,
        ClosedError,
        ContextCreationError,
        DecodeError,
        EndpointError,
        FatalDecodeError,
        InUseError,
        InvalidBatchError,
        InvalidInputError,
        ModelLoadError,
        NativeModuleError,
        NoKVSlotError,
        StateError,
        TurboPrefillError,
    )
    from turboprefill.memory import Memory
    from turboprefill.model import Model
    from turboprefill.stats import Perf, Span, Stage, Stats, Wait

    __version__: str

__all__ = [
    "AbortedError",
    "ClosedError",
    "Context",
    "ContextCreationError",
    "DecodeError",
    "Device",
    "EndpointError",
    "FatalDecodeError",
    "InUseError",
    "InvalidBatchError",
    "InvalidInputError",
    "Memory",
    "Model",
    "ModelLoadError",
    "NativeModuleError",
    "NoKVSlotError",
    "Perf",
    "Span",
    "Stage",
    "StateError",
    "Stats",
    "TurboPrefillError",
    "Wait",
    "__version__",
    "devices",
]

_HOME = {
    "Context": "context",
    "Device": "device",
    "Memory": "memory",
    "Model": "model",
    "Perf": "stats",
    "Span": "stats",
    "Stage": "stats",
    "Stats": "stats",
    "Wait": "stats",
    "devices": "device",
}


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("turboprefill")
    except PackageNotFoundError:
        # The build runs the command line from the source tree, before there is any metadata.
        return "0+source"


def __getattr__(name: str) -> Any:
    value: Any
    if name == "__version__":
        value = _version()
    elif name in _HOME:
        value = getattr(importlib.import_module(f"turboprefill.{_HOME[name]}"), name)
    elif name in __all__:
        value = getattr(importlib.import_module("turboprefill.errors"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
