"""Measures the speed of devices: their times while they read a short prompt in two sizes of ubatches."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from turboprefill.context import Context
from turboprefill.device import Device
from turboprefill.model import Model
from turboprefill.planner.device_spec import DeviceSpec, from_devices
from turboprefill.planner.errors import PlanError
from turboprefill.planner.facts import Layer, ModelFacts
from turboprefill.planner.fit import Sample, fit_devices
from turboprefill.planner.memory import Needs
from turboprefill.planner.plan import Plan, make_plan
from turboprefill.planner.speeds import measured, store_speeds

__all__ = ["SIZES", "calibrate"]

SIZES = ((128, 8), (512, 5))  # tokens of a ubatch, and how many of them
_REPEATS = 3
_SHORTEST = 1e-5  # seconds that can be told from 0
Note = Callable[[str], None]


def calibrate(
    path: Path,
    facts: ModelFacts,
    devices: Sequence[Device],
    note: Note = lambda _: None,
    *,
    sizes: Sequence[tuple[int, int]] = SIZES,
    **options: Any,
) -> list[DeviceSpec]:
    """Measure each device's speed with this model, and keep it in the cache.

    Takes as long as reading about 3,600 tokens four times, after loading the model, by default.

    Args:
        path, facts: the model.
        devices: what holds it; all get layers.
        note: told what happens next.
        sizes: tokens of a ubatch, and how many of them to read, for at least two sizes.
        options: more for :meth:`turboprefill.Model.context`.

    Raises:
        DoesNotFitError: the model does not fit onto the devices.
        PlanError: a device got no layers, or the timeline misses one.
        TurboPrefillError: loading or decoding failed.
    """
    specs = from_devices(devices)
    n_ctx = max(size * count for size, count in sizes)
    even = [replace(spec, rates=specs[0].rates) for spec in specs]
    plan = make_plan(facts, even, Needs(n_ctx=n_ctx, n_ubatch=max(size for size, _ in sizes)))
    if idle := [stage.device for stage in plan.stages if not stage.n_layers]:
        raise PlanError(
            f"cannot measure {idle[0]}: the model has too few layers for {len(devices)} devices; plan for fewer"
        )
    note("loading the model")
    names = [device.name for device in devices]
    times: dict[str, dict[tuple[int, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    with Model(path, devices=names, tensor_split=plan.tensor_split) as model:
        for size, count in sizes:
            note(f"measuring ubatches of {size}")
            with model.context(n_ctx=n_ctx, n_batch=n_ctx, n_ubatch=size, **options) as context:
                for device, p, seconds in _measure(context, model, size, count):
                    times[device][size, p].append(seconds)
    samples = {name: _samples(plan, facts.layers, name, times[name]) for name in names}
    rates = fit_devices(samples, facts.layers, specs[0].rates)
    store_speeds(path, devices, rates)
    return measured(devices, rates)


def _measure(context: Context, model: Model, size: int, count: int) -> Iterator[tuple[str, int, float]]:
    """Device, tokens before, and seconds of each ubatch; after a run that is not looked at.

    One ubatch at a time: devices that share cores, and the threads that take the time, do not disturb each other.
    """
    tokens = np.random.default_rng(0).integers(0, model.n_vocab, size * count).tolist()
    context.decode_batch(tokens)
    for _ in range(_REPEATS):
        context.synchronize()
        context.memory.clear()
        with context.trace() as trace:
            for start in range(0, len(tokens), size):
                context.decode_batch(tokens[start : start + size], logits="none")
                context.synchronize()
        for span in trace.spans:
            yield span.device, span.ubatch * size, (span.t_end_us - span.t_start_us) / 1e6


def _samples(
    plan: Plan, layers: Sequence[Layer], device: str, times: dict[tuple[int, int], list[float]]
) -> list[Sample]:
    stage = next(stage for stage in plan.stages if stage.device == device)
    mine = layers[stage.first : stage.first + stage.n_layers]
    if not times:
        raise PlanError(f"cannot measure {device}: the timeline has no entries for it")
    seconds = {key: statistics.median(values) for key, values in times.items()}
    # compared with what is usual for this size: a single odd time, even one of 0, does not count for more than others
    usual = {c: statistics.median(t for (other, _), t in seconds.items() if other == c) for c, _ in seconds}
    return [Sample(mine, c, p, t, max(usual[c], _SHORTEST)) for (c, p), t in seconds.items()]
