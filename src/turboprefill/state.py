"""The file format of ``Context.state()``: what it belongs to, llama.cpp's state, a checksum.

llama.cpp trusts a state that it is given, and may end the process over a damaged one.
"""

from __future__ import annotations

import json
import struct
import zlib

from turboprefill.errors import StateError

__all__ = ["pack_header", "unpack"]

_MAGIC = b"TPSTATE1"
_PREFIX = struct.Struct("<8sI")
_CRC = struct.Struct("=I")


def pack_header(belongs_to: dict[str, object]) -> bytes:
    """Bytes in front of llama.cpp's state."""
    text = json.dumps(belongs_to, sort_keys=True).encode()
    return _PREFIX.pack(_MAGIC, len(text)) + text


def unpack(data: bytes | bytearray | memoryview, belongs_to: dict[str, object]) -> memoryview:
    """Llama.cpp's part of a state, without copying.

    Raises:
        StateError: it is damaged, or belongs to another model or kind of context.
    """
    view = memoryview(data).cast("B")
    if len(view) < _PREFIX.size + _CRC.size or bytes(view[:8]) != _MAGIC:
        raise StateError(f"these {len(view)} bytes are not a saved state; pass what Context.state() returned")
    _, n_text = _PREFIX.unpack(view[: _PREFIX.size])
    (crc,) = _CRC.unpack(view[-_CRC.size :])
    body = view[: -_CRC.size]
    if zlib.crc32(body) != crc:
        raise StateError("the state is damaged or cut off: its checksum is wrong; decode the prompt again")

    start = _PREFIX.size + n_text
    theirs = _parse(bytes(body[_PREFIX.size : start]))
    different = [
        f"{key} is {theirs.get(key)!r} there and {value!r} here"
        for key, value in belongs_to.items()
        if theirs.get(key) != value
    ]
    if different:
        raise StateError(f"the state belongs to another model or kind of context: {', '.join(different)}")
    return body[start:]


def _parse(text: bytes) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise StateError(f"the state's header is not JSON ({error}); pass what Context.state() returned") from error
    if not isinstance(found, dict):
        raise StateError(f"the state's header is {found!r:.50}; pass what Context.state() returned")
    return found
