"""The demo's defaults: devices, model, text."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import turboprefill
from turboprefill import lists, synth
from turboprefill.demo.measure import Note
from turboprefill.demo.prompt import DemoError
from turboprefill.options import DEFAULT_UBATCH
from turboprefill.paths import cache_dir
from turboprefill.planner import DoesNotFitError, Needs, make_plan, read_facts
from turboprefill.planner.live import live_devices
from turboprefill.planner.plan import best_ubatch, default_plan
from turboprefill.planner.speeds import with_stored_speeds
from turboprefill.synth.archs import Shape

__all__ = [
    "USUAL_PROMPT",
    "Choice",
    "DemoError",
    "crowded",
    "gpu_names",
    "host_threads",
    "is_loopback",
    "planned",
    "split_list",
    "split_ratios",
    "synthetic_model",
]

USUAL_PROMPT = 4096  # tokens to plan for where only the text says how many there are
_SPARE_BYTES = 1 << 30  # left free on the disk that a model is written to


def synthetic_model(preset: str, note: Note = lambda _: None) -> Path:
    """The cached model of this preset, written now if it is not there.

    Raises:
        DemoError: the disk has no room for it, or it cannot be written.
    """
    shape = synth.shape_of(preset)
    folder = cache_dir() / "models"
    path = folder / f"{preset}-{_fingerprint(shape)}.gguf"
    if path.is_file():
        return path
    size = synth.model_size(shape)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(folder).free) < size + _SPARE_BYTES:
            raise DemoError(
                f"the synthetic model needs {size / 1e9:.1f} GB in {folder}, which has {free / 1e9:.1f} GB left. "
                "Make room, set TURBOPREFILL_CACHE to another folder, or give a model with --model."
            )
        note(f"generating a synthetic model ({size / 1e6:,.0f} MB, only once) in {path}")
        return synth.write_model(path, preset)
    except OSError as error:
        raise DemoError(f"cannot write the synthetic model to {path}: {error}") from error


def _fingerprint(shape: Shape) -> str:
    """Changes whenever the same preset would be written differently."""
    digest = hashlib.blake2b(repr(shape).encode(), digest_size=5)
    for name in ("pieces.txt", "archs.py", "vocab.py", "weights.py"):
        digest.update(resources.files(synth).joinpath(name).read_bytes())
    return digest.hexdigest()


def gpu_names() -> list[str]:
    """Names of the GPUs that this build of llama.cpp can use: this machine's, not those of RPC servers."""
    return [device.name for device in turboprefill.devices() if device.type == "gpu" and device.backend != "RPC"]


def split_list(text: str | None) -> list[str] | None:
    """'a, b' as ['a', 'b']; None and '' as None."""
    return lists.split_list(text) or None


def split_ratios(text: str | None) -> list[float] | None:
    """'1,2.5' as numbers.

    Raises:
        DemoError: a part is not a number of at least zero.
    """
    parts = split_list(text)
    if parts is None:
        return None
    try:
        ratios = [float(part) for part in parts]
    except ValueError:
        ratios = [-1.0]
    if min(ratios) < 0:
        raise DemoError(f"--tensor-split is {text!r}: expected numbers of at least 0, such as 3,1")
    return ratios


@dataclass(frozen=True)
class Choice:
    """What ``turboprefill plan`` chose: shares for ``-ts``, the size of ubatches, and whether llama.cpp by itself
    would give the devices other layers.
    """

    split: list[float]
    n_ubatch: int
    differs: bool


def planned(
    model: Path, names: list[str] | None, endpoints: list[str] | None, n_prompt: int, note: Note
) -> Choice | None:
    """The planner's choice, None where there is nothing to choose.

    None too if nothing was found to fit: estimates are on the safe side, so llama.cpp may try its own.
    """
    devices = live_devices(names, endpoints or [])
    if len(devices) < 2:
        return None
    facts, specs = read_facts(model), with_stored_speeds(model, devices)
    needs = Needs(n_ctx=n_prompt, n_ubatch=DEFAULT_UBATCH)
    try:
        plan = make_plan(facts, specs, needs)
    except DoesNotFitError as error:
        note(f"no layer split could be planned: {error}")
        return None
    usual = default_plan(facts, specs, needs, n_prompt)
    differs = [stage.n_layers for stage in usual.stages] != [stage.n_layers for stage in plan.stages]
    return Choice([float(share) for share in plan.tensor_split], best_ubatch(plan, DEFAULT_UBATCH), differs)


def is_loopback(endpoints: list[str] | None) -> bool:
    """Whether all endpoints are on this machine."""
    return bool(endpoints) and all(e.rpartition(":")[0] in ("127.0.0.1", "localhost") for e in endpoints or [])


def crowded(n_workers: int) -> str:
    """A warning if this machine has no cores to spare for that many workers, else an empty string."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    if cores < n_workers:
        return f"{n_workers} workers on {cores} cores: they cannot run at the same time, so expect no speedup."
    if load > cores - n_workers + 0.5:
        return f"This machine is busy (load {load:.1f} on {cores} cores): expect less speedup than on an idle one."
    return ""


def host_threads(endpoints: list[str] | None) -> int | None:
    """Threads for our own part of the work: few beside workers that need this machine's cores, else the default."""
    return 1 if is_loopback(endpoints) and (os.cpu_count() or 1) < 8 else None
