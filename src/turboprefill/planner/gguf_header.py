"""The header of a GGUF in a moment: gguf's reader makes objects of every token, of which a vocabulary has many."""

from __future__ import annotations

import struct
from typing import Any

import gguf

__all__ = ["HeaderReader"]

_LONG = 4096  # elements; hyperparameters for each layer are shorter arrays
_LENGTH = struct.Struct("<Q")


class HeaderReader(gguf.GGUFReader):
    """As gguf's reader, but long arrays have no contents.

    Should gguf no longer call the method below, everything is read as it is by gguf itself, which is slow and right.
    """

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if gguf.GGUFValueType(raw_type) != gguf.GGUFValueType.ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        kind, count = int(self._get(orig_offs, "u4")[0]), int(self._get(orig_offs + 4, "u8")[0])
        item = gguf.GGUFValueType(kind)
        scalar = self.gguf_scalar_to_np.get(item)
        if count < _LONG or (scalar is None and item != gguf.GGUFValueType.STRING):
            return super()._get_field_parts(orig_offs, raw_type)
        if scalar is not None:
            size = 12 + count * scalar().nbytes
        else:
            data, at = self.data.data, orig_offs + 12
            for _ in range(count):
                at += 8 + _LENGTH.unpack_from(data, at)[0]
            size = at - orig_offs
        parts = [self._get(orig_offs, "u4"), self._get(orig_offs + 4, "u8")]
        return size, parts, [], [gguf.GGUFValueType.ARRAY, item]
