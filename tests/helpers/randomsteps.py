"""Steps of a random test: what a caller may do with a context, and hypothesis strategies that make such steps.

A step is called with a context and does the same on any; what it returns is compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from turboprefill import Context

N_SEQ = 3


@dataclass(frozen=True)
class Options:
    """Of both contexts."""

    n_ctx: int
    n_batch: int
    n_ubatch: int
    n_threads: int
    kv_unified: bool
    flash_attn: bool
    swa_full: bool
    embeddings: bool
    type_k: str


@dataclass(frozen=True)
class Properties:
    """Of the virtual devices, if it is those that compute."""

    transport: str
    peer: str
    events: str
    split_us: int
    stall_graph: int

    def __str__(self) -> str:
        """As `virtual.load` takes it."""
        stall = f",stall_graph={self.stall_graph},stall_ms=5" if self.stall_graph else ""
        return f"peer={self.peer},events={self.events},split_us={self.split_us}{stall}"


@dataclass(frozen=True)
class Decode:
    n: int
    seqs: tuple[int, ...]
    mixing: str = "blocks"  # how sequences are laid out: one after the other, in turns, or every token in all of them
    logits: str = "last"
    embeddings: bool = False
    skip: int = 0  # positions to leave out, or to go back by: an error
    seed: int = 0

    def seq_ids(self) -> list[Any]:
        if self.mixing == "shared":
            return [list(self.seqs)] * self.n
        if self.mixing == "turns":
            return [self.seqs[i % len(self.seqs)] for i in range(self.n)]
        return [self.seqs[i * len(self.seqs) // self.n] for i in range(self.n)]

    def inputs(self, ctx: Context) -> Any:
        rng = np.random.default_rng(self.seed)
        if self.embeddings:
            return rng.standard_normal((self.n, ctx.model.n_embd_inp), dtype=np.float32)
        return rng.integers(300, 1000, self.n).tolist()

    def __call__(self, ctx: Context, n: int | None = None) -> None:
        """Decode the first n tokens only, if n is given."""
        pos = None
        if self.skip:
            pos = ctx.memory.seq_pos_max(self.seqs[0]) + 1 + self.skip + np.arange(self.n)[:n]
        logits: Any = self.logits
        if logits == "mask":
            logits = np.random.default_rng(self.seed).random(self.n)[:n] < 0.2
        ctx.decode_batch(self.inputs(ctx)[:n], pos, self.seq_ids()[:n], logits)


@dataclass(frozen=True)
class Generate:
    n: int
    max_tokens: int
    seq: int

    def __call__(self, ctx: Context) -> list[int]:
        prompt = np.random.default_rng(self.n).integers(300, 1000, self.n).tolist()
        return list(ctx.generate(prompt, self.max_tokens, self.seq))


@dataclass(frozen=True)
class Abort:
    """A decode on the pipelined context whose callback stops it, or raises, after some questions."""

    decode: Decode
    allowed: int
    raises: bool


@dataclass(frozen=True)
class Fault:
    """Decodes on the pipelined context while one of its devices fails: once, or after a copy until it is repaired."""

    decodes: tuple[Decode, ...]
    device: int
    number: int
    what: str = "graph"


@dataclass(frozen=True)
class Traced:
    decode: Decode

    def __call__(self, ctx: Context) -> None:
        with ctx.trace():
            self.decode(ctx)


@dataclass(frozen=True)
class DecodeWithView:
    """Refused while a view of the outputs lives."""

    decode: Decode

    def __call__(self, ctx: Context) -> None:
        view = ctx.logits(copy=False)
        try:
            self.decode(ctx)
        finally:
            del view


@dataclass(frozen=True)
class SeqRm:
    seq: int | None
    p0: int | None
    p1: int | None

    def __call__(self, ctx: Context) -> bool:
        return ctx.memory.seq_rm(self.seq, self.p0, self.p1)


@dataclass(frozen=True)
class RmTail:
    """What a server does when a prompt has changed near its end."""

    seq: int
    n: int

    def __call__(self, ctx: Context) -> bool:
        return ctx.memory.seq_rm(self.seq, max(0, ctx.memory.seq_pos_max(self.seq) + 1 - self.n), None)


@dataclass(frozen=True)
class SeqCp:
    src: int
    dst: int
    p0: int | None
    p1: int | None

    def __call__(self, ctx: Context) -> None:
        ctx.memory.seq_cp(self.src, self.dst, self.p0, self.p1)


@dataclass(frozen=True)
class SeqKeep:
    seq: int

    def __call__(self, ctx: Context) -> None:
        ctx.memory.seq_keep(self.seq)


@dataclass(frozen=True)
class SeqAdd:
    seq: int
    p0: int | None
    p1: int | None
    delta: int

    def __call__(self, ctx: Context) -> None:
        ctx.memory.seq_add(self.seq, self.p0, self.p1, self.delta)


@dataclass(frozen=True)
class Shift:
    """A context shift: drop n tokens at the start of a sequence and move the others there."""

    seq: int
    n: int

    def __call__(self, ctx: Context) -> None:
        if ctx.memory.can_shift and ctx.memory.seq_rm(self.seq, 0, self.n):
            ctx.memory.seq_add(self.seq, self.n, None, -self.n)


@dataclass(frozen=True)
class Clear:
    data: bool

    def __call__(self, ctx: Context) -> None:
        ctx.memory.clear(self.data)


@dataclass(frozen=True)
class Synchronize:
    def __call__(self, ctx: Context) -> None:
        ctx.synchronize()


@dataclass(frozen=True)
class Positions:
    def __call__(self, ctx: Context) -> list[tuple[int, int]]:
        return [(ctx.memory.seq_pos_min(s), ctx.memory.seq_pos_max(s)) for s in range(ctx.n_seq_max)]


@dataclass(frozen=True)
class Logits:
    copy: bool = True

    def __call__(self, ctx: Context) -> bytes:
        return ctx.logits(copy=self.copy).tobytes()


@dataclass(frozen=True)
class Embeddings:
    """An error in a context that was made without."""

    copy: bool = True

    def __call__(self, ctx: Context) -> bytes:
        return ctx.embeddings(copy=self.copy).tobytes()


@dataclass(frozen=True)
class Save:
    slot: int


@dataclass(frozen=True)
class Load:
    slot: int
    damaged: bool


@dataclass(frozen=True)
class Switch:
    on: bool


@dataclass(frozen=True)
class ResetStats:
    pass


@dataclass(frozen=True)
class Sibling:
    """Another context of the same model: make it, decode there, or close it."""

    what: str


@dataclass(frozen=True)
class Check:
    pass


def _weighted(*choices: tuple[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    return st.sampled_from([s for weight, s in choices for _ in range(weight)]).flatmap(lambda s: s)


_seq = st.integers(0, N_SEQ - 1)
_slot = st.integers(0, 1)
_p = st.none() | st.integers(0, 120)


def _decodes(n_max: int, skips: Iterable[int] = (0,)) -> st.SearchStrategy[Decode]:
    one = st.builds(
        Decode,
        n=st.integers(1, n_max),
        seqs=st.tuples(_seq),
        logits=st.sampled_from(["none", "last", "none", "last", "all", "mask"]),
        embeddings=st.sampled_from([False] * 5 + [True]),
        skip=st.sampled_from([*skips]),
        seed=st.integers(0, 9),
    )
    several = st.builds(
        Decode,
        n=st.integers(1, n_max),
        seqs=st.lists(_seq, min_size=2, max_size=N_SEQ, unique=True).map(tuple),
        mixing=st.sampled_from(["blocks", "turns", "shared"]),
        logits=st.sampled_from(["none", "last", "none", "last", "all", "mask"]),
        embeddings=st.sampled_from([False] * 5 + [True]),
        seed=st.integers(0, 9),
    )
    return _weighted((3, one), (2, several))


_failing = st.builds(
    Decode,
    n=st.integers(1, 60),
    seqs=st.tuples(_seq),
    logits=st.sampled_from(["none", "none", "last", "all"]),
    seed=st.integers(0, 9),
)
_faults = st.builds(
    Fault,
    decodes=st.lists(_failing, min_size=1, max_size=3).map(tuple),
    device=st.integers(0, 2),
    number=st.integers(1, 16),
    what=st.sampled_from(["graph", "graph", "copy"]),
)

steps = _weighted(
    (16, _decodes(60)),
    (2, _decodes(200)),
    (1, _decodes(60, [-3, 2])),
    (2, st.builds(Generate, n=st.integers(1, 40), max_tokens=st.integers(0, 4), seq=_seq)),
    (2, st.builds(Abort, decode=_decodes(120), allowed=st.integers(0, 12), raises=st.booleans())),
    (1, st.builds(Traced, decode=_decodes(60))),
    (1, st.builds(DecodeWithView, decode=_decodes(60))),
    (1, st.builds(SeqRm, seq=st.none() | _seq, p0=_p, p1=_p)),
    (2, st.builds(RmTail, seq=_seq, n=st.integers(1, 40))),
    (1, st.builds(SeqCp, src=_seq, dst=_seq, p0=_p, p1=_p)),
    (1, st.builds(SeqCp, src=_seq, dst=_seq, p0=st.none(), p1=st.none())),
    (1, st.builds(SeqKeep, seq=_seq)),
    (1, st.builds(SeqAdd, seq=_seq, p0=_p, p1=_p, delta=st.integers(-20, 20))),
    (2, st.builds(Shift, seq=_seq, n=st.integers(1, 40))),
    (1, st.builds(Clear, data=st.booleans())),
    (1, st.builds(Synchronize)),
    (1, st.builds(Positions)),
    (2, st.builds(Logits, copy=st.booleans())),
    (1, st.builds(Embeddings, copy=st.booleans())),
    (1, st.builds(Save, slot=_slot)),
    (1, st.builds(Load, slot=_slot, damaged=st.sampled_from([False] * 5 + [True]))),
    (2, st.builds(Switch, on=st.booleans())),
    (1, st.builds(ResetStats)),
    (2, st.builds(Sibling, what=st.sampled_from(["make", "decode", "decode", "close"]))),
    (2, st.builds(Check)),
)
steps_and_faults = _weighted((12, steps), (1, _faults))

options = st.builds(
    Options,
    n_ctx=st.sampled_from([256, 768, 1536]),
    n_batch=st.integers(16, 64),
    n_ubatch=st.integers(4, 16),
    n_threads=st.integers(1, 2),
    kv_unified=st.booleans(),
    flash_attn=st.booleans(),
    swa_full=st.booleans(),
    embeddings=st.sampled_from([False] * 5 + [True]),
    type_k=st.sampled_from(["f16", "f16", "q8_0"]),
)

properties = st.builds(
    Properties,
    transport=st.sampled_from(["staged", "peer"]),
    peer=st.sampled_from(["async", "blocking", "refused"]),
    events=st.sampled_from(["on", "on", "off"]),
    split_us=st.sampled_from([0, 0, 200]),
    stall_graph=st.sampled_from([0, 0, 7]),
)
