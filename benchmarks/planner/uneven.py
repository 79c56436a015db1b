"""A machine that a default split does not suit, on virtual devices: one is half as fast, one has little memory.

`python3 benchmarks/planner/uneven.py` measures the devices, plans, and reads a prompt with llama.cpp's default split
and with the planned one, alternating, on both paths. It prints ratios alone: virtual devices have configured times.

A virtual device takes the same configured time for any graph, so this program gives each a time for its layers:
`--us` microseconds for a token in one layer (the last one counts as what a prompt computes of it), times its `--slow`.
Computing must take less, so use a small model and a long time.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))

import numpy as np

from resultfile import write_document
from turboprefill import Model, synth, virtual
from turboprefill.calibration import calibrate
from turboprefill.lists import split_list
from turboprefill.planner import DoesNotFitError, Needs, make_plan, read_facts
from turboprefill.planner.device_spec import from_devices
from turboprefill.planner.facts import ModelFacts
from turboprefill.planner.live import live_devices
from turboprefill.planner.plan import Plan, default_plan

SIZES = ((32, 4), (96, 3))  # of the calibration


class Machine:
    """Virtual devices whose time depends on their layers."""

    def __init__(self, facts: ModelFacts, slow: Sequence[float], memory_gb: Sequence[float], us: float) -> None:
        self._facts, self._slow, self._memory, self._us = facts, slow, memory_gb, us
        self.names = virtual.load(f"{len(slow)},memory_gb={self._list(memory_gb)}")

    @staticmethod
    def _list(values: Sequence[float]) -> str:
        return "/".join(f"{value:.6g}" for value in values)

    def hold(self, plan: Plan) -> None:
        """Take the time that the layers of this plan need."""
        whole = max(layer.flops for layer in self._facts.layers)
        shares = [
            sum(layer.flops / whole for layer in self._facts.layers[stage.first : stage.first + stage.n_layers])
            for stage in plan.stages
        ]
        each = [max(self._us * share, 1e-3) for share in shares]
        spec = f"slow={self._list(self._slow)},memory_gb={self._list(self._memory)},us_per_token={self._list(each)}"
        virtual.load(f"{len(self._slow)},{spec}")


def read(model: Model, options: dict[str, Any], tokens: list[int], repeats: int) -> dict[bool, tuple[list[float], str]]:
    """Seconds of each run, and a digest of logits and state, for both paths; after a warm-up."""
    out = {}
    with model.context(**options) as context:
        for turbo in (False, True):
            context.turboprefill = turbo
            seconds = []
            for _ in range(repeats + 1):
                context.memory.clear()
                context.synchronize()
                began = time.perf_counter()
                context.decode_batch(tokens)
                logits = context.logits()
                seconds.append(time.perf_counter() - began)
            digest = hashlib.blake2b(logits.tobytes() + context.state(), digest_size=8).hexdigest()
            out[turbo] = (seconds[1:], digest)
    return out


def main() -> int:
    """The command line; exit status 1 if results differ between any two runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", default="1,1,2", help="of each device; 2 is half as fast (default: %(default)s)")
    parser.add_argument("--memory-gb", default="16,0.012,16", help="of each device (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=12, help="of the model (default: %(default)s)")
    parser.add_argument("--us", type=float, default=500, help="per token and layer (default: %(default)s)")
    parser.add_argument("--prompt", type=int, default=768, help="tokens (default: %(default)s)")
    parser.add_argument("--ubatch", type=int, default=64, help="tokens (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of all arms (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the ratios to this JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TURBOPREFILL_CACHE"] = folder  # a calibration of invented devices is nobody else's business
        path = synth.write_model(Path(folder) / "model.gguf", "tiny", n_layers=options.layers)
        return measure(options, path)


def measure(options: argparse.Namespace, path: Path) -> int:
    """Calibrate, plan, read, report."""
    facts = read_facts(path)
    slow, memory = ([float(x) for x in split_list(text)] for text in (options.slow, options.memory_gb))
    machine = Machine(facts, slow, memory, options.us)
    needs = Needs(n_ctx=options.prompt + 64, n_ubatch=options.ubatch)
    devices = live_devices(machine.names)

    n_calibrate = max(size * count for size, count in SIZES)
    even = make_plan(facts, from_devices(devices), Needs(n_ctx=n_calibrate, n_ubatch=max(SIZES)[0]))
    machine.hold(even)  # as calibrate() will place the layers
    specs = calibrate(path, facts, devices, sizes=SIZES, n_threads=1)
    planned = make_plan(facts, specs, needs, options.prompt)
    usual = default_plan(facts, specs, needs, options.prompt)

    arms: dict[str, Plan] = {"default split": usual, "planned split": planned}
    context = {"n_ctx": needs.n_ctx, "n_batch": options.prompt, "n_ubatch": options.ubatch, "n_threads": 1}
    tokens = np.random.default_rng(0).integers(300, 1000, options.prompt).tolist()
    seconds: dict[tuple[str, bool], list[float]] = {}
    digests = set()
    for number in range(options.rounds):
        for name, plan in list(arms.items())[:: 1 if number % 2 == 0 else -1]:
            machine.hold(plan)
            with Model(path, devices=machine.names, tensor_split=plan.tensor_split) as model:
                for turbo, (times, digest) in read(model, context, tokens, 1).items():
                    seconds.setdefault((name, turbo), []).extend(times)
                    digests.add(digest)
    return report(options, arms, seconds, digests)


def report(
    options: argparse.Namespace, arms: dict[str, Plan], seconds: dict[tuple[str, bool], list[float]], digests: set[str]
) -> int:
    """Print the table; write the ratios."""
    base = statistics.median(seconds["default split", False])
    ratios = {}
    sys.stdout.write(f"slow {options.slow}; memory, GB {options.memory_gb}; {options.layers} layers\n")
    for (name, turbo), times in seconds.items():
        arm = f"{name}, {'TurboPrefill' if turbo else 'standard path'}"
        ratios[arm] = base / statistics.median(times)
        layers = "/".join(str(stage.n_layers) for stage in arms[name].stages)
        sys.stdout.write(f"{arm:32s} {layers:10s} {ratios[arm]:5.2f}x\n")
    same = len(digests) == 1
    sys.stdout.write(f"logits and state {'are the same bytes in all runs' if same else 'DIFFER'}\n")
    if options.out:
        facts = {"slow": options.slow, "memory_gb": options.memory_gb, "layers": options.layers, "us": options.us}
        rest = {"prompt": options.prompt, "ubatch": options.ubatch, "rounds": options.rounds}
        write_document(options.out, {**facts, **rest, "identical": same, "ratios": ratios})
    return 0 if same else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DoesNotFitError as error:
        sys.exit(f"{error}")
