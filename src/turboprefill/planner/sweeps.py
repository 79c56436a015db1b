"""Predictions over a range: of devices, of prompt lengths, of ubatch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from turboprefill.planner.device_spec import DeviceSpec
from turboprefill.planner.facts import ModelFacts
from turboprefill.planner.memory import Needs
from turboprefill.planner.predict import Point, predict
from turboprefill.planner.simulate import Link
from turboprefill.planner.ubatch import SIZES

__all__ = ["SWEEPS", "pays_until", "predict_one_more", "sweep", "sweep_devices"]

SWEEPS = ("gpus", "prompt", "ubatch")
_PROMPTS = tuple(1 << i for i in range(9, 21))


def sweep(
    kind: str | None,
    facts: ModelFacts,
    devices: Sequence[DeviceSpec],
    link: Link,
    n_prompt: int,
    *,
    most: int,
    needs: Needs | None = None,
    n_ubatch: int | None = None,
) -> list[Point]:
    """Predictions over a range, or a single one.

    Args:
        kind: one of :data:`SWEEPS`; None for one prediction.
        facts, devices, link, n_prompt, needs, n_ubatch: as for :func:`~turboprefill.planner.predict.predict`.
        most: devices that a sweep over them goes up to.
    """
    if kind == "gpus":
        largest = max(most, len(devices))
        return sweep_devices(facts, devices, link, n_prompt, largest, needs=needs, n_ubatch=n_ubatch)
    if kind == "prompt":
        return [predict(facts, devices, link, n, needs=needs, n_ubatch=n_ubatch) for n in _PROMPTS]
    if kind == "ubatch":
        sizes = [size for size in SIZES if size <= n_prompt] or [n_prompt]
        return [predict(facts, devices, link, n_prompt, needs=needs, n_ubatch=size) for size in sizes]
    return [predict(facts, devices, link, n_prompt, needs=needs, n_ubatch=n_ubatch)]


def _with_more(devices: Sequence[DeviceSpec], n: int) -> list[DeviceSpec]:
    """The first n devices; if there are fewer, more like the last one."""
    return [*devices[:n], *(replace(devices[-1], name=f"more{i}") for i in range(n - len(devices)))]


def sweep_devices(
    facts: ModelFacts,
    devices: Sequence[DeviceSpec],
    link: Link,
    n_prompt: int,
    most: int,
    *,
    needs: Needs | None = None,
    n_ubatch: int | None = None,
) -> list[Point]:
    """Predictions for 1 to `most` devices: those given, and then more like the last one."""
    points = []
    for n in range(1, most + 1):
        point = predict(facts, _with_more(devices, n), link, n_prompt, needs=needs, n_ubatch=n_ubatch)
        points.append(replace(point, n_devices=n))
    return points


def predict_one_more(
    facts: ModelFacts,
    devices: Sequence[DeviceSpec],
    link: Link,
    n_prompt: int,
    *,
    needs: Needs | None = None,
    n_ubatch: int | None = None,
) -> Point:
    """The prediction with one more device like the last one."""
    return predict(facts, _with_more(devices, len(devices) + 1), link, n_prompt, needs=needs, n_ubatch=n_ubatch)


def pays_until(points: Sequence[Point]) -> int | None:
    """The number of devices after which none adds half of what a device alone would do.

    Compared with each larger number in `points`, because layers that cannot be shared evenly make steps.
    Speed per device is that of the smallest number that fits. None if nothing fits.
    """
    fitting = [point for point in points if point.seconds]
    if not fitting:
        return None
    share = fitting[0].speed / fitting[0].n_devices / 2
    for i, point in enumerate(fitting):
        later = fitting[i + 1 :]
        if all(more.speed - point.speed < share * (more.n_devices - point.n_devices) for more in later):
            return point.n_devices
    return fitting[-1].n_devices
