"""Predictions against measurements: fits the planner's numbers to single GPUs, and predicts several.

`python3 benchmarks/planner/validate.py` prints the tables of docs/planner-validation.md; `--fit` prints the fitted
numbers, which are those in src/turboprefill/planner; `--update` writes the tables to that page.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from turboprefill.lists import split_list
from turboprefill.planner.cards import REFERENCE
from turboprefill.planner.cost import Rates, layer_cost, total
from turboprefill.planner.facts import ModelFacts
from turboprefill.planner.fit import Sample, fit_rates, non_negative
from turboprefill.planner.links import link_from
from turboprefill.planner.predict import HOST, host_of
from turboprefill.planner.presets import preset_facts
from turboprefill.planner.simulate import Host, Link, Machine, Standard, simulate
from turboprefill.planner.split import equal_shares, layers_per_device

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "planner-validation.md"
BEGIN, END = "<!-- validation: begin -->\n", "<!-- validation: end -->"
PRESETS = {"dense": "llama70", "moe": "gptoss120", "swa": "gemma3-12b", "hybrid": "granite-h-micro"}
NAMES = {"dense": "dense", "moe": "mixture of experts", "swa": "sliding window", "hybrid": "hybrid"}
EVERYTHING, OTHER_FILES = "all multi-GPU predictions", "result files that no device was fitted to"
PATHS = ("standard path", "TurboPrefill")
BLOCKING = 5.64e9  # bytes per second of a copy between GPUs that waits for them; fitted, see --fit
OLD_TABLE = "planner-8xH200"  # its provenance says that there are no raw samples
MODELS_FILE = "2026-11-21-4xH200-models"
# whose single GPUs the devices' numbers are fitted to; those of other files test them
FITTED_TO = {"dense": "2026-11-20-4xH200-no-peer", "swa": MODELS_FILE, "hybrid": MODELS_FILE, "moe": MODELS_FILE}
FITTED = ("per_layer", "per_byte", "per_flop", "per_key_flop", "scan", "expert", "expert_byte")
HOST_FITTED_TO = "2026-11-21-8xH200"
# runs of versions whose devices waited until a boundary had left
WITHOUT_OUTBOX = ("2026-11-20-4xH200-no-peer", "2026-11-20-4xH200")
NVLINK, THROUGH_HOST = link_from("nvlink"), link_from("pcie5x16")


@dataclass(frozen=True)
class Row:
    """A measurement.

    `steps` are seconds of each ubatch, of a single GPU; `capture` is host seconds for one; `staged` says whether
    TurboPrefill's boundaries went through host memory.
    """

    source: str
    model: str
    n_layer: int
    shares: tuple[float, ...]
    n_prompt: int
    n_ubatch: int
    arm: str
    seconds: float
    case: str
    steps: tuple[float, ...] = ()
    capture: float = 0.0
    staged: bool = False


def rows() -> Iterator[Row]:
    """Every measured prompt: of the benchmark's files, and of the older table."""
    for path in sorted(RESULTS.glob("20*-*xH200*.json")):
        for record in json.loads(path.read_text())["results"]:
            if record["step"] == "correctness" or record["n_gen"]:
                continue  # not timed, and no prompt
            turbo = record["turboprefill"] or {}
            n_devices = 1 if record["arm"] == "single" else len(record["devices"])
            shares, n_ubatch = _shares(record["tensor_split"], n_devices), record["n_ubatch"]
            if record["arm"] == "turbo-auto":  # chose equal layers, and a ubatch of which there were so many
                shares = _equal(record["n_layer"], n_devices)
                n_ubatch = -(-record["n_prompt"] // turbo["n_ubatches_pipelined"])
            yield Row(
                path.stem,
                record["model_filename"],
                record["n_layer"],
                shares,
                record["n_prompt"],
                n_ubatch,
                record["arm"],
                statistics.median(record["samples_ns"]) / 1e9,
                record["case"],
                tuple(ns / 1e9 for ns in record["steps_ns"]),
                turbo.get("t_capture_us", 0) / 1e6 / max(1, turbo.get("n_ubatches_pipelined", 0)),
                bool(turbo) and turbo["transports"][-1] == "staged",
            )
    table = json.loads((RESULTS / f"{OLD_TABLE}.json").read_text())
    for row in table["rows"]:
        n = row["gpus"]
        shares = _equal(row["n_layer"], n) if row["arm"] == "tuned" else (1.0,) * n
        case = f"{row['model']} pp{row['n_prompt']} ub{row['n_ubatch']}"
        seconds = row["n_prompt"] / row["tok_per_s"]
        yield Row(
            OLD_TABLE, row["model"], row["n_layer"], shares, row["n_prompt"], row["n_ubatch"], row["arm"],
            seconds, case,
        )  # fmt: skip


def _shares(text: str, n_devices: int) -> tuple[float, ...]:
    return (1.0,) * n_devices if text == "-" else tuple(map(float, split_list(text)))


def _equal(n_layer: int, n_devices: int) -> tuple[float, ...]:
    return tuple(map(float, equal_shares(n_layer, n_devices)))


@cache
def facts_of(model: str, n_layer: int) -> ModelFacts:
    """The facts of a benchmark's model."""
    return preset_facts(PRESETS[model], n_layer)


def left_out(row: Row) -> str:
    """Why a row is not predicted; "" if it is."""
    if row.arm in ("tensor", "proof-of-concept"):
        return "other multi-GPU modes"
    if row.model == "hybrid" and row.arm in ("upstream", "tuned"):
        return "the standard path visits each device twice"
    if row.model == "moe" and row.source != MODELS_FILE:
        return "older synthetic mixtures of experts whose later layers used ever fewer experts"
    if row.source.endswith("no-peer") and row.arm in ("turbo", "turbo-balanced"):
        return "an older version whose stages waited for each other on the devices"
    return ""


def predicted(row: Row, blocking: float = BLOCKING) -> float:
    """Seconds."""
    facts = facts_of(row.model, row.n_layer)
    stages, first = [], 0
    for count in layers_per_device(row.shares, row.n_layer):
        stages.append(total(layer_cost(layer, REFERENCE) for layer in facts.layers[first : first + count]))
        first += count
    turbo = "turbo" in row.arm
    link = THROUGH_HOST if row.staged else NVLINK
    rules = {
        "upstream": Standard(),
        "single": Standard(reuse=False, copies=64),
        "reuse-off": Standard(reuse=False),
        "copies16": Standard(copies=16, reuse=False),
        "tuned": Standard(copies=16, reuse=False),
        "nopeer-upstream": Standard(blocking=True),
    }.get(row.arm)
    if rules is not None and rules.blocking:
        link = Link(blocking)
    # the standard path's host works while devices do; what it does was not measured
    host = host_of(facts) if turbo else Host()
    machine = Machine(
        stages, [link] * (len(stages) - 1), host, boundary=4.0 * facts.n_embd, outbox=row.source not in WITHOUT_OUTBOX
    )
    return simulate(machine, row.n_prompt, row.n_ubatch, rules).seconds


def fit_devices(measured: Sequence[Row]) -> tuple[Rates, int]:
    """Seven numbers from the times of ubatches on a single GPU; and how many times there were.

    Each model counts as much as any other, however many times it has.
    """
    chosen = [row for row in measured if single_of_fit(row)]
    samples = []
    for row in chosen:
        layers = facts_of(row.model, row.n_layer).layers
        n_times = sum(len(other.steps) for other in chosen if other.model == row.model)
        samples += [
            Sample(layers, row.n_ubatch, i * row.n_ubatch, seconds, seconds * n_times**0.5)
            for i, seconds in enumerate(row.steps)
        ]
    return fit_rates(samples, names=FITTED), len(samples)


def fit_host(measured: Sequence[Row]) -> tuple[Host, int]:
    """Two numbers from the capture times that runs have counted."""
    table, values = [], []
    for row in measured:
        if row.capture and row.source == HOST_FITTED_TO:
            cells = statistics.fmean(
                Host(per_cell=1, masks=1).seconds(row.n_ubatch, p) for p in range(0, row.n_prompt, row.n_ubatch)
            )
            masks = host_of(facts_of(row.model, row.n_layer)).masks
            table.append([1 / row.capture, masks * cells / row.capture])
            values.append(1.0)
    matrix = np.asarray(table)
    scale = matrix.max(axis=0)
    a, b = non_negative(matrix / scale, np.asarray(values)) / scale
    return Host(per_ubatch=float(a), per_cell=float(b)), len(values)


def fit_blocking(measured: Sequence[Row]) -> float:
    """One number from one row, by bisection."""
    row = next(r for r in measured if r.arm == "nopeer-upstream" and blocking_row(r))
    low, high = 1e8, 1e12
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if predicted(row, middle) > row.seconds else (low, middle)
    return low


def blocking_row(row: Row) -> bool:
    """Whether this is the row that blocking copies are fitted to."""
    return row.arm == "nopeer-upstream" and row.n_ubatch == 512 and row.source == "2026-11-20-4xH200-no-peer"


def single_of_fit(row: Row) -> bool:
    """Whether the devices' numbers are fitted to this row."""
    return row.arm == "single" and bool(row.steps) and row.source == FITTED_TO[row.model]


def used(row: Row) -> str:
    """Whether a row's own numbers went into the fit."""
    return "fitted" if single_of_fit(row) or blocking_row(row) else ""


def tables(measured: Sequence[Row]) -> str:
    """Markdown: errors of each row, their medians, and what is left out."""
    lines = [
        "| measured | case | arm | GPUs | measured, tok/s | predicted, tok/s | error | |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    errors: dict[str, list[float]] = {name: [] for name in (EVERYTHING, *PATHS, *NAMES.values(), OTHER_FILES)}
    missing: dict[str, list[str]] = {}
    for row in measured:
        if reason := left_out(row):
            missing.setdefault(reason, []).append(f"{row.case} {row.arm}")
            continue
        seconds = predicted(row)
        error = 100 * (row.seconds / seconds - 1)
        note = used(row)
        if not note and len(row.shares) > 1:
            groups = [EVERYTHING, PATHS["turbo" in row.arm], NAMES[row.model]]
            if row.source not in FITTED_TO.values():
                groups.append(OTHER_FILES)
            for group in groups:
                errors[group].append(abs(error))
        speeds = f"{row.n_prompt / row.seconds:,.0f} | {row.n_prompt / seconds:,.0f}"
        note = note or ("no raw samples" if row.source == OLD_TABLE else "")
        lines.append(
            f"| {row.source} | {row.case} | {row.arm} | {len(row.shares)} | {speeds} | {error:+.1f} % | {note} |"
        )
    summary = [
        f"- {name}: median error {statistics.median(e):.1f} %, largest {max(e):.1f} %, {len(e)} rows"
        for name, e in errors.items()
    ]
    old = sum(row.source == OLD_TABLE and not left_out(row) for row in measured)
    summary.append(f"- without raw samples, {old} rows: `{OLD_TABLE}`, medians copied from a table")
    summary += [f"- left out, {len(names)} rows: {reason}" for reason, names in missing.items()]
    return "\n".join(summary) + "\n\n" + "\n".join(lines) + "\n"


def show_fit(measured: Sequence[Row]) -> str:
    """The fitted numbers beside those that the planner uses."""
    rates, n = fit_devices(measured)
    host, n_host = fit_host(measured)
    pairs = [
        *((name, getattr(rates, name), getattr(REFERENCE, name), f"{n} ubatches on one GPU") for name in FITTED),
        ("host per_ubatch", host.per_ubatch, HOST.per_ubatch, f"capture times of {n_host} runs"),
        ("host per_cell", host.per_cell, HOST.per_cell, "the same"),
        ("blocking copies", fit_blocking(measured), BLOCKING, "one row"),
    ]
    return "".join(f"{name:18s} fit {fit:.4g}  used {now:.4g}  from {source}\n" for name, fit, now, source in pairs)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true", help="print the fitted numbers")
    parser.add_argument("--update", action="store_true", help="write the tables to docs/planner-validation.md")
    options = parser.parse_args()
    measured = list(rows())
    if options.fit:
        sys.stdout.write(show_fit(measured))
        return 0
    text = tables(measured)
    if options.update:
        head, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
        DOCUMENT.write_text(head + BEGIN + text + END + rest.partition(END)[2], encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
