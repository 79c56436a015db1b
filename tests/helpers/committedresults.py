"""The committed benchmark results, as tests compare documents with them."""

from __future__ import annotations

import json
import statistics
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EIGHT = "2026-11-21-8xH200"
MODELS = "2026-11-21-4xH200-models"
GENERATION = "2026-11-21-4xH200"
NO_PEER = "2026-11-20-4xH200-no-peer"
OLD = "2026-11-20-4xH200"
DENSE_16K, DENSE_32K = "dense pp16384 ub512", "dense pp32768 ub512"


@cache
def document(name: str) -> dict[str, Any]:
    """A file of benchmarks/results, by its name without the ending."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def records(file: str, *, arm: str = "", timed: bool = True) -> list[dict[str, Any]]:
    """The records of a file: of one arm or all; the timed ones, or the first prompts too."""
    found = document(file)["results"]
    return [r for r in found if arm in ("", r["arm"]) and not (timed and r["step"] == "correctness")]


def record(file: str, case: str, arm: str) -> dict[str, Any]:
    """The record of one case and arm.

    Raises:
        ValueError: there is not exactly one.
    """
    (found,) = (r for r in document(file)["results"] if (r["case"], r["arm"]) == (case, arm))
    return found


def has(file: str, case: str, arm: str) -> bool:
    """Whether an arm ran a case."""
    return any((r["case"], r["arm"]) == (case, arm) for r in document(file)["results"])


def speed(file: str, case: str, arm: str) -> float:
    """Median tokens per second, from the raw samples."""
    found = record(file, case, arm)
    return statistics.median(1e9 * (found["n_prompt"] + found["n_gen"]) / ns for ns in found["samples_ns"])


def speedup(file: str, case: str, arm: str, base: str = "upstream") -> float:
    """How many times as fast an arm is as another one."""
    return speed(file, case, arm) / speed(file, case, base)


def percent_faster(file: str, case: str, arm: str, base: str = "tuned") -> float:
    """By how many percent an arm is faster than another one."""
    return 100 * (speedup(file, case, arm, base) - 1)


def spread(found: dict[str, Any]) -> float:
    """Fastest less slowest sample, in percent of the median."""
    speeds = [1e9 * (found["n_prompt"] + found["n_gen"]) / ns for ns in found["samples_ns"]]
    return 100 * (max(speeds) - min(speeds)) / statistics.median(speeds)


def bound(file: str, case: str, n_devices: int) -> float:
    """Tokens per second of a perfect pipeline of equal stages, from the ubatches that one GPU computed alone."""
    single = record(file, case, "single")
    steps = single["steps_ns"]
    return 1e9 * single["n_prompt"] * n_devices / (sum(steps) + (n_devices - 1) * max(steps))


def percent_of_bound(file: str, case: str, arm: str, n_devices: int) -> float:
    """Throughput in percent of that of a perfect pipeline."""
    return 100 * speed(file, case, arm) / bound(file, case, n_devices)


def percent_more_memory(file: str, case: str, arm: str, base: str = "upstream") -> float:
    """By how many percent an arm uses more device memory, all GPUs together."""
    used, standard = (sum(record(file, case, name)["device_bytes"]) for name in (arm, base))
    return 100 * (used / standard - 1)


def cases(file: str, arm: str, base: str, prefix: str = "") -> list[str]:
    """Timed cases of a prompt that both arms ran."""
    return [
        r["case"]
        for r in records(file, arm=arm)
        if r["case"].startswith(prefix) and not r["n_gen"] and has(file, r["case"], base)
    ]
