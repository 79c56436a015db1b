"""Draws predicted over measured speed: `python3 benchmarks/planner/picture.py docs/planner.png`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from validate import Row, left_out, predicted, rows, used


def draw(measured: Sequence[Row], path: Path) -> None:
    """Predicted over measured speed, a point for each row that is neither fitted nor left out."""
    figure = Figure(figsize=(6.5, 6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    rows_ = [row for row in measured if len(row.shares) > 1 and not left_out(row) and not used(row)]
    kinds = (("standard path", False, "s", "#fde725"), ("TurboPrefill", True, "o", "#31688e"))
    for name, turbo, marker, colour in kinds:
        mine = [row for row in rows_ if ("turbo" in row.arm) is turbo]
        xs = [row.n_prompt / row.seconds for row in mine]
        ys = [row.n_prompt / predicted(row) for row in mine]
        axes.scatter(xs, ys, s=28, c=colour, marker=marker, edgecolors="#222222", linewidths=0.4, alpha=0.8, label=name)
    ends = np.array([1000.0, 60000.0])
    axes.plot(ends, ends, color="#222222", linewidth=0.8)
    axes.fill_between(ends, ends * 0.93, ends * 1.07, color="#222222", alpha=0.12, linewidth=0, label="7 %")
    axes.set(xscale="log", yscale="log", xlabel="measured, tokens per second", ylabel="predicted, tokens per second")
    axes.legend(loc="upper left")
    axes.grid(linewidth=0.3, which="both")
    axes.set_title(f"{len(rows_)} prompts on 4 and 8 H200 that went into no fit", fontsize=10)
    figure.savefig(path, format="png")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    draw(list(rows()), Path(sys.argv[1]))
