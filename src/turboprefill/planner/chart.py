"""A sweep as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from turboprefill import plots

__all__ = ["draw_sweep"]


def draw_sweep(
    path: Path,
    xs: Sequence[int],
    lines: dict[str, Sequence[float | None]],
    *,
    label: str,
    title: str,
    mark: int | None = None,
) -> None:
    """Write a PNG with tokens per second over `xs`; `mark` is where the next device stops paying.

    Raises:
        OSError: the file cannot be written.
        PlotsMissingError: matplotlib is not installed.
    """
    figure, save = plots.new_figure(path, 8, 4.5)
    axes = figure.subplots()
    for (name, values), style in zip(lines.items(), ("o-", "s--", ":"), strict=False):
        points = [(x, value) for x, value in zip(xs, values, strict=True) if value]
        axes.plot([x for x, _ in points], [v for _, v in points], style, label=name, markersize=4)
    if mark is not None:
        axes.axvline(mark, color="#b00020", linewidth=1)
        axes.annotate("beyond this, a device adds less than half its throughput", (mark, 0), rotation=90, fontsize=7,
                      xytext=(3, 5), textcoords="offset points", va="bottom")  # fmt: skip
    if label != "devices":
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(xs), [f"{x:,}" for x in xs], fontsize=8, rotation=45)
        axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_ylabel("predicted throughput, tokens per second")
    axes.set_ylim(bottom=0)
    axes.grid(linewidth=0.3)
    axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    save()
