"""The choices behind ``tensor_split="auto"`` and ``n_ubatch="auto"``. Nothing is measured here: speeds come from an
earlier calibration, from cards that we know, or are taken as equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from turboprefill.device import Device
from turboprefill.planner.gguf_facts import read_facts
from turboprefill.planner.memory import Needs
from turboprefill.planner.plan import best_ubatch, make_plan, plan_of
from turboprefill.planner.speeds import with_stored_speeds
from turboprefill.planner.split import units_per_device

__all__ = ["auto_split", "auto_ubatch"]


def auto_split(path: Path, devices: Sequence[Device]) -> list[float]:
    """Shares for ``-ts``; none where there is nothing to share.

    Raises:
        DoesNotFitError: the model does not fit with a context of 4,096 tokens.
        PlanError: the model cannot be planned.
    """
    if len(devices) < 2:
        return []
    plan = make_plan(read_facts(path), with_stored_speeds(path, devices), Needs())
    return [float(share) for share in plan.tensor_split]


def auto_ubatch(
    path: Path, devices: Sequence[Device], shares: Sequence[float], n_tokens: int, n_ubatch_max: int
) -> int:
    """The ubatch for prompts of `n_tokens` tokens, for a model with these shares; without any, llama.cpp's own.

    Raises:
        PlanError: the model cannot be planned.
    """
    if not devices:
        return n_ubatch_max
    facts, specs = read_facts(path), with_stored_speeds(path, devices)
    # by default llama.cpp goes by the memory that was free before the model was there: about all of it
    counts = units_per_device(shares or [float(device.memory_total or 1) for device in devices], len(facts.layers))
    plan = plan_of(facts, specs, Needs(n_ctx=n_tokens, n_ubatch=n_ubatch_max), counts, n_tokens)
    return best_ubatch(plan, n_ubatch_max)
