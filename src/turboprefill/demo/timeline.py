"""The picture: what each device did when, on both paths, over one time axis."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from turboprefill import Span

_ROW = 0.42  # inches per device
_EDGE = "#222222"


def rows(*paths: Sequence[Span]) -> list[str]:
    """The devices of the picture, in the order of their stages."""
    first: dict[str, int] = {}
    for span in (s for spans in paths for s in spans):
        first[span.device] = min(first.get(span.device, span.stage), span.stage)
    return sorted(first, key=lambda device: (first[device], device))


def draw(path: Path, standard: Sequence[Span], turbo: Sequence[Span], title: str) -> None:
    """Write a PNG with the standard path's timeline above TurboPrefill's.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    devices = rows(standard, turbo)
    figure = Figure(figsize=(11, 2.2 + 2 * _ROW * max(1, len(devices))), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True)
    span = max(_length_ms(standard), _length_ms(turbo), 1e-3)
    for axes, spans, name in ((upper, standard, "standard path"), (lower, turbo, "TurboPrefill")):
        _draw_path(axes, spans, devices)
        axes.set_title(f"{name}: {_length_ms(spans):,.0f} ms", loc="left", fontsize=10)
        axes.set_xlim(0, span * 1.01)
    lower.set_xlabel("time, ms; one colour per ubatch")
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, format="png")


def _length_ms(spans: Sequence[Span]) -> float:
    if not spans:
        return 0.0
    microseconds: int = max(s.t_end_us for s in spans) - min(s.t_start_us for s in spans)
    return microseconds / 1000


def _draw_path(axes: Any, spans: Sequence[Span], devices: list[str]) -> None:
    from matplotlib import colormaps

    colours = colormaps["viridis"]
    start = min((s.t_start_us for s in spans), default=0)
    order = {ubatch: i for i, ubatch in enumerate(sorted({s.ubatch for s in spans}))}
    for row, device in enumerate(devices):
        mine = [s for s in spans if s.device == device]
        axes.broken_barh(
            [((s.t_start_us - start) / 1000, (s.t_end_us - s.t_start_us) / 1000) for s in mine],
            (row - 0.4, 0.8),
            facecolors=[colours(order[s.ubatch] / max(1, len(order) - 1)) for s in mine],
            edgecolor=_EDGE,
            linewidth=0.3,
        )
    axes.set_yticks(range(len(devices)), devices, fontsize=8)
    axes.set_ylim(max(1, len(devices)) - 0.5, -0.5)
    axes.grid(axis="x", linewidth=0.3)
    axes.set_axisbelow(True)
