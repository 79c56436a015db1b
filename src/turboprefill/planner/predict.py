"""Predictions: a model, devices, a link and a prompt make a machine; its speed, alone or over a range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from turboprefill.planner.device_spec import DeviceSpec
from turboprefill.planner.errors import DoesNotFitError
from turboprefill.planner.facts import ModelFacts
from turboprefill.planner.memory import Needs
from turboprefill.planner.plan import Plan, best_ubatch, default_plan, make_plan
from turboprefill.planner.simulate import Host, Link, Machine, Standard, simulate

__all__ = ["HOST", "Point", "machine_of", "pays_until", "predict", "sweep_devices"]

# Seconds of capture, from the statistics of runs on 8x H200: benchmarks/planner/validate.py --fit.
HOST = Host(per_ubatch=0.74e-3, per_cell=2.98e-10)


@dataclass(frozen=True)
class Point:
    """A prediction.

    Attributes:
        n_devices: devices that hold layers.
        n_prompt, n_ubatch: tokens.
        seconds: TurboPrefill's path; None if the model does not fit.
        standard: seconds of llama.cpp's own path with its default split.
        missing: bytes by which it does not fit.
        devices_busy: share of the time in which the slowest device computes.
        host_busy: share of the time in which the host prepares ubatches.
    """

    n_devices: int
    n_prompt: int
    n_ubatch: int
    seconds: float | None = None
    standard: float | None = None
    missing: int = 0
    devices_busy: float = 0.0
    host_busy: float = 0.0

    @property
    def speed(self) -> float:
        """Tokens per second; 0 if the model does not fit."""
        return self.n_prompt / self.seconds if self.seconds else 0.0


def host_of(facts: ModelFacts, host: Host = HOST) -> Host:
    """The host's work for this model: a mask for each kind of attention."""
    kinds = facts.kinds()
    return replace(host, masks=("attention" in kinds or "hybrid" in kinds) + ("window" in kinds))


def machine_of(facts: ModelFacts, plan: Plan, link: Link, host: Host | None = None) -> Machine:
    """The machine that a plan makes, with the same link between all neighbours."""
    costs = [stage.cost for stage in plan.busy]
    return Machine(
        costs, [link] * (len(costs) - 1), host_of(facts) if host is None else host, boundary=4.0 * facts.n_embd
    )


def predict(
    facts: ModelFacts,
    devices: Sequence[DeviceSpec],
    link: Link,
    n_prompt: int,
    *,
    needs: Needs | None = None,
    n_ubatch: int | None = None,
    n_ubatch_max: int = 512,
) -> Point:
    """One prediction, with the best split of the layers.

    Args:
        facts, devices: the model and the devices.
        link: between neighbours.
        n_prompt: tokens of the prompt.
        needs: the context; by default one for the prompt. Its ubatch is replaced.
        n_ubatch: tokens of a ubatch; None for the best one up to `n_ubatch_max`.
    """
    needs = replace(needs or Needs(n_ctx=n_prompt), n_ubatch=n_ubatch or n_ubatch_max)
    try:
        plan = make_plan(facts, devices, needs, n_prompt)
        if n_ubatch is None:
            needs = replace(needs, n_ubatch=best_ubatch(plan, n_ubatch_max))
            plan = make_plan(facts, devices, needs, n_prompt)
    except DoesNotFitError as error:
        return Point(len(devices), n_prompt, needs.n_ubatch, missing=error.missing)
    machine = machine_of(facts, plan, link)
    done = simulate(machine, n_prompt, needs.n_ubatch)
    usual = machine_of(facts, default_plan(facts, devices, needs, n_prompt), link)
    rules = Standard(blocking=link.staged)
    theirs = simulate(replace(usual, host=Host()), n_prompt, needs.n_ubatch, rules).seconds
    return Point(
        len(plan.busy),
        n_prompt,
        needs.n_ubatch,
        done.seconds,
        theirs,
        devices_busy=max(done.busy) / done.seconds,
        host_busy=done.host / done.seconds,
    )


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
        some = [*devices[:n], *(replace(devices[-1], name=f"more{i}") for i in range(n - len(devices)))]
        point = predict(facts, some, link, n_prompt, needs=needs, n_ubatch=n_ubatch)
        points.append(replace(point, n_devices=n))
    return points


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
