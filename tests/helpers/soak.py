"""A long run of mixed work on virtual devices: does anything pile up? `scripts/soak` runs it.

A round makes a standard and a pipelined context, lets tests/helpers/randomrig.py do random steps on both (prompts,
copies and shifts of sequences, saved states, aborts, failing devices, the switch, other contexts of the same model),
and closes everything. From time to time the models are loaded again, and two threads work at once. After some rounds
the counters are read. Handles must be what they were after the first rounds, exactly; resident memory may grow by a
bound.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import logging
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import randomrig
import randomsteps as rs
from pipelinecounts import assert_pipelined
from turboprefill import Model, synth, virtual

PRESETS = ("tiny", "moe-tiny", "gptoss-tiny", "gemma3-tiny", "mamba-tiny", "jamba-tiny")
N_STEPS = 25
N_ROUNDS_BETWEEN_LOADS = 20
WARM_UP = 0.25  # of the samples: pools and caches fill
MAX_GROWTH_MB = 8.0  # of resident memory after that


@dataclass(frozen=True)
class Sample:
    """Counters when no context is open; sizes in bytes but for rss_mb."""

    seconds: float
    rounds: int
    rss_mb: float
    open_files: int
    threads: int
    events: int
    buffers: int
    device_bytes: int
    streams: int
    device_threads: int
    engine_host_bytes: int
    engine_device_bytes: int

    def handles(self) -> dict[str, int]:
        """What must not change between samples."""
        return {k: v for k, v in asdict(self).items() if k not in ("seconds", "rounds", "rss_mb")}


def _rss_mb() -> float:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free is not in use
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def random_decode(rng: random.Random) -> rs.Decode:
    seqs = tuple(rng.sample(range(rs.N_SEQ), rng.choice([1, 1, 1, 2])))
    mixing = rng.choice(["blocks", "turns"])
    logits = rng.choice(["none", "last", "last", "all"])
    return rs.Decode(rng.choice([1, 20, 60, 150]), seqs, mixing, logits, rng.random() < 0.1, 0, rng.randrange(10))


def random_step(rng: random.Random) -> object:
    seq, other = rng.sample(range(rs.N_SEQ), 2)
    failing = rs.Decode(rng.randrange(1, 60), (seq,), logits="none", seed=rng.randrange(10))
    choices = [
        (20, random_decode(rng)),
        (2, rs.Generate(rng.randrange(1, 30), rng.randrange(4), seq)),
        (2, rs.Abort(random_decode(rng), rng.randrange(10), rng.random() < 0.5)),
        (
            2,
            rs.Fault(
                (failing,) * rng.choice([1, 2]), rng.randrange(3), rng.randrange(1, 12), rng.choice(["graph", "copy"])
            ),
        ),
        (1, rs.Traced(random_decode(rng))),
        (1, rs.DecodeWithView(random_decode(rng))),
        (2, rs.RmTail(seq, rng.randrange(1, 40))),
        (2, rs.SeqCp(seq, other, None, None)),
        (1, rs.SeqKeep(seq)),
        (2, rs.Shift(seq, rng.randrange(1, 40))),
        (1, rs.Clear(rng.random() < 0.5)),
        (2, rs.Save(rng.randrange(2))),
        (2, rs.Load(rng.randrange(2), rng.random() < 0.2)),
        (2, rs.Switch(rng.random() < 0.7)),
        (3, rs.Sibling(rng.choice(["make", "decode", "close"]))),
        (2, rs.Check()),
    ]
    return rng.choices([step for _, step in choices], [weight for weight, _ in choices])[0]


def random_options(rng: random.Random) -> rs.Options:
    n_ubatch = rng.choice([4, 8, 16])
    return rs.Options(
        n_ctx=rng.choice([256, 768, 1536]),
        n_batch=rng.choice([16, 64]),
        n_ubatch=n_ubatch,
        n_threads=1,
        kv_unified=rng.random() < 0.5,
        flash_attn=rng.random() < 0.5,
        swa_full=rng.random() < 0.5,
        embeddings=rng.random() < 0.1,
        type_k="f16",
    )


def random_properties(rng: random.Random) -> rs.Properties:
    return rs.Properties(
        transport=rng.choice(["staged", "peer"]),
        peer=rng.choice(["async", "blocking", "refused"]),
        events=rng.choice(["on", "on", "off"]),
        split_us=rng.choice([0, 0, 100]),
        stall_graph=0,
    )


class Soak:
    """Work and its counters. Close it, or use it as a context manager."""

    def __init__(self, folder: Path, presets: Sequence[str] = PRESETS, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.files = {preset: synth.write_model(folder / f"{preset}.gguf", preset) for preset in presets}
        self.names = virtual.load(str(randomrig.N_VIRTUAL))
        self.models: dict[str, tuple[Model, Model]] = {}
        self.log: list[object] = []  # of the round at hand
        self.begun = time.monotonic()
        self.n_rounds = self.n_steps = self.n_failures = self.n_pipelined = 0

    def __enter__(self) -> Soak:
        self.load()
        return self

    def __exit__(self, *_: object) -> None:
        self.unload()
        virtual.load(str(randomrig.N_VIRTUAL))

    def unload(self) -> None:
        for pair in self.models.values():
            for model in pair:
                model.close()
        self.models = {}

    def load(self) -> None:
        self.unload()
        groups = (self.names[:1], self.names[1:])
        for preset, path in self.files.items():
            first, second = (Model(path, devices=group) for group in groups)
            self.models[preset] = (first, second)

    def round(self) -> None:
        """Random work on one model, then on two at once; nothing of it is open afterwards."""
        preset = self.rng.choice(list(self.files))
        options, properties = random_options(self.rng), random_properties(self.rng)
        self.log = [preset, options, properties]
        rig = randomrig.Rig(self.models[preset], preset, options, properties, reference={})
        with ExitStack() as stack:
            stack.callback(rig.close)
            for _ in range(N_STEPS):
                self.log.append(random_step(self.rng))
                rig.step(self.log[-1])
                self.n_steps += 1
            rig.check()
            rig.count()
        rig.check_closed()
        self.n_failures += rig.n_failures
        self.n_pipelined += rig.n_pipelined
        self.two_threads()
        self.n_rounds += 1
        if self.n_rounds % N_ROUNDS_BETWEEN_LOADS == 0:
            self.load()

    def two_threads(self) -> None:
        errors: list[BaseException] = []

        def work(model: Model, seed: int) -> None:
            try:
                with model.context(n_ctx=512, n_ubatch=16, n_threads=1) as context:
                    rs.Decode(120, (0,), logits="none", seed=seed)(context)
                    rs.Decode(60, (0,), seed=seed)(context)
                    assert_pipelined(context, at_least=11)
            except BaseException as error:  # noqa: BLE001 - reported by the caller
                errors.append(error)

        models = self.rng.choices([pair[1] for pair in self.models.values()], k=2)
        threads = [threading.Thread(target=work, args=(model, i)) for i, model in enumerate(models)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def sample(self) -> Sample:
        """Counters now; the engine's memory is that of a context with the same prompt each time."""
        virtual.load(str(randomrig.N_VIRTUAL))
        model = next(iter(self.models.values()))[1]
        with model.context(n_ctx=1024, n_ubatch=32, n_threads=1) as context:
            rs.Decode(500, (0,))(context)
            context.synchronize()
            assert_pipelined(context, 16, standard=0)
            stats = context.stats()
        counters = virtual.counters()
        return Sample(
            seconds=round(time.monotonic() - self.begun, 1),
            rounds=self.n_rounds,
            rss_mb=round(_rss_mb(), 1),
            open_files=len(list(Path("/proc/self/fd").iterdir())),
            threads=len(list(Path("/proc/self/task").iterdir())),
            events=counters["events"],
            buffers=counters["buffers"],
            device_bytes=counters["bytes"],
            streams=counters["streams"],
            device_threads=counters["threads"],
            engine_host_bytes=stats.mem_host,
            engine_device_bytes=stats.mem_device,
        )


def growth_mb(samples: Sequence[Sample]) -> float:
    """Of resident memory: the last third of the samples after the warm-up over the first third, in MiB."""
    rss = [sample.rss_mb for sample in samples[int(len(samples) * WARM_UP) :]]
    n = max(1, len(rss) // 3)
    return round(statistics.median(rss[-n:]) - statistics.median(rss[:n]), 1)


def problems(samples: Sequence[Sample]) -> Iterator[str]:
    """What is not flat, in words."""
    first = samples[0].handles()
    for name, value in first.items():
        others = sorted({sample.handles()[name] for sample in samples} - {value})
        if others:
            yield f"{name} was {value} after the first rounds, and {', '.join(map(str, others))} later"
    if (growth := growth_mb(samples)) > MAX_GROWTH_MB:
        yield f"resident memory grew by {growth} MiB after the warm-up; the bound is {MAX_GROWTH_MB}"


def table(samples: Sequence[Sample]) -> Table:
    """At most 15 of the samples."""
    names = list(asdict(samples[0]))
    out = Table(*(name.replace("_", " ") for name in names), box=None)
    step = max(1, len(samples) // 15)
    for sample in [*samples[:-1:step], samples[-1]]:
        out.add_row(*(f"{value:,}" for value in asdict(sample).values()))
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (default: 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write samples and verdict to this file")
    options = parser.parse_args(arguments)
    out = Console(width=None if sys.stdout.isatty() else 160)
    end = time.monotonic() + 60 * options.minutes
    logging.getLogger("turboprefill.llama").disabled = True
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder, Soak(Path(folder), seed=options.seed) as soak:
        next_sample = 0.0
        while time.monotonic() < end or len(samples) < 4:
            try:
                soak.round()
            except BaseException:
                out.print(f"round {soak.n_rounds} of seed {options.seed}:", *soak.log, sep="\n", markup=False)
                raise
            if soak.n_rounds >= len(PRESETS) and time.monotonic() >= next_sample:
                samples.append(soak.sample())
                next_sample = time.monotonic() + 60 * options.minutes / 60
    wrong = list(problems(samples))
    out.print(table(samples))
    out.print(
        f"{soak.n_rounds} rounds, {soak.n_steps} steps, {soak.n_pipelined} pipelined ubatches, "
        f"{soak.n_failures} failing devices, seed {options.seed}"
    )
    out.print(f"resident memory after the warm-up: {growth_mb(samples):+} MiB (bound: {MAX_GROWTH_MB})")
    for line in wrong:
        out.print(f"NOT FLAT: {line}")
    if not wrong:
        out.print("flat")
    if options.json:
        record = {"flat": not wrong, "problems": wrong, "growth_mb": growth_mb(samples), "seed": options.seed}
        options.json.write_text(json.dumps({**record, "samples": [asdict(s) for s in samples]}, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
