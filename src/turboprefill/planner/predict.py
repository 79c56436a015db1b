"""A prediction: a model, devices, a link and a prompt make a machine, which is simulated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from turboprefill.options import DEFAULT_UBATCH
from turboprefill.planner.device_spec import DeviceSpec
from turboprefill.planner.errors import DoesNotFitError
from turboprefill.planner.facts import ModelFacts
from turboprefill.planner.memory import Needs
from turboprefill.planner.plan import Plan, choose_plan, default_plan
from turboprefill.planner.simulate import Host, Link, Machine, Standard, simulate

__all__ = ["HOST", "Point", "host_of", "machine_of", "predict"]

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
    n_ubatch_max: int = DEFAULT_UBATCH,
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
        plan = choose_plan(facts, devices, needs, n_prompt, auto_ubatch=n_ubatch is None)
    except DoesNotFitError as error:
        return Point(len(devices), n_prompt, needs.n_ubatch, missing=error.missing)
    n_ubatch = plan.needs.n_ubatch
    done = simulate(machine_of(facts, plan, link), n_prompt, n_ubatch)
    usual = machine_of(facts, default_plan(facts, devices, plan.needs, n_prompt), link, Host())
    standard = simulate(usual, n_prompt, n_ubatch, Standard(blocking=link.staged))
    return Point(
        len(plan.busy),
        n_prompt,
        n_ubatch,
        done.seconds,
        standard.seconds,
        devices_busy=max(done.busy) / done.seconds,
        host_busy=done.host / done.seconds,
    )
