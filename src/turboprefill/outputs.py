"""The rows that one ``decode_batch`` call made.

llama.cpp keeps the outputs of its last ``llama_decode`` only. Rows of earlier parts of a long input are copied out
between the parts, which waits for the devices; the rows of the last part stay where they are until asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from turboprefill.native import core

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Outputs"]


class Outputs:
    """Rows of logits and, in a context made for them, of embeddings; in the order of the input's tokens."""

    def __init__(self, native: core.Context, widths: dict[core.OutputKind, int], n_rows: int = 0) -> None:
        self._native = native
        self._widths = widths
        self._n_rows = n_rows
        self._n_collected = 0
        self._pending: NDArray[np.int32] = np.empty(0, np.int32)  # rows of the last llama_decode that are still there
        self._arrays: dict[core.OutputKind, NDArray[np.float32]] = {}

    def made(self, rows: NDArray[np.int32], *, last: bool) -> None:
        """Note that ``llama_decode`` made these rows (indices into its own output)."""
        self._pending = rows
        if not last and len(rows):
            for kind in self._widths:
                self._copy_pending(kind)
            self._n_collected += len(rows)
            self._pending = rows[:0]

    def _copy_pending(self, kind: core.OutputKind) -> None:
        if kind not in self._arrays:
            self._arrays[kind] = np.empty((self._n_rows, self._widths[kind]), np.float32)
        stop = self._n_collected + len(self._pending)
        if len(self._pending):
            self._native.copy_outputs(kind, self._pending, self._arrays[kind][self._n_collected : stop])

    def rows(self, kind: core.OutputKind, *, copy: bool) -> NDArray[np.float32]:
        """All rows, read-only, (n_rows, width)."""
        array = self._arrays.get(kind)
        if array is not None and not array.flags.writeable:
            return array
        if not copy and len(self._pending) == self._n_rows and self._contiguous():
            first = int(self._pending[0])
            return self._native.view_outputs(kind)[first : first + self._n_rows]
        self._copy_pending(kind)
        array = self._arrays[kind]
        array.flags.writeable = False  # handed out more than once
        return array

    def _contiguous(self) -> bool:
        return len(self._pending) > 0 and int(self._pending[-1] - self._pending[0]) == len(self._pending) - 1
