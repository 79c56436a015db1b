"""A plan: which device holds which layers, what that takes of its memory, and how fast a prompt is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from turboprefill.planner import memory
from turboprefill.planner.balance import balance
from turboprefill.planner.cost import Cost, flow_seconds, layer_cost, pipeline_seconds, prompt_seconds, total
from turboprefill.planner.device_spec import DeviceSpec
from turboprefill.planner.errors import PlanError
from turboprefill.planner.facts import ModelFacts
from turboprefill.planner.memory import Needs
from turboprefill.planner.split import shares_for, units_per_device
from turboprefill.planner.ubatch import choose_ubatch

__all__ = ["Plan", "Stage", "best_ubatch", "choose_plan", "default_counts", "default_plan", "make_plan", "plan_of"]


@dataclass(frozen=True)
class Stage:
    """A device with its part of the model. Sizes are bytes.

    Attributes:
        device: its name.
        first, n_layers: its layers.
        has_output: whether it has the output layer too.
        weights, kv, state, buffers: what it holds.
        memory: what it may hold; None if that is not known.
        seconds: for the whole prompt, in seconds if the plan is timed.
        cost: t(c, p) of all its layers.
    """

    device: str
    first: int
    n_layers: int
    has_output: bool
    weights: int
    kv: int
    state: int
    buffers: int
    memory: int | None
    seconds: float
    cost: Cost

    @property
    def used(self) -> int:
        """Bytes in all."""
        return self.weights + self.kv + self.state + self.buffers

    @property
    def fits(self) -> bool:
        """Whether the device has room for all of it, as far as that is known."""
        return self.memory is None or self.used <= self.memory


@dataclass(frozen=True)
class Plan:
    """Layers on devices. `tensor_split` is what llama.cpp takes as ``-ts`` for it.

    Attributes:
        stages: one for each device, in llama.cpp's order; some may hold nothing.
        tensor_split: whole-number shares.
        needs: the context that it is for.
        n_prompt: tokens of the prompt that it is for.
        timed: whether seconds are seconds; if not, only their ratios mean something.
        sources: where the speeds come from.
    """

    stages: tuple[Stage, ...]
    tensor_split: tuple[int, ...]
    needs: Needs
    n_prompt: int
    timed: bool
    sources: tuple[str, ...]

    @property
    def busy(self) -> list[Stage]:
        """Stages that hold layers."""
        return [stage for stage in self.stages if stage.n_layers]

    @property
    def fits(self) -> bool:
        """Whether all stages fit into the memory of their devices."""
        return all(stage.fits for stage in self.stages)

    @property
    def slowest_seconds(self) -> float:
        """Time that the slowest stage computes for the prompt."""
        return max((stage.seconds for stage in self.stages), default=0.0)

    @property
    def seconds(self) -> float:
        """Time of the prompt, if nothing but the devices takes time."""
        return flow_seconds([prompt_seconds(stage.cost, self.n_prompt, self.needs.n_ubatch) for stage in self.busy])

    @property
    def bound_seconds(self) -> float:
        """Time of a perfect pipeline of as many stages, over which the same work is spread evenly."""
        cost = total(stage.cost for stage in self.busy)
        times = prompt_seconds(cost, self.n_prompt, self.needs.n_ubatch)
        return pipeline_seconds(times, len(self.busy)) / len(self.busy)

    @property
    def overhead(self) -> float | None:
        """What a ubatch costs beside its tokens, in tokens: a / b of the slowest stage. None if there is nothing."""
        slowest = max(self.busy, key=lambda stage: stage.seconds, default=None)
        return slowest.cost.a / slowest.cost.b if slowest is not None and slowest.cost.b > 0 else None

    @property
    def ts_line(self) -> str:
        """What to give to llama-server."""
        return "-ts " + ",".join(map(str, self.tensor_split))

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        keys = ("device", "first", "n_layers", "has_output", "weights", "kv", "state", "buffers", "memory", "seconds")
        return {
            "tensor_split": list(self.tensor_split),
            "n_prompt": self.n_prompt,
            **asdict(self.needs),
            "timed": self.timed,
            "sources": list(self.sources),
            "seconds": self.seconds,
            "bound_seconds": self.bound_seconds,
            "ubatch_overhead_tokens": self.overhead,
            "stages": [{key: getattr(stage, key) for key in keys} for stage in self.stages],
        }


def costs_of(facts: ModelFacts, device: DeviceSpec) -> list[Cost]:
    """What each layer costs on a device."""
    return [layer_cost(layer, device.rates) for layer in facts.layers]


def make_plan(facts: ModelFacts, devices: Sequence[DeviceSpec], needs: Needs, n_prompt: int | None = None) -> Plan:
    """The best plan.

    Args:
        facts: the model.
        devices: the devices, in llama.cpp's order.
        needs: the context.
        n_prompt: tokens of a usual prompt; the whole context by default.

    Raises:
        DoesNotFitError: no split fits into the devices' memory.
        PlanError: there are no devices.
    """
    n = n_prompt or needs.n_ctx
    fixed = memory.compute_bytes(facts, needs)
    times = [
        # the output computes one row of a prompt, next to nothing
        [*(float(prompt_seconds(cost, n, needs.n_ubatch).sum()) for cost in costs_of(facts, device)), 0.0]
        for device in devices
    ]
    capacities = [None if device.memory is None else device.memory - fixed for device in devices]
    names = [device.name for device in devices]
    counts = balance(memory.unit_bytes(facts, needs), times, capacities, names)
    return plan_of(facts, devices, needs, counts, n)


def choose_plan(
    facts: ModelFacts,
    devices: Sequence[DeviceSpec],
    needs: Needs,
    n_prompt: int | None = None,
    *,
    auto_ubatch: bool = False,
) -> Plan:
    """As :func:`make_plan`; with `auto_ubatch`, the ubatch is chosen too, of at most `needs.n_ubatch` tokens."""
    plan = make_plan(facts, devices, needs, n_prompt)
    if not auto_ubatch:
        return plan
    return make_plan(facts, devices, replace(needs, n_ubatch=best_ubatch(plan, needs.n_ubatch)), n_prompt)


def plan_of(
    facts: ModelFacts, devices: Sequence[DeviceSpec], needs: Needs, counts: Sequence[int], n_prompt: int
) -> Plan:
    """The plan with so many units (layers, and the output) on each device, whether it is good or not."""
    if sum(counts) != len(facts.layers) + 1:
        raise PlanError(f"{list(counts)} are {sum(counts)} units: expected {len(facts.layers) + 1}")
    stages, first = [], 0
    fixed = memory.compute_bytes(facts, needs)
    for device, count in zip(devices, counts, strict=True):
        has_output = count > 0 and first + count == len(facts.layers) + 1
        n_layers = count - has_output
        layers = facts.layers[first : first + n_layers]
        cost = total(layer_cost(layer, device.rates) for layer in layers)
        logits = memory.output_bytes(facts, needs) - facts.output_bytes
        stages.append(
            Stage(
                device=device.name,
                first=first,
                n_layers=n_layers,
                has_output=has_output,
                weights=sum(layer.weight_bytes for layer in layers) + has_output * facts.output_bytes,
                kv=sum(memory.kv_bytes(layer, needs) for layer in layers),
                state=sum(memory.state_bytes(layer, needs) for layer in layers),
                buffers=(fixed if count else 0) + has_output * logits,
                memory=device.memory,
                seconds=float(prompt_seconds(cost, n_prompt, needs.n_ubatch).sum()) if n_layers else 0.0,
                cost=cost,
            )
        )
        first += count
    sources = tuple(dict.fromkeys(device.source for device in devices))
    timed = all(device.timed for device in devices)
    return Plan(tuple(stages), tuple(shares_for(counts)), needs, n_prompt, timed, sources)


def default_counts(facts: ModelFacts, devices: Sequence[DeviceSpec]) -> list[int]:
    """The units that llama.cpp gives to each device without ``-ts``: by free memory."""
    shares = [1.0 if device.memory is None else float(device.memory) for device in devices]
    return units_per_device(shares, len(facts.layers))


def default_plan(facts: ModelFacts, devices: Sequence[DeviceSpec], needs: Needs, n_prompt: int) -> Plan:
    """What llama.cpp does without ``-ts``, whether it fits or not."""
    return plan_of(facts, devices, needs, default_counts(facts, devices), n_prompt)


def best_ubatch(plan: Plan, n_ubatch_max: int) -> int:
    """The size of ubatches that reads the plan's prompt fastest."""
    return choose_ubatch([stage.cost for stage in plan.busy], plan.n_prompt, len(plan.busy), n_ubatch_max)
