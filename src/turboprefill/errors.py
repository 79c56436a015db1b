"""The exceptions of the Python API, and the base of those that the planner, the demo and the commands raise.

A message states what failed, which value was seen, what was expected and what to do next.
Arguments of a wrong type raise a plain ``TypeError``. Everything else derives from :class:`TurboPrefillError`, some
of it also from a standard exception: :class:`InvalidInputError` is a ``ValueError``.
"""

from __future__ import annotations

__all__ = [
    "AbortedError",
    "ClosedError",
    "ContextCreationError",
    "DecodeError",
    "EndpointError",
    "FatalDecodeError",
    "InUseError",
    "InvalidBatchError",
    "InvalidInputError",
    "ModelLoadError",
    "NativeModuleError",
    "NoKVSlotError",
    "StateError",
    "TurboPrefillError",
]


class TurboPrefillError(Exception):
    """Base of all errors of this package."""


class NativeModuleError(TurboPrefillError, ImportError):
    """The native module, or a file that belongs beside it, is missing or does not load."""


class ClosedError(TurboPrefillError):
    """A model or context was used after ``close()``."""


class InUseError(TurboPrefillError):
    """A context was used from its own abort callback, or decoded into while a zero-copy view of it was alive."""


class InvalidInputError(TurboPrefillError, ValueError):
    """An argument was rejected before llama.cpp saw it; nothing was computed."""


class ModelLoadError(TurboPrefillError):
    """A model file could not be loaded.

    Attributes:
        path: the file as it was given.
        log: the error lines that llama.cpp wrote while loading, possibly empty.
    """

    def __init__(self, message: str, *, path: str = "", log: str = "") -> None:
        super().__init__(message)
        self.path = path
        self.log = log


class EndpointError(TurboPrefillError):
    """An RPC endpoint could not be reached or added.

    Attributes:
        endpoint: ``host:port`` as it was given.
    """

    def __init__(self, message: str, *, endpoint: str = "") -> None:
        super().__init__(message)
        self.endpoint = endpoint


class ContextCreationError(TurboPrefillError):
    """llama.cpp refused to create a context with these options.

    Attributes:
        log: the error lines that llama.cpp wrote, possibly empty.
    """

    def __init__(self, message: str, *, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class StateError(TurboPrefillError):
    """A saved state does not belong to this model and context, or is damaged."""


class DecodeError(TurboPrefillError):
    """``llama_decode`` returned something other than 0. The context stays usable.

    Attributes:
        code: the value that ``llama_decode`` returned.
        log: the error lines that llama.cpp wrote during the call, possibly empty.
        n_decoded: tokens of this ``decode_batch`` call whose ``llama_decode`` calls had succeeded before.
    """

    def __init__(self, message: str, *, code: int, log: str = "", n_decoded: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.log = log
        self.n_decoded = n_decoded


class NoKVSlotError(DecodeError):
    """Code 1: the KV cache has no room for the batch. The failing part left no trace in the memory."""


class AbortedError(DecodeError):
    """Code 2: the abort callback stopped the decode. Processed ubatches remain in the memory."""


class InvalidBatchError(DecodeError, ValueError):
    """Code -1: llama.cpp found the batch inconsistent. The memory is unchanged."""


class FatalDecodeError(DecodeError):
    """Codes below -1: a computation failed. Processed ubatches remain in the memory."""
