"""The demo's picture as a PNG, drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from turboprefill import plots
from turboprefill.demo.picture import Panel, Picture

__all__ = ["write"]

_ROW = 0.42  # inches per device
_EDGE = "#222222"


def write(path: Path, picture: Picture) -> None:
    """Draw `picture`.

    Raises:
        OSError: the file cannot be written.
        PlotsMissingError: matplotlib is not installed.
    """
    figure, save = plots.new_figure(path, 11, 2.2 + 2 * _ROW * max(1, len(picture.devices)))
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, panel in zip((upper, lower), picture.panels, strict=True):
        _draw_panel(axes, panel, picture.devices)
        axes.set_xlim(0, picture.length_ms * 1.01)
    lower.set_xlabel("time, ms; one colour per ubatch")
    figure.suptitle(picture.title, fontsize=11)
    save()


def _draw_panel(axes: Any, panel: Panel, devices: tuple[str, ...]) -> None:
    from matplotlib import colormaps

    colours = colormaps["viridis"]
    for row, device in enumerate(devices):
        mine = [bar for bar in panel.bars if bar.device == device]
        axes.broken_barh(
            [(bar.start_ms, bar.end_ms - bar.start_ms) for bar in mine],
            (row - 0.4, 0.8),
            facecolors=[colours(bar.ubatch / max(1, panel.n_ubatches - 1)) for bar in mine],
            edgecolor=_EDGE,
            linewidth=0.3,
        )
    axes.set_title(panel.title, loc="left", fontsize=10)
    axes.set_yticks(range(len(devices)), devices, fontsize=8)
    axes.set_ylim(max(1, len(devices)) - 0.5, -0.5)
    axes.grid(axis="x", linewidth=0.3)
    axes.set_axisbelow(True)
