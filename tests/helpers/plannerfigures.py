"""Figures of docs/planner.md and docs/architecture.md that come from results, and the planner's predictions."""

from __future__ import annotations

import importlib.util
import re
import sys
from functools import cache
from types import ModuleType

from committedresults import DENSE_16K, EIGHT, MODELS, NO_PEER, ROOT, document, percent_faster, speed, speedup
from figures import Figure, figure

__all__ = ["architecture_figures", "planner_figures", "predicted_speedup"]

_FIRST = "dense pp2500 ub128 b1000"


@cache
def _validation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures_validate", ROOT / "benchmarks" / "planner" / "validate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def predicted_speedup(model: str, n_layer: int, n_devices: int, n_ubatch: int, n_prompt: int = 16384) -> float:
    """The planner's prediction for equal layers and staged copies over stock llama.cpp, on H200s."""
    validation = _validation()
    shares = {"upstream": (1.0,) * n_devices, "turbo-balanced": validation._equal(n_layer, n_devices)}
    stock, turbo = (
        validation.predicted(
            validation.Row("", model, n_layer, shares[arm], n_prompt, n_ubatch, arm, 0.0, "", staged=arm != "upstream")
        )
        for arm in ("upstream", "turbo-balanced")
    )
    return float(stock / turbo)


def planner_figures() -> list[Figure]:
    """The table of gains, and the sentence about accuracy, which repeats the page that validate.py writes."""
    page = (ROOT / "docs" / "planner-validation.md").read_text(encoding="utf-8")
    accuracy = re.search(r"all multi-GPU predictions: median error (.+) %, largest (.+) %, (\d+) rows", page)
    assert accuracy
    median, largest, n = accuracy.groups()
    uneven = document("planner-uneven")["ratios"]
    automatic = [speedup(MODELS, f"{model} pp16384 ub512", "turbo-auto") for model in ("moe", "swa", "hybrid")]
    by_hand = [speedup(MODELS, f"{model} pp16384 ub512", "tuned") for model in ("moe", "swa", "hybrid")]
    return [
        figure(
            "ubatch 512: stock {:,.0f} tok/s; TurboPrefill {:,.0f}, with an equal layer split {:,.0f}; with a chosen "
            "ubatch (256) as well {:,.0f} |",
            *(speed(EIGHT, DENSE_16K, arm) for arm in ("upstream", "turbo", "turbo-balanced", "turbo-auto")),
        ),
        figure(
            "stock {:,.0f}; equal layer split and a chosen ubatch (128) {:,.0f} |",
            *(speed(EIGHT, "dense pp4096 ub512", arm) for arm in ("upstream", "turbo-auto")),
        ),
        figure(
            "default split with TurboPrefill {:.2f}×; planned split {:.2f}× on the standard path, {:.2f}× with "
            "TurboPrefill |",
            *(
                uneven[name]
                for name in (
                    "default split, TurboPrefill",
                    "planned split, standard path",
                    "planned split, TurboPrefill",
                )
            ),
        ),
        figure(
            "`TURBOPREFILL_UBATCH=auto` {:.2f}×, {:.2f}×, {:.2f}× over stock; best manual tuning {:.2f}×, {:.2f}×, "
            "{:.2f}× |",
            *automatic,
            *by_hand,
        ),
        figure(
            "Over {} prompts measured on 4 and 8 H200s and not used for fitting, the median error of the predicted "
            "throughput is {} %, the largest {} %.",
            n,
            median,
            largest,
        ),
    ]


def architecture_figures() -> list[Figure]:
    """What transports cost."""
    first = [2.5e6 / speed(MODELS, _FIRST, arm) for arm in ("turbo-balanced-peer", "turbo-balanced", "tuned")]
    lost = -percent_faster(NO_PEER, DENSE_16K, "turbo-balanced", "turbo-balanced-staged")
    return [
        figure("on 4 GPUs that cost up to {:.0f} % of the throughput.", lost),
        figure(
            "a first prompt of 2,500 tokens took {:.0f} ms that way, {:.0f} ms staged, and {:.0f} ms with hand-tuned "
            "llama.cpp",
            *first,
        ),
    ]
