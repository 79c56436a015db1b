"""Options of models and contexts, checked before llama.cpp sees them. Names are llama.cpp's."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from turboprefill.errors import InvalidInputError

if TYPE_CHECKING:
    from turboprefill.native import core

__all__ = [
    "DEFAULT_UBATCH",
    "MAX_CTX",
    "check_auto_split",
    "check_context",
    "default_threads",
    "flash_attn_name",
    "integer",
    "kv_type",
    "strings",
    "tensor_split",
    "threads",
]

# What llama.cpp's own tools accept; other types end the process when the first graph is built.
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
DEFAULT_UBATCH = 512  # llama.cpp's own; "auto" takes no larger one, so that it needs no more memory than usual
MAX_CTX = 2**26  # llama.cpp's table of cells alone takes gigabytes there
_MAX_THREADS = 512
_MAX_INT = 2**31 - 1


def default_threads() -> int:
    """Half of the CPUs that this process may use, all of them up to four: about the physical cores."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return n if n <= 4 else n // 2


def integer(name: str, value: object, low: int, high: int = _MAX_INT) -> int:
    """The value as it is.

    Raises:
        TypeError: it is not an int.
        InvalidInputError: it is outside low to high.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; expected an int")
    if not low <= value <= high:
        raise InvalidInputError(f"{name} is {value}; expected {low} to {high}")
    return value


def strings(name: str, values: Sequence[str]) -> list[str]:
    """A list of strings; a single string is refused, because it is a sequence of strings too."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise TypeError(f"{name} is {values!r}; expected a list of strings")
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{name} holds {value!r}; expected strings")
    return list(values)


def tensor_split(values: Sequence[float], n_devices: int | None) -> list[float]:
    """Share of the model for each device, in any unit."""
    shares = [float(value) for value in values]
    if n_devices is not None and len(shares) != n_devices:
        raise InvalidInputError(f"tensor_split has {len(shares)} entries for {n_devices} devices")
    if not all(math.isfinite(share) and share >= 0 for share in shares) or sum(shares) <= 0:
        raise InvalidInputError(f"tensor_split is {shares}; expected shares of at least 0, not all 0")
    return shares


def check_auto_split(tensor_split: str, split_mode: str, n_gpu_layers: int) -> None:
    """Refuse a split that cannot be planned.

    Raises:
        InvalidInputError: it is a text other than "auto", or layers are not what is split, or not all of them are.
    """
    if tensor_split != "auto":
        raise InvalidInputError(f"tensor_split is {tensor_split!r}; expected shares or 'auto'")
    if split_mode != "layer" or n_gpu_layers != -1:
        raise InvalidInputError(
            f"tensor_split='auto' plans whole layers, all on devices; expected split_mode 'layer' and n_gpu_layers -1, "
            f"not {split_mode!r} and {n_gpu_layers}"
        )


def flash_attn_name(flash_attn: bool | str) -> str:
    """The native module's name of ``flash_attn``."""
    if flash_attn == "auto":
        return "auto"
    if isinstance(flash_attn, bool):
        return "on" if flash_attn else "off"
    raise InvalidInputError(f"flash_attn is {flash_attn!r}; expected 'auto', True or False")


def kv_type(name: str, value: str) -> str:
    """A type that the KV cache can have."""
    if value not in KV_TYPES:
        raise InvalidInputError(f"{name} is {value!r}; expected one of {', '.join(KV_TYPES)}")
    return value


def check_context(params: core.ContextParams, n_ctx_train: int) -> None:
    """Refuse combinations over which llama.cpp ends the process.

    Raises:
        InvalidInputError: the options do not fit together.
    """
    n_ctx = params.n_ctx or n_ctx_train
    n_batch = min(n_ctx, params.n_batch)
    if params.n_seq_max > n_batch:
        raise InvalidInputError(
            f"n_seq_max is {params.n_seq_max}, but a batch holds {n_batch} tokens (the smaller of n_ctx and n_batch); "
            "raise those or lower n_seq_max"
        )


def threads(name: str, value: int | None) -> int:
    """A number of threads, by default :func:`default_threads`."""
    return default_threads() if value is None else integer(name, value, 1, _MAX_THREADS)
