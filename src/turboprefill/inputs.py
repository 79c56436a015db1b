"""What a caller may pass to ``decode_batch``, made into the arrays that the native module takes.

The whole input is checked before its first part is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Union, cast

import numpy as np

from turboprefill.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Batch", "Inputs", "Limits", "LogitsSelection", "SeqIds", "make_batch"]

Inputs = Union[Sequence[int], "NDArray[Any]"]
SeqIds = Union[int, Sequence[int], Sequence[Sequence[int]], "NDArray[Any]"]
LogitsSelection = Union[Literal["last", "all", "none"], Sequence[bool], "NDArray[np.bool_]"]

_MAX_POS = 2**31 - 2


@dataclass(frozen=True)
class Limits:
    """What a context takes: vocabulary size, width of embeddings, positions per embedding, sequences."""

    n_vocab: int
    n_embd_inp: int
    n_pos_per_embd: int
    n_seq_max: int


@dataclass(frozen=True)
class Batch:
    """Checked input of ``n`` tokens.

    Attributes:
        tokens: int32 (n,), or None with embeddings.
        embeddings: float32 (n, n_embd_inp), or None with tokens.
        pos: int32 (n_pos, n), one row but for M-RoPE embeddings.
        n_seq_id: int32 (n,), how many sequences each token belongs to.
        seq_id: int32 (sum of n_seq_id,), their ids.
        output: bool (n,), the tokens whose logits or embeddings are asked for.
    """

    tokens: NDArray[np.int32] | None
    embeddings: NDArray[np.float32] | None
    pos: NDArray[np.int32]
    n_seq_id: NDArray[np.int32]
    seq_id: NDArray[np.int32]
    output: NDArray[np.bool_]

    @property
    def n(self) -> int:
        """Number of tokens."""
        return len(self.output)

    def part(self, start: int, stop: int, *, output_all: bool) -> dict[str, Any]:
        """Arguments of the native ``decode`` for tokens start to stop - 1."""
        first = int(self.n_seq_id[:start].sum())
        last = first + int(self.n_seq_id[start:stop].sum())
        output = np.ones(stop - start, np.int8) if output_all else self.output[start:stop].astype(np.int8)
        return {
            "tokens": None if self.tokens is None else np.ascontiguousarray(self.tokens[start:stop]),
            "embd": None if self.embeddings is None else np.ascontiguousarray(self.embeddings[start:stop]),
            "pos": np.ascontiguousarray(self.pos[:, start:stop]).reshape(-1),
            "n_seq_id": np.ascontiguousarray(self.n_seq_id[start:stop]),
            "seq_id": np.ascontiguousarray(self.seq_id[first:last]),
            "output": output,
        }


def _integers(name: str, values: object, low: int, high: int) -> NDArray[np.int32]:
    """Int32 array of the same shape, with every value from low to high."""
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"{name} cannot be made into an array: {error}") from error
    if array.size == 0:
        return array.astype(np.int32)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} are {array.dtype}; expected integers")
    bad = (array < low) | (array > high)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        index = ", ".join(map(str, where))
        raise InvalidInputError(f"{name}[{index}] is {array[where]}; expected {low} to {high}")
    return array.astype(np.int32)


def _is_embeddings(inputs: object) -> bool:
    return isinstance(inputs, np.ndarray) and (inputs.ndim == 2 or inputs.dtype.kind == "f")


def _embeddings(inputs: NDArray[Any], limits: Limits) -> NDArray[np.float32]:
    if inputs.dtype != np.float32:
        raise TypeError(f"embeddings are {inputs.dtype}; expected float32 (use .astype(np.float32))")
    if inputs.ndim != 2 or inputs.shape[1] != limits.n_embd_inp:
        raise InvalidInputError(f"embeddings have shape {inputs.shape}; this model takes (n, {limits.n_embd_inp})")
    return np.ascontiguousarray(inputs)


def _seq_ids(seq_ids: SeqIds, n: int, n_seq_max: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Counts (n,) and flat ids."""
    if isinstance(seq_ids, (int, np.integer)) and not isinstance(seq_ids, bool):
        one = _integers("seq_ids", [seq_ids], 0, n_seq_max - 1)
        return np.ones(n, np.int32), np.repeat(one, n)
    try:
        n_given = -1 if isinstance(seq_ids, (str, bytes)) else len(seq_ids)  # type: ignore[arg-type] # that is asked
    except TypeError:  # no sequence, or an array without dimensions
        n_given = -1
    if n_given < 0:
        raise TypeError(f"seq_ids is {seq_ids!r}; expected an int, one int per token, or a list of ints per token")
    if n_given != n:
        raise InvalidInputError(f"seq_ids has {n_given} entries for {n} tokens")
    if isinstance(seq_ids, np.ndarray) and seq_ids.ndim == 1:
        return np.ones(n, np.int32), _integers("seq_ids", seq_ids, 0, n_seq_max - 1)

    groups: list[list[Any]] = [list(ids) if isinstance(ids, Iterable) else [ids] for ids in cast("Any", seq_ids)]
    flat = _integers("seq_ids", [s for group in groups for s in group], 0, n_seq_max - 1)
    if flat.ndim != 1:
        raise InvalidInputError(f"seq_ids holds lists of lists, {groups[0]} first; expected a list of ints per token")
    for i, group in enumerate(groups):
        if not group or len(set(group)) != len(group):
            raise InvalidInputError(f"seq_ids[{i}] is {group}; expected at least one id, each once")
    return np.array([len(group) for group in groups], np.int32), flat


def _continued(
    n_seq_id: NDArray[np.int32], seq_id: NDArray[np.int32], pos_max: Callable[[int], int]
) -> NDArray[np.int32]:
    """Positions (1, n) that continue each sequence from its own end."""
    n = len(n_seq_id)
    ids = np.unique(seq_id)
    pos = np.empty(n, np.int64)
    if len(seq_id) == n:  # one sequence per token
        for s in ids:
            chosen = seq_id == s
            pos[chosen] = pos_max(int(s)) + 1 + np.arange(int(chosen.sum()))
    else:
        following = {int(s): pos_max(int(s)) + 1 for s in ids}
        offsets = np.concatenate(([0], np.cumsum(n_seq_id)))
        for i in range(n):
            group = [int(s) for s in seq_id[offsets[i] : offsets[i + 1]]]
            ends = {following[s] for s in group}
            if len(ends) != 1:
                raise InvalidInputError(
                    f"token {i} belongs to sequences {group}, which continue at positions {sorted(ends)}; pass pos"
                )
            pos[i] = ends.pop()
            following.update(dict.fromkeys(group, int(pos[i]) + 1))
    return _integers("pos", pos, 0, _MAX_POS).reshape(1, n)


def _positions(pos: object, n: int, n_rows: int) -> NDArray[np.int32]:
    """Given positions as (n_rows, n)."""
    array = _integers("pos", pos, 0, _MAX_POS)
    if array.shape not in {(n,), (n_rows, n)}:
        expected = f"({n},)" if n_rows == 1 else f"({n},) or ({n_rows}, {n})"
        raise InvalidInputError(f"pos has shape {array.shape}; expected {expected}")
    return array.reshape(-1, n)


def _mrope_rows(pos: NDArray[np.int32], n_rows: int) -> NDArray[np.int32]:
    """One position per embedding, as M-RoPE models take it for text: equal in all sections but the unused last."""
    if len(pos) == n_rows:
        return pos
    rows = np.repeat(pos, n_rows, axis=0)
    rows[-1] = 0
    return rows


def _output(logits: LogitsSelection, n: int) -> NDArray[np.bool_]:
    if isinstance(logits, str):
        if logits not in {"last", "all", "none"}:
            raise InvalidInputError(f"logits is {logits!r}; expected 'last', 'all', 'none' or a mask of bools")
        output = np.full(n, logits == "all")
        output[-1] |= logits == "last"
        return output
    mask = np.asarray(logits)
    if mask.dtype != np.bool_:
        raise TypeError(f"logits is an array of {mask.dtype}; expected bools, one per token")
    if mask.shape != (n,):
        raise InvalidInputError(f"the logits mask has shape {mask.shape}; expected ({n},)")
    return mask.astype(np.bool_)


def make_batch(
    inputs: Inputs,
    pos: object,
    seq_ids: SeqIds,
    logits: LogitsSelection,
    *,
    limits: Limits,
    pos_max: Callable[[int], int],
) -> Batch:
    """Check what was passed to ``decode_batch``.

    Raises:
        InvalidInputError: a value or shape does not fit.
        TypeError: a value is of the wrong kind.
    """
    tokens = embeddings = None
    if _is_embeddings(inputs):
        embeddings = _embeddings(np.asarray(inputs), limits)
        n = len(embeddings)
    else:
        if isinstance(inputs, (str, bytes)):
            raise TypeError("decode_batch takes token ids, not text; use model.tokenize(text)")
        tokens = _integers("tokens", inputs, 0, limits.n_vocab - 1)
        if tokens.ndim != 1:
            raise InvalidInputError(f"tokens have shape {tokens.shape}; expected (n,)")
        n = len(tokens)
    if n == 0:
        raise InvalidInputError("the batch is empty; expected at least one token")

    n_seq_id, seq_id = _seq_ids(seq_ids, n, limits.n_seq_max)
    n_rows = 1 if embeddings is None else limits.n_pos_per_embd
    positions = _continued(n_seq_id, seq_id, pos_max) if pos is None else _positions(pos, n, n_rows)
    return Batch(
        tokens=tokens,
        embeddings=embeddings,
        pos=_mrope_rows(positions, n_rows),
        n_seq_id=n_seq_id,
        seq_id=seq_id,
        output=_output(logits, n),
    )
