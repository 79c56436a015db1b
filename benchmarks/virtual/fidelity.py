"""Shows which measured ratios virtual devices reproduce: `python3 benchmarks/virtual/fidelity.py --json OUT.json`.

A tiny model with one layer on each device computes for real; that each device takes as long as its share of the real
model's layers is configured. What is compared is how the schedules use that time, so only ratios mean something.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))

from gguf import GGMLQuantizationType
from rich.console import Console
from rich.table import Table

import turboprefill
from measured import MACHINES, Arm, Machine
from resultfile import write_document
from turboprefill import Context, Model, synth, virtual
from turboprefill.synth.archs import Shape

_UBATCH = 128  # tokens, for all arms: of this size every second ubatch finds a graph to reuse, as in the real runs
_REUSE = "LLAMA_GRAPH_REUSE_DISABLE"


def _specification(machine: Machine, arm: Arm, stage_us: float) -> str:
    """A device with the average number of layers takes `stage_us` for a ubatch."""
    layers = [sum(machine.layers) / machine.n_devices] * machine.n_devices if arm.balanced else machine.layers
    slow = "/".join(f"{n * machine.n_devices / sum(machine.layers):g}" for n in layers)
    copies = "" if arm.peer else ",peer=refused,events=off"
    return f"{machine.n_devices},split_us={stage_us:g},slow={slow}{copies}"


def _open(model: Model, arm: Arm, n_tokens: int) -> Context:
    os.environ[_REUSE] = "0" if arm.reuse else "1"  # asked when a context is made
    return model.context(
        n_ctx=n_tokens + 256,
        n_batch=n_tokens,
        n_ubatch=_UBATCH,
        n_threads=1,
        n_threads_batch=1,
        flash_attn=True,
        turboprefill=arm.turboprefill,
    )


def _read(context: Context, tokens: list[int]) -> tuple[float, str]:
    """Seconds until the last token's logits are there, and their digest."""
    context.memory.clear()
    context.synchronize()
    start = time.perf_counter()
    context.decode_batch(tokens)
    logits = context.logits()
    return time.perf_counter() - start, hashlib.blake2b(logits.tobytes(), digest_size=16).hexdigest()


def _n_ubatches(arm: Arm, ubatches: int) -> int:
    """Of the prompt. The real one has 32 of 512 tokens and 128 of 128: half of these must do."""
    return ubatches if arm.n_ubatch == 512 else 2 * ubatches


def _measure(machine: Machine, path: str, stage_us: float, ubatches: int, repeats: int) -> list[dict[str, Any]]:
    """All arms of a machine, interleaved. In a process of its own: it has one number of virtual devices."""
    names = virtual.load(str(machine.n_devices))
    samples: dict[Arm, list[float]] = {arm: [] for arm in machine.arms}
    digests: dict[Arm, set[str]] = {arm: set() for arm in machine.arms}
    with Model(path, devices=names, tensor_split=[1.0] * (machine.n_devices - 1) + [2.0]) as model:
        for _ in range(repeats):
            for arm in machine.arms:
                n_ubatches = _n_ubatches(arm, ubatches)
                tokens = [300 + (7 * i) % 200 for i in range(_UBATCH * n_ubatches)]
                spec = _specification(machine, arm, stage_us)
                virtual.load(_specification(machine, arm, 0))
                with _open(model, arm, len(tokens)) as context:
                    _read(context, tokens)  # warm-up
                    virtual.load(spec)
                    seconds, digest = _read(context, tokens)
                samples[arm].append(seconds / (1e-6 * stage_us * n_ubatches))
                digests[arm].add(digest)
    return [
        {"arm": arm, "spec": _specification(machine, arm, stage_us), "samples": samples[arm], "logits": digests[arm]}
        for arm in machine.arms
    ]


def _report(machine: Machine, records: list[dict[str, Any]]) -> dict[str, Any]:
    # other work on the machine only ever adds to a schedule's time: the least disturbed run says most about it
    took = {record["arm"]: min(record["samples"]) for record in records}
    lengths = {record["arm"].n_ubatch for record in records}
    same = all(
        len(set[str]().union(*(record["logits"] for record in records if record["arm"].n_ubatch == n))) == 1
        for n in lengths
    )
    ratios = []
    for ratio in machine.ratios:
        found = took[ratio.slower] / took[ratio.faster]
        ratios.append(
            {
                "name": ratio.name,
                "measured": round(ratio.measured, 3),
                "virtual": round(found, 3),
                "deviation_percent": round(100 * (found / ratio.measured - 1), 1),
            }
        )
    arms = [
        {
            **vars(record["arm"]),
            "spec": record["spec"],
            "stage_times_per_ubatch": [round(sample, 4) for sample in record["samples"]],
        }
        for record in records
    ]
    return {
        "machine": machine.name,
        "measured_in": machine.source,
        "logits_identical": same,
        "ratios": ratios,
        "arms": arms,
    }


def _print(console: Console, report: dict[str, Any]) -> None:
    table = Table(title=f"{report['machine']} as virtual devices")
    table.add_column("faster arm over slower arm")
    for name in ("measured", "virtual", "deviation"):
        table.add_column(name, justify="right")
    for ratio in report["ratios"]:
        table.add_row(
            ratio["name"], f"{ratio['measured']:.2f}", f"{ratio['virtual']:.2f}", f"{ratio['deviation_percent']:+.0f} %"
        )
    console.print(table)
    if not report["logits_identical"]:
        console.print("the arms gave different logits", style="red")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="file for all samples")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stage-ms", type=float, default=40, help="time of a device with the average number of layers")
    parser.add_argument("--ubatches", type=int, default=32, help="of a prompt; twice as many where they are small")
    parser.add_argument("--devices", type=int, choices=[m.n_devices for m in MACHINES], help="only this machine")
    return parser.parse_args()


def main() -> int:
    """Measure, print, write; 1 if the arms of a machine do not agree on the logits."""
    arguments, console, reports = _arguments(), Console(), []
    with tempfile.TemporaryDirectory() as folder:
        # as little computation as possible: 0.3 million weights
        kind = GGMLQuantizationType.F32
        for machine in MACHINES:
            if arguments.devices not in (None, machine.n_devices):
                continue
            preset = f"pace-{machine.n_devices}"
            synth.PRESETS[preset] = Shape(
                "llama", machine.n_devices, 32, 64, 512, kind, n_head=1, n_head_kv=1, head_dim=32
            )
            path = synth.write_model(Path(folder) / f"{preset}.gguf", preset)
            console.print(f"{machine.name}: {len(machine.arms)} arms, {arguments.repeats} times")
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                sizes = (1e3 * arguments.stage_ms, arguments.ubatches, arguments.repeats)
                work = pool.submit(_measure, machine, str(path), *sizes)
                reports.append(_report(machine, work.result()))
            _print(console, reports[-1])
    if arguments.json:
        config = {
            "turboprefill": turboprefill.__version__,
            "cpu_count": os.cpu_count(),
            "stage_ms": arguments.stage_ms,
            "repeats": arguments.repeats,
            "n_ubatch": _UBATCH,
            "ubatches": arguments.ubatches,
            "load_average": [round(load, 1) for load in os.getloadavg()],
        }
        write_document(arguments.json, {"config": config, "machines": reports})
    return 0 if all(report["logits_identical"] for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
