"""What the demo's picture shows: what each device did when, on both paths, over one time axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turboprefill import Span

__all__ = ["Bar", "Panel", "Picture", "picture_of", "rows"]

_SHORTEST_MS = 1e-3  # an axis has to end somewhere


@dataclass(frozen=True)
class Bar:
    """A device at work on one ubatch.

    Attributes:
        device: name of the device.
        ubatch: counted from 0 within its path.
        start_ms, end_ms: since the path's first span began.
    """

    device: str
    ubatch: int
    start_ms: float
    end_ms: float


@dataclass(frozen=True)
class Panel:
    """One path: its bars, how many ubatches they belong to, and milliseconds from the first start to the last end."""

    name: str
    bars: tuple[Bar, ...]
    n_ubatches: int
    length_ms: float

    @property
    def title(self) -> str:
        """Name and length."""
        return f"{self.name}: {self.length_ms:,.0f} ms"


@dataclass(frozen=True)
class Picture:
    """Both paths above each other, with a row for each of `devices`."""

    title: str
    devices: tuple[str, ...]
    panels: tuple[Panel, Panel]

    @property
    def length_ms(self) -> float:
        """Length of the time axis that the panels share."""
        return max(_SHORTEST_MS, *(panel.length_ms for panel in self.panels))


def picture_of(standard: Sequence[Span], turbo: Sequence[Span], title: str) -> Picture:
    """The standard path's timeline above TurboPrefill's."""
    panels = (_panel("standard path", standard), _panel("TurboPrefill", turbo))
    return Picture(title, tuple(rows(standard, turbo)), panels)


def rows(*paths: Sequence[Span]) -> list[str]:
    """The devices of the picture, in the order of their stages."""
    first: dict[str, int] = {}
    for span in (s for spans in paths for s in spans):
        first[span.device] = min(first.get(span.device, span.stage), span.stage)
    return sorted(first, key=lambda device: (first[device], device))


def _panel(name: str, spans: Sequence[Span]) -> Panel:
    start = min((s.t_start_us for s in spans), default=0)
    end = max((s.t_end_us for s in spans), default=0)
    order = {ubatch: i for i, ubatch in enumerate(sorted({s.ubatch for s in spans}))}
    bars = (Bar(s.device, order[s.ubatch], (s.t_start_us - start) / 1000, (s.t_end_us - start) / 1000) for s in spans)
    return Panel(name, tuple(bars), len(order), (end - start) / 1000)
