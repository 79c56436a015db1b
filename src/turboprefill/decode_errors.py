"""What the return codes of ``llama_decode`` mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turboprefill.errors import AbortedError, DecodeError, FatalDecodeError, InvalidBatchError, NoKVSlotError

if TYPE_CHECKING:
    from turboprefill.log import Messages

__all__ = ["ABORTED", "decode_error", "late_error"]

ABORTED = 2

_MEANINGS: dict[int, tuple[type[DecodeError], str]] = {
    1: (NoKVSlotError, "memory has no room for it; remove sequences, or create the context with a larger n_ctx"),
    ABORTED: (AbortedError, "stopped by the abort callback; context.memory knows how far each sequence got"),
    -1: (InvalidBatchError, "llama.cpp rejects the batch; mostly its positions do not continue the sequence"),
}
_FATAL = (FatalDecodeError, "a computation failed; see the log turboprefill.llama")


def decode_error(code: int, messages: Messages, n_decoded: int) -> DecodeError:
    """The exception for a return code other than 0."""
    kind, meaning = _MEANINGS.get(code, _FATAL)
    msg = f"llama_decode returned {code} after {n_decoded} tokens, {meaning}{_reason(code, messages)}"
    return kind(msg, code=code, log=str(messages), n_decoded=n_decoded)


def late_error(code: int, messages: Messages) -> DecodeError:
    """The exception for a device that failed after its ``llama_decode`` had returned."""
    kind, meaning = _MEANINGS.get(code, _FATAL)
    kept = "context.memory holds what was computed"
    msg = f"a device failed with code {code} after the decode had returned, {kept}; {meaning}{_reason(code, messages)}"
    return kind(msg, code=code, log=str(messages), n_decoded=0)


def _reason(code: int, messages: Messages) -> str:
    return "" if code == ABORTED else f": {messages.reason}"
