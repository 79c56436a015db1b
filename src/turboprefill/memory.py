"""A context's memory: the KV cache, or the state of a recurrent model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turboprefill import log

if TYPE_CHECKING:
    from turboprefill.native import core

__all__ = ["Memory"]


class Memory:
    """Operations on sequences, from ``context.memory``.

    A range of positions is ``p0 <= pos < p1``; None leaves an end open. Sequence ids are 0 to ``n_seq_max - 1``.
    Every method raises ClosedError after the context was closed, and InvalidInputError for ids and ranges that
    llama.cpp does not support.
    """

    def __init__(self, native: core.Context) -> None:
        self._native = native

    def clear(self, data: bool = True) -> None:
        """Forget all sequences. With ``data`` the buffers are zeroed too."""
        self._native.memory_clear(data)

    def seq_rm(self, seq_id: int | None = None, p0: int | None = None, p1: int | None = None) -> bool:
        """Remove a range of a sequence (None: of all sequences).

        Returns:
            False if a part cannot be removed, as in recurrent models; whole sequences always can.
        """
        ids = range(self._native.n_seq_max) if seq_id is None else [seq_id]
        with log.collect():
            removed = [self._native.memory_seq_rm(s, *_ends(p0, p1)) for s in ids]
        return all(removed)

    def seq_cp(self, src: int, dst: int, p0: int | None = None, p1: int | None = None) -> None:
        """Make sequence ``dst`` hold what ``src`` holds; parts only in a context with ``kv_unified=True``."""
        self._native.memory_seq_cp(src, dst, *_ends(p0, p1))

    def seq_keep(self, seq_id: int) -> None:
        """Remove all other sequences."""
        self._native.memory_seq_keep(seq_id)

    def seq_add(self, seq_id: int, p0: int | None, p1: int | None, delta: int) -> None:
        """Add ``delta`` to the positions in a range. Tokens shared with other sequences move there too."""
        self._native.memory_seq_add(seq_id, *_ends(p0, p1), delta)

    def seq_pos_min(self, seq_id: int = 0) -> int:
        """Smallest position in memory, -1 if the sequence is empty. Above 0 in sliding-window models."""
        return self._native.memory_seq_pos_min(seq_id)

    def seq_pos_max(self, seq_id: int = 0) -> int:
        """Largest position in memory, -1 if the sequence is empty."""
        return self._native.memory_seq_pos_max(seq_id)

    @property
    def can_shift(self) -> bool:
        """Whether :meth:`seq_add` works with this model."""
        return self._native.memory_can_shift()


def _ends(p0: int | None, p1: int | None) -> tuple[int, int]:
    return -1 if p0 is None else p0, -1 if p1 is None else p1
