"""Chooses the layer split and the ubatch size, and predicts prefill throughput. Explained in docs/planner.md."""

from __future__ import annotations

from turboprefill.planner.balance import balance
from turboprefill.planner.cost import Cost, Rates
from turboprefill.planner.descriptions import from_table, from_text
from turboprefill.planner.device_spec import DeviceSpec, from_devices
from turboprefill.planner.errors import DoesNotFitError, PlanError
from turboprefill.planner.facts import Layer, ModelFacts
from turboprefill.planner.gguf_facts import read_facts
from turboprefill.planner.memory import Needs
from turboprefill.planner.plan import Plan, Stage, make_plan
from turboprefill.planner.ubatch import choose_ubatch

__all__ = [
    "Cost",
    "DeviceSpec",
    "DoesNotFitError",
    "Layer",
    "ModelFacts",
    "Needs",
    "Plan",
    "PlanError",
    "Rates",
    "Stage",
    "balance",
    "choose_ubatch",
    "from_devices",
    "from_table",
    "from_text",
    "make_plan",
    "read_facts",
]
