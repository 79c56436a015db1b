"""Values that a context reports about its work. Times are microseconds or milliseconds as named, sizes are bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turboprefill.native import core

__all__ = ["Perf", "Span", "Stage", "Stats", "Trace", "Wait"]


@dataclass(frozen=True)
class Stage:
    """A device with its part of the model.

    Attributes:
        device: name of the device.
        transport: how the activations of the stage before arrive: ``none``, ``staged`` (through host memory)
            or ``peer`` (device to device).
        n_ubatches: ubatches that went through.
        n_bytes_in: activations received, in bytes.
    """

    device: str
    transport: str
    n_ubatches: int
    n_bytes_in: int


@dataclass(frozen=True)
class Wait:
    """How often the caller's thread waited for ubatches in flight for one reason.

    Attributes:
        n: how often.
        t_us: how long in all, in microseconds.
    """

    n: int
    t_us: int


@dataclass(frozen=True)
class Stats:
    """TurboPrefill's counters since the context was created or :meth:`Context.reset_stats`.

    Attributes:
        enabled: whether TurboPrefill is switched on.
        reason: why the last decode used the standard path for at least one ubatch; "" if it did not.
        n_ubatches_pipelined, n_ubatches_standard: ubatches by path, counted while TurboPrefill is on.
        n_tokens_pipelined, n_tokens_standard: their tokens.
        n_faults: how often a device failed, and memory lost what it had not computed.
        t_capture_us: host time spent on capturing ubatches.
        t_slot_wait_us: host time spent on waiting for a free slot.
        waits: by cause: ``result``, ``synchronize``, ``memory operation``, ``state``, ``standard-path graph``,
            ``plan``, ``growing buffer``, ``setting``, ``abort callback``, ``fault`` and ``full slots``. Every cause
            is present, even with a count of 0. The last one is not a loss: the caller is ahead of the devices.
        n_bytes_moved: bytes over stage boundaries.
        mem_host, mem_device: bytes held by slots and transport.
        n_slots: ubatches that can be in flight.
        stages: one entry per stage; empty before the first pipelined ubatch.
    """

    enabled: bool
    reason: str
    n_ubatches_pipelined: int
    n_ubatches_standard: int
    n_tokens_pipelined: int
    n_tokens_standard: int
    n_faults: int
    t_capture_us: int
    t_slot_wait_us: int
    waits: Mapping[str, Wait]
    n_bytes_moved: int
    mem_host: int
    mem_device: int
    n_slots: int
    stages: tuple[Stage, ...]

    @classmethod
    def from_native(cls, raw: core.Stats, *, enabled: bool) -> Stats:
        """Copy the native module's values."""
        return cls(
            enabled=enabled,
            reason=raw.reason,
            n_ubatches_pipelined=raw.n_ubatches_pipelined,
            n_ubatches_standard=raw.n_ubatches_standard,
            n_tokens_pipelined=raw.n_tokens_pipelined,
            n_tokens_standard=raw.n_tokens_standard,
            n_faults=raw.n_faults,
            t_capture_us=raw.t_capture_us,
            t_slot_wait_us=raw.t_slot_wait_us,
            waits={w.cause: Wait(w.n, w.t_us) for w in raw.waits},
            n_bytes_moved=raw.n_bytes_moved,
            mem_host=raw.mem_host,
            mem_device=raw.mem_device,
            n_slots=raw.n_slots,
            stages=tuple(Stage(s.device, s.transport, s.n_ubatches, s.n_bytes_in) for s in raw.stages),
        )


@dataclass(frozen=True)
class Health:
    """Whether the pipeline moves.

    Attributes:
        ok: it does, or nobody waits for it.
        stuck_s: seconds since nothing moves any more; 0 if ``ok``.
        text: which device does not answer, and what everybody else waits for; "" if ``ok``.
    """

    ok: bool
    stuck_s: float
    text: str


@dataclass(frozen=True)
class Span:
    """A device at work on one ubatch.

    Attributes:
        device: name of the device.
        stage: index of the stage.
        ubatch: counted from the start of the trace.
        pipelined: whether TurboPrefill ran it.
        t_start_us, t_end_us: on llama.cpp's clock, the same for all spans of a process.
    """

    device: str
    stage: int
    ubatch: int
    pipelined: bool
    t_start_us: int
    t_end_us: int


class Trace:
    """The timeline that :meth:`Context.trace` records; complete after its ``with`` block.

    Attributes:
        spans: in order of their end.
    """

    def __init__(self) -> None:
        self.spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Perf:
    """llama.cpp's own timings since the context was created or :meth:`Context.reset_perf`.

    Attributes:
        t_load_ms: loading the model.
        t_p_eval_ms: batches of more than one token; up to the next synchronization.
        t_eval_ms: single tokens.
        n_p_eval, n_eval: tokens of each kind.
        n_reused: graphs that llama.cpp reused.
    """

    t_load_ms: float
    t_p_eval_ms: float
    t_eval_ms: float
    n_p_eval: int
    n_eval: int
    n_reused: int
