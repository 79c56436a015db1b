"""Prints the tables of result files: `python3 benchmarks/gpu/table.py RESULTS.json [MORE.json ...]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from arms import ARMS
from results import Record, check, efficiency, find

_UNTIMED = "correctness"


def render(document: dict[str, Any]) -> str:
    """Markdown: the machine, every case by arm, ratios and spread, memory, and whether the arms' results agree."""
    records, config = document["results"], document["config"]
    title = (
        f"{config['n_devices']}x {config['device_name']}, llama.cpp {config['base']}, "
        f"TurboPrefill {config['overlay_version']} ({config['turboprefill_commit'] or 'commit unknown'})"
    )
    parts = [title, _overview(records), _speeds(records, config["n_devices"])]
    if "memory" in config["steps"] and config["devices"] == "cuda":
        parts.append(_memory(records))
    parts.append("\n".join(f"- {text}" for text, _ in check(records)))
    if document["notes"]:
        parts.append("\n".join(f"- {note}" for note in document["notes"]))
    return "\n\n".join(parts) + "\n"


def _overview(records: list[Record]) -> str:
    """Tokens per second of every case, one column for each arm; an arm that did not run a case has an empty cell."""
    measured = list(dict.fromkeys(record["arm"] for record in records))
    arms = sorted(measured, key=lambda arm: [*ARMS, *measured].index(arm))
    rows = []
    for case in dict.fromkeys(record["case"] for record in records):
        found = [find(records, case, arm) for arm in arms]
        once = " (first prompt, 1 sample)" if any(r and r["step"] == _UNTIMED for r in found) else ""
        rows.append((case + once, *(_speed(r["median_ts"]) if r else "" for r in found)))
    return _markdown(("case, tok/s", *arms), rows, n_left=1)


def _speed(tokens_per_second: float) -> str:
    return f"{tokens_per_second:,.0f}" if tokens_per_second >= 100 else f"{tokens_per_second:,.1f}"


def _speeds(records: list[Record], stages: int) -> str:
    rows = []
    for record in records:
        if record["step"] == _UNTIMED:
            continue
        median, samples = record["median_ts"], record["samples_ts"]
        base = find(records, record["case"], record["baseline"])
        single = find(records, record["case"], "single")
        share = efficiency(record, records, stages)
        rows.append(
            (
                record["case"],
                record["arm"],
                _speed(median),
                f"{100 * (max(samples) - min(samples)) / median:.1f} % of {len(samples)}",
                f"{median / base['median_ts']:.2f}x" if base else "",
                f"{100 * share:.0f} %" if share else "",
                f"{median / single['median_ts']:.2f}x" if single else "",
            )
        )
    return _markdown(("case", "arm", "tok/s", "spread", "of upstream", "of the bound", "of 1 GPU"), rows)


def _memory(records: list[Record]) -> str:
    rows = []
    for record in records:
        if record["n_gen"] or record["step"] == _UNTIMED:
            continue
        turbo = record["turboprefill"] or {}
        used, context = record["device_bytes"], record["context_bytes"]
        rows.append(
            (
                record["case"],
                record["arm"],
                f"{max(used) / 1e6:,.0f}",
                f"{sum(used) / 1e6:,.0f}",
                f"{sum(context) / 1e6:,.0f}",
                *(f"{turbo[key] / 1e6:,.1f}" if turbo.get("enabled") else "" for key in ("mem_device", "mem_host")),
                str(turbo["n_slots"]) if turbo.get("enabled") else "",
            )
        )
    head = ("case", "arm", "fullest GPU, MB", "all GPUs, MB", "context, MB", "slots, MB", "on host, MB", "slots")
    return _markdown(head, rows)


def _markdown(head: tuple[str, ...], rows: Iterable[tuple[str, ...]], n_left: int = 2) -> str:
    rule = [*["---"] * n_left, *["---:"] * (len(head) - n_left)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def load(paths: Iterable[str]) -> dict[str, Any]:
    """One document from one or several files of the same machine; the first one's configuration."""
    documents = [json.loads(Path(path).read_text()) for path in paths]
    merged: dict[str, Any] = documents[0]
    for other in documents[1:]:
        merged["results"] += other["results"]
        merged["notes"] += other["notes"]
    return merged


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.stdout.write(render(load(sys.argv[1:])))
