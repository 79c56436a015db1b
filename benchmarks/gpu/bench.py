"""Builds and measures all arms on one machine, without a network. See benchmarks/gpu/README.md.

`python3 benchmarks/gpu/bench.py --archive llama.cpp.tar.xz --gpus 4` plans, builds, writes models, measures and prints
tables. Exit status: 0, or 1 if results differ between arms, a process failed or a build failed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))

import machine
import process
from arms import ALL, ARMS, MODELS, SMALL, Case, ModelSpec, cases
from builds import BuildFailedError, Builds, build, unpack
from plan import Budget, Run, estimate, runs
from repository import REPOSITORY
from resultfile import write_document
from results import Records, check
from table import render
from turboprefill.lists import split_list
from turboprefill.planner.split import equal_shares

STEPS = (
    "build",
    "models",
    "correctness",
    "dense",
    "moe",
    "swa",
    "hybrid",
    "scaling",
    "long",
    "sizes",
    "decode",
    "memory",
    "nbatch",
)
_START = time.monotonic()
_RESERVE = 5.0  # seconds of the budget for tables and files
_BUILD_GUESS, _WRITE = 110.0, 0.6e9  # seconds on 64 cores; bytes per second


def elapsed() -> float:
    """Seconds since the start."""
    return time.monotonic() - _START


def say(text: str) -> None:
    """One line of progress."""
    sys.stdout.write(f"[{elapsed():4.0f}s] {text}\n")
    sys.stdout.flush()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True, help="tar of llama.cpp, in one top folder")
    parser.add_argument("--gpus", type=int, default=4, help="devices to use (default: %(default)s)")
    parser.add_argument(
        "--devices", choices=("cuda", "rpc"), default="cuda", help="rpc: tiny models on loopback servers"
    )
    parser.add_argument(
        "--steps", type=split_list, default=",".join(STEPS), help="comma-separated (default: all): %(default)s"
    )
    parser.add_argument(
        "--arms", type=split_list, default=",".join(ALL), help="comma-separated (default: all): %(default)s"
    )
    parser.add_argument("--layers", type=split_list, default="", help="such as dense=16,moe=36")
    parser.add_argument("--repeats", type=int, default=1, help="timed prompts per process (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="processes per arm (default: %(default)s)")
    parser.add_argument(
        "--warm-up", type=float, default=0.5, help="share of the prompt read before (default: %(default)s)"
    )
    parser.add_argument("--budget-s", type=float, default=1e9, help="skip what does not fit into so many seconds")
    parser.add_argument("--cuda-arch", default="native", help="CMAKE_CUDA_ARCHITECTURES (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=4, help="the driver's CPU threads (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="of each build (default: all cores)")
    parser.add_argument("--work", type=Path, default=Path("/tmp/turboprefill-bench"), help="builds and models; kept")  # noqa: S108
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("--commit", default="", help="this repository's commit, where git cannot tell")
    options = parser.parse_args()
    for given, known in ((options.steps, STEPS), (options.arms, ALL)):
        if unknown := set(given) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
    if options.devices == "rpc":
        options.arms = [name for name in options.arms if ARMS[name].peer]
    options.archive, options.work = options.archive.resolve(), options.work.resolve()
    return options


def models_of(options: argparse.Namespace) -> dict[str, ModelSpec]:
    """The models that the steps need, with the number of layers that was asked for."""
    wanted = dict(SMALL if options.devices == "rpc" else MODELS)
    layers = dict(pair.split("=") for pair in options.layers)
    for name, count in layers.items():
        old = wanted[name]
        wanted[name] = ModelSpec(old.preset, int(count), old.speed * old.n_layer / int(count))
    families = {name for name in wanted if name in options.steps}
    if {"scaling", "long", "sizes", "decode", "nbatch"} & set(options.steps) or (
        "correctness" in options.steps and not families
    ):
        families.add("dense")
    return {name: spec for name, spec in wanted.items() if name in families}


def write_models(models: Mapping[str, ModelSpec], work: Path) -> dict[str, Path]:
    """Write the models that are not there yet, several at a time. Layers share their weights: that is fast."""
    sys.path.insert(0, str(work / "src" / "plain" / "gguf-py"))
    from turboprefill import synth

    (work / "models").mkdir(parents=True, exist_ok=True)

    def write(name: str) -> Path:
        spec, began = models[name], time.monotonic()
        path = work / "models" / f"{spec.preset}-{spec.n_layer}.gguf"
        if not path.exists():
            synth.write_model(path, spec.preset, n_layers=spec.n_layer, same_layers=True)
            say(f"wrote {path.name}: {path.stat().st_size / 1e9:.1f} GB in {time.monotonic() - began:.0f} s")
        return path

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(models, pool.map(write, models), strict=True))


def shares(run: Run, models: Mapping[str, ModelSpec], n_devices: int) -> str:
    """The tensor split of a process, as the driver takes it; - leaves it to upstream."""
    if run.arm.split != "balanced":
        return "-"
    return ",".join(map(str, equal_shares(models[run.model].n_layer, n_devices)))


def show_plan(
    options: argparse.Namespace, todo: Sequence[Run], models: Mapping[str, ModelSpec], sizes: Mapping[str, int]
) -> None:
    """Print what will run, with guessed seconds."""
    build_guess = _BUILD_GUESS * max(1.0, 64 / options.jobs) if options.devices == "cuda" else 60
    say(f"plan: build about {build_guess:.0f} s if nothing is built, models {sum(sizes.values()) / _WRITE:.0f} s")
    for model in models:
        mine = [run for run in todo if run.model == model]
        for arm in dict.fromkeys(run.arm.name for run in mine):
            parts = [guess(run, options, models, sizes) for run in mine if run.arm.name == arm]
            say(f"plan: {model} {arm}: {' + '.join(f'{part:.0f}' for part in parts)} s")
    total = sum(guess(run, options, models, sizes) for run in todo)
    say(f"plan: measurements about {total:.0f} s, budget {min(options.budget_s, 99999):.0f} s; later rounds go first")


def guess(run: Run, options: argparse.Namespace, models: Mapping[str, ModelSpec], sizes: Mapping[str, int]) -> float:
    """Seconds that a process will roughly take."""
    return estimate(run, models, sizes, options.gpus, options.repeats, options.warm_up)


def measure(
    options: argparse.Namespace,
    todo: Sequence[Run],
    models: Mapping[str, ModelSpec],
    paths: Mapping[str, Path],
    builds: Builds,
    records: Records,
) -> Iterator[str]:
    """Run all processes that fit; for each, a sentence if it was skipped or failed."""
    budget = Budget(options.budget_s - _RESERVE)
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(process.rpc_servers(builds, options.gpus)) if options.devices == "rpc" else ()
        settings = process.Settings(options.gpus, options.repeats, options.warm_up, options.threads, servers)
        for run in todo:
            what = f"round {run.round + 1}, {run.model}, {run.arm.name}"
            expected = budget.expect(run, guess(run, options, models, sizes))
            if not budget.fits(expected, elapsed()):
                yield f"skipped for lack of time: {what} ({expected:.0f} s)"
                continue
            began, left = time.monotonic(), budget.seconds - elapsed()
            split = shares(run, models, options.gpus)
            answer = process.run(run, builds, paths[run.model], split, settings, min(left, max(60, 4 * expected)))
            seconds = time.monotonic() - began
            budget.note(run, seconds)
            if answer.header:
                records.add(run, split, answer.header, answer.jobs)
            speeds = [_speed(case, job) for case, job in zip(run.cases, answer.jobs, strict=False)]
            say(f"{what}: {seconds:.0f} s (expected {expected:.0f}): {' · '.join(speeds)}")
            yield f"failed: {answer.fault}" if answer.fault else ""


def _speed(case: Case, job: Mapping[str, Any]) -> str:
    reason = (job.get("turboprefill") or {}).get("reason")
    return f"{1e9 * case.n_prompt / min(job['samples_ns']):,.0f}" + (f" [{reason}]" if reason else "")


def main() -> int:
    """Run everything; the exit status."""
    options = arguments()
    models = models_of(options)
    small = options.devices == "rpc"
    todo = runs(list(cases(set(options.steps), models, small=small)), options.arms, options.rounds)
    # known before the models exist, near enough: what the presets have per layer
    per_layer = {"dense": 0.49e9, "moe": 1.7e9, "swa": 0.14e9, "hybrid": 0.045e9}
    sizes = {name: 0 if small else int(per_layer[name] * spec.n_layer) for name, spec in models.items()}
    show_plan(options, todo, models, sizes)
    try:
        sources = unpack(options.archive, options.work)
        say(f"sources: {sources.base}, overlay {sources.overlay_version}")
        with ThreadPoolExecutor(1) as pool:  # models are written while the compilers run
            writing = pool.submit(write_models, models, options.work)
            builds = build(sources, cuda=None if small else options.cuda_arch, jobs=options.jobs, say=say)
            paths = writing.result()
    except BuildFailedError as error:
        say(f"build failed: {error}")
        return 1
    names = machine.gpus()[: options.gpus]
    name = "local RPC server" if small else re.sub(r"^NVIDIA ", "", names[0]) if names else "unknown"
    config = {
        **machine.describe(REPOSITORY),
        "n_devices": options.gpus,
        "layers": {model: spec.n_layer for model, spec in models.items()},
        "device_name": name,
        "base": sources.base,
        "overlay_version": sources.overlay_version,
        "cmake_flags": builds.flags,
        **{
            key: getattr(options, key)
            for key in ("devices", "steps", "arms", "repeats", "rounds", "warm_up", "threads")
        },
        "interleaving": "arms are processes; each round runs every arm once per model, every other round backwards",
    }
    common = {
        "build_commit": sources.base,
        "build_number": int(re.sub(r"\D", "", sources.base.split(" ")[0]) or 0),
        "cpu_info": config["cpu_info"],
        "gpu_info": config["gpu_info"],
        "backends": "RPC" if small else "CUDA",
        "n_threads": options.threads,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    stem = f"{time.strftime('%Y-%m-%d')}-{options.gpus}x{re.sub(r'[^A-Za-z0-9]+', '-', name)}"
    path = next(p for i in range(1, 100) if not (p := options.out / f"{stem}{f'-{i}' if i > 1 else ''}.json").exists())
    config["turboprefill_commit"] = options.commit or config["turboprefill_commit"]
    records, notes, document = Records(common), [], {}
    for note in measure(options, todo, models, paths, builds, records):
        if note:
            say(note)
            notes.append(note)
        document = {"config": config, "results": records.finished(), "notes": notes}
        write_document(path, document)  # each time, so that an interrupted run keeps what it measured
    if not document:
        return 0
    say(f"wrote {path}")
    sys.stdout.write("\n" + render(document))
    failed = any(note.startswith("failed") for note in notes)
    return int(failed or not all(same for _, same in check(records.finished())))


if __name__ == "__main__":
    sys.exit(main())
