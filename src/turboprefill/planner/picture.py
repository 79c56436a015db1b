"""The plan as a picture: what each device holds, and how long it works."""

from __future__ import annotations

from pathlib import Path

from turboprefill import plots
from turboprefill.planner.plan import Plan

__all__ = ["draw"]

_PARTS = (("weights", "#31688e"), ("kv", "#35b779"), ("state", "#90d743"), ("buffers", "#fde725"))


def draw(path: Path, plan: Plan, title: str) -> None:
    """Write a PNG: memory on the left, share of the time on the right, a row for each device.

    Raises:
        OSError: the file cannot be written.
        PlotsMissingError: matplotlib is not installed.
    """
    rows = range(len(plan.stages))
    figure, save = plots.new_figure(path, 11, 1.6 + 0.4 * len(plan.stages))
    left, right = figure.subplots(1, 2, sharey=True)
    start = [0.0] * len(plan.stages)
    for name, colour in _PARTS:
        sizes = [getattr(stage, name) / 1e9 for stage in plan.stages]
        if any(sizes):
            left.barh(rows, sizes, left=start, color=colour, label="KV" if name == "kv" else name)
        start = [a + b for a, b in zip(start, sizes, strict=True)]
    for row, stage in enumerate(plan.stages):
        if stage.memory is not None:
            left.plot([stage.memory / 1e9] * 2, [row - 0.45, row + 0.45], color="#b00020", linewidth=1.5)
    left.set_xlabel("memory, GB (red: capacity)")
    left.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    slowest = plan.slowest_seconds or 1.0
    shares = [100 * stage.seconds / slowest for stage in plan.stages]
    bars = right.barh(rows, shares, color="#443983")
    right.bar_label(bars, [f"{stage.n_layers} layers" for stage in plan.stages], fontsize=8, padding=2)
    right.set_xlim(0, 125)
    right.set_xlabel("time for the prompt, % of the slowest stage")
    left.set_yticks(rows, [stage.device for stage in plan.stages], fontsize=8)
    left.invert_yaxis()
    figure.suptitle(title, fontsize=11)
    save()
