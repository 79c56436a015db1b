"""Draws the speeds of result files: `python3 benchmarks/gpu/chart.py RESULTS.json [MORE.json ...] OUT.png`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from results import Record, bound_ns, find
from table import load

_COLOURS = {
    "single": "#bbbbbb",
    "upstream": "#7f7f7f",
    "tuned": "#4c78a8",
    "turbo": "#f58518",
    "turbo-balanced": "#e45756",
    "turbo-balanced-peer": "#eeca3b",
    "turbo-balanced-staged": "#b279a2",  # of results from when peer copies were the default
    "turbo-auto": "#ff9da6",
    "nopeer-upstream": "#9d755d",
    "nopeer-turbo": "#54a24b",
}


def draw(document: dict[str, Any], path: Path) -> None:
    """One group of bars per prompt, whiskers from slowest to fastest sample, a line at the bound.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stages = document["config"]["n_devices"]
    records = [r for r in document["results"] if r["step"] not in ("correctness", "sizes") and not r["n_gen"]]
    groups = list(dict.fromkeys(r["case"] for r in records))
    arms = [arm for arm in _COLOURS if any(r["arm"] == arm for r in records)]
    figure = Figure(figsize=(max(6.0, 1.9 * len(groups)), 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.84 / max(1, len(arms))
    for i, arm in enumerate(arms):
        places, found = [], []
        for place, case in enumerate(groups):
            if record := find(records, case, arm):
                places.append(place - 0.42 + (i + 0.5) * width)
                found.append(record)
        axes.bar(places, [r["median_ts"] for r in found], width, yerr=_whiskers(found), color=_COLOURS[arm], label=arm)
    for place, case in enumerate(groups):
        single = find(records, case, "single")
        if single and single["steps_ns"]:
            bound = 1e9 * single["n_prompt"] / bound_ns(single["steps_ns"], stages)
            axes.hlines(bound, place - 0.42, place + 0.42, colors="black", linestyles="dotted", linewidth=1)
    axes.set_xticks(range(len(groups)), [case.replace(" ub", "\nub") for case in groups], fontsize=8)
    axes.set_ylabel("prompt tokens per second; dotted: a perfect pipeline")
    axes.set_title(f"{stages}x {document['config']['device_name']}", fontsize=10)
    axes.grid(axis="y", linewidth=0.3)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.savefig(path, format="png")


def _whiskers(records: list[Record]) -> list[list[float]]:
    low = [r["median_ts"] - min(r["samples_ts"]) for r in records]
    high = [max(r["samples_ts"]) - r["median_ts"] for r in records]
    return [low, high]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    draw(load(sys.argv[1:-1]), Path(sys.argv[-1]))
