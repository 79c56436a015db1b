"""The part of a context that reports on its work."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from turboprefill.stats import Health, Perf, Span, Stats, Trace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from turboprefill.native import core

__all__ = ["Monitored"]


class Monitored:
    """Counters, timeline and timings of a context. Every method raises ClosedError once it is closed."""

    _native: core.Context

    def stats(self) -> Stats:
        """TurboPrefill's counters, and why the standard path was used."""
        return Stats.from_native(self._native.stats(), enabled=self._native.turboprefill)

    def health(self) -> Health:
        """Whether the pipeline moves, as its watchdog knows.

        For another thread than the one that decodes: it never waits. The watchdog looks for
        ``TURBOPREFILL_WATCHDOG_S`` seconds (default 120, 0: never) at devices that do not answer before it says so.
        """
        stuck_s, text = self._native.health()
        return Health(stuck_s == 0, stuck_s, text)

    def reset_stats(self) -> None:
        """Set the counters to zero."""
        self._native.reset_stats()

    @contextmanager
    def trace(self) -> Iterator[Trace]:
        """Record the devices' work inside a ``with`` block; ``spans`` are there after it. One at a time."""
        trace = Trace()
        self._native.trace_start()
        try:
            yield trace
        finally:
            if not self._native.closed:
                raw = self._native.trace_stop()
                trace.spans = tuple(
                    Span(s.device, s.stage, s.ubatch, s.pipelined, s.t_start_us, s.t_end_us) for s in raw
                )

    def perf(self) -> Perf:
        """llama.cpp's own timings."""
        raw = self._native.perf()
        return Perf(raw.t_load_ms, raw.t_p_eval_ms, raw.t_eval_ms, raw.n_p_eval, raw.n_eval, raw.n_reused)

    def reset_perf(self) -> None:
        """Set llama.cpp's timings to zero."""
        self._native.reset_perf()
