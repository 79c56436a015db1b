"""Both paths over one prompt, in one process and one context, alternating; and whether they agree to the bit."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import turboprefill

if TYPE_CHECKING:
    from turboprefill import Context, Model, Span

__all__ = ["Arm", "Note", "Result", "Workload", "busy_percent", "run"]

Note = Callable[[str], None]

_ALL_LOGITS_BYTES = 256 << 20  # of the prefix whose logits are compared at every position
_TWICE_BYTES = 1 << 30  # a model of at most this size is loaded once for each split, so that all arms alternate
_HOST = "CPU"  # looks up the embeddings in next to no time; all layers are on the other devices


@dataclass(frozen=True)
class Workload:
    """What to measure. `devices`, `rpc_servers`, `tensor_split`, `n_threads` are passed on; None: the defaults.

    `shipped_ubatch` is the size of ubatches with which the standard path is measured once more, with llama.cpp's own
    split; None: it is not.
    """

    model: str
    text: str
    n_prompt: int | None  # None: the whole text; more than the text has: the text over again
    n_ubatch: int
    n_batch: int
    repeats: int
    devices: Sequence[str] | None = None
    rpc_servers: Sequence[str] | None = None
    tensor_split: Sequence[float] | None = None
    n_threads: int | None = None
    shipped_ubatch: int | None = None


@dataclass
class Arm:
    """One path's runs: seconds per timed run, the ubatch counts of one run, and what the runs left behind."""

    name: str
    turbo: bool
    seconds: list[float] = field(default_factory=list)
    pipelined_ubatches: int = 0
    standard_ubatches: int = 0
    reason: str = ""
    logits: set[bytes] = field(default_factory=set)  # digests, one if all runs agree
    states: set[bytes] = field(default_factory=set)
    prefix_logits: set[bytes] = field(default_factory=set)
    spans: list[Span] = field(default_factory=list)


@dataclass
class Result:
    """Everything that the report and the picture need."""

    workload: Workload
    n_prompt: int
    n_text: int
    n_prefix: int
    description: str
    standard: Arm
    turbo: Arm
    stages: list[tuple[str, str]] = field(default_factory=list)  # device, transport
    devices: list[str] = field(default_factory=list)
    shipped: Arm | None = None  # the standard path with llama.cpp's own split and size of ubatches

    def tok_per_s(self, arm: Arm) -> list[float]:
        """Prompt tokens per second of each timed run."""
        return [self.n_prompt / seconds for seconds in arm.seconds]

    @property
    def speedup(self) -> float:
        """Median time of the standard path over median time with TurboPrefill."""
        return statistics.median(self.standard.seconds) / statistics.median(self.turbo.seconds)

    @property
    def speedup_over_shipped(self) -> float | None:
        """Median time of stock llama.cpp over that with TurboPrefill, if measured."""
        if self.shipped is None:
            return None
        return statistics.median(self.shipped.seconds) / statistics.median(self.turbo.seconds)

    @property
    def logits_identical(self) -> bool:
        """Whether every run gave the same logits at the last position, and every position of the prefix too."""
        last = self.standard.logits | self.turbo.logits
        prefix = self.standard.prefix_logits | self.turbo.prefix_logits
        return len(last) == 1 and len(prefix) == 1

    @property
    def state_identical(self) -> bool:
        """Whether the saved states (KV cache or recurrent state) of both paths are the same bytes."""
        return len(self.standard.states | self.turbo.states) == 1

    @property
    def identical(self) -> bool:
        """Whether logits and states of both paths are the same bytes."""
        return self.logits_identical and self.state_identical

    @property
    def pipelined(self) -> bool:
        """Whether any ubatch was pipelined; otherwise both arms are the standard path, and equal for that reason."""
        return self.turbo.pipelined_ubatches > 0


def run(workload: Workload, note: Note = lambda _: None) -> Result:
    """Load the model and measure; calls `note` with each step.

    Raises:
        TurboPrefillError: loading or decoding failed.
    """
    standard, turbo = Arm("standard", turbo=False), Arm("TurboPrefill", turbo=True)
    shipped = Arm("stock llama.cpp", turbo=False) if workload.shipped_ubatch is not None else None
    together = Path(workload.model).stat().st_size <= _TWICE_BYTES
    with ExitStack() as stack:
        if shipped is not None and not together:
            with ExitStack() as alone:
                _rounds(workload, [(_open(_as_shipped(workload), alone, note), shipped)], note)
        main = _open(workload, stack, note)
        runs = [(main, standard), (main, turbo)]
        if shipped is not None and together:
            runs.append((_open(_as_shipped(workload), stack, note), shipped))
        _rounds(workload, runs, note)
        return replace(_compare(workload, main, standard, turbo, note), shipped=shipped)


def _as_shipped(workload: Workload) -> Workload:
    return replace(workload, tensor_split=None, n_ubatch=workload.shipped_ubatch or workload.n_ubatch)


@dataclass
class _Opened:
    """A model on its devices, with a context and the prompt."""

    model: Model
    context: Context
    tokens: list[int]
    n_text: int


def _open(workload: Workload, stack: ExitStack, note: Note) -> _Opened:
    note("loading the model")
    model = stack.enter_context(_open_model(workload))
    tokens, n_text = _prompt(model, workload)
    return _Opened(model, stack.enter_context(_open_context(model, workload, len(tokens))), tokens, n_text)


def _open_model(workload: Workload) -> Model:
    options: dict[str, Any] = {"n_gpu_layers": -1, "split_mode": "layer"}
    for name in ("devices", "rpc_servers", "tensor_split"):
        if (value := getattr(workload, name)) is not None:
            options[name] = list(value)
    return turboprefill.Model(workload.model, **options)


def _open_context(model: Model, workload: Workload, n_prompt: int) -> Context:
    options: dict[str, Any] = {}
    if workload.n_threads is not None:
        options = {"n_threads": workload.n_threads, "n_threads_batch": workload.n_threads}
    return model.context(
        n_ctx=n_prompt + 64, n_batch=workload.n_batch, n_ubatch=workload.n_ubatch, turboprefill=False, **options
    )


def _prompt(model: Model, workload: Workload) -> tuple[list[int], int]:
    """The tokens to read and the number that the text has."""
    tokens = model.tokenize(workload.text)
    n_text, n = len(tokens), workload.n_prompt or len(tokens)
    while len(tokens) < n:
        tokens = tokens + tokens[1:]  # without another start-of-text token
    return tokens[:n], n_text


def _rounds(workload: Workload, runs: Sequence[tuple[_Opened, Arm]], note: Note) -> None:
    """Warm-ups, then the timed runs of all arms."""
    for opened, arm in runs:
        note(f"warm-up: {arm.name}")
        _prefill(opened.context, arm, opened.tokens)
        arm.states.add(_digest(opened.context.state()))
    for repeat in range(workload.repeats):
        # which arm goes first alternates, so that a machine that slows down or speeds up favours none
        for opened, arm in runs if repeat % 2 == 0 else runs[::-1]:
            note(f"run {repeat + 1} of {workload.repeats}: {arm.name}")
            before = opened.context.stats()
            arm.seconds.append(_prefill(opened.context, arm, opened.tokens))
            after = opened.context.stats()
            arm.pipelined_ubatches = after.n_ubatches_pipelined - before.n_ubatches_pipelined
            arm.standard_ubatches = after.n_ubatches_standard - before.n_ubatches_standard
            arm.reason = after.reason


def _compare(workload: Workload, opened: _Opened, standard: Arm, turbo: Arm, note: Note) -> Result:
    """All logits of a prefix, and timelines, of both paths with the same split."""
    model, context, tokens, arms = opened.model, opened.context, opened.tokens, (standard, turbo)
    n_prefix = _prefix_length(workload, len(tokens), model)
    for arm in arms:
        note(f"all logits of the first {n_prefix} tokens: {arm.name}")
        _prefill(context, arm, tokens[:n_prefix], every=True)
    for arm in arms:
        note(f"timeline: {arm.name}")
        with context.trace() as trace:
            _prefill(context, arm, tokens)
        arm.spans = [span for span in trace.spans if span.device != _HOST]
    stages = [(stage.device, stage.transport) for stage in context.stats().stages if stage.device != _HOST]
    devices = [device for device, _ in stages] or sorted({span.device for span in standard.spans})
    n_text = opened.n_text
    return Result(workload, len(tokens), n_text, n_prefix, _describe(model), standard, turbo, stages, devices)


def _prefill(context: Context, arm: Arm, tokens: list[int], *, every: bool = False) -> float:
    """Seconds from the first token handed over to the logits in our hands; their digest goes to `arm`."""
    context.turboprefill = arm.turbo
    context.memory.clear()
    context.synchronize()
    start = time.perf_counter()
    context.decode_batch(tokens, logits="all" if every else "last")
    logits = context.logits()
    seconds = time.perf_counter() - start
    (arm.prefix_logits if every else arm.logits).add(_digest(np.ascontiguousarray(logits)))
    return seconds


def _prefix_length(workload: Workload, n_prompt: int, model: Model) -> int:
    """Tokens of the all-logits comparison: some whole ubatches and a part of one, in one call."""
    affordable = _ALL_LOGITS_BYTES // (4 * int(model.n_vocab))
    return max(1, min(n_prompt, workload.n_batch, affordable, 3 * workload.n_ubatch + workload.n_ubatch // 2))


def _digest(data: Any) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _describe(model: Model) -> str:
    return f"{model.desc}: {model.n_params / 1e6:,.0f} million parameters, {model.size / 1e6:,.0f} MB"


def busy_percent(spans: Sequence[Span]) -> dict[str, float]:
    """For each device, the share of the time from the first span's start to the last one's end that it worked."""
    if not spans:
        return {}
    start, end = min(s.t_start_us for s in spans), max(s.t_end_us for s in spans)
    out = {}
    for device in sorted({s.device for s in spans}):
        mine = sorted((s.t_start_us, s.t_end_us) for s in spans if s.device == device)
        busy, reached = 0, start
        for begin, finish in mine:  # spans may overlap: count every moment once
            busy += max(0, finish - max(begin, reached))
            reached = max(reached, finish)
        out[device] = 100 * busy / max(1, end - start)
    return out
