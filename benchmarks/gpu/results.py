"""From the drivers' raw lines to records with llama-bench's field names, the bound, and the check of all hashes."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import Any

from arms import ARMS, Case
from plan import Run

Record = dict[str, Any]


class Records:
    """One record per arm and case; samples of later rounds are appended."""

    def __init__(self, common: Record) -> None:
        self._common = common
        self._records: dict[tuple[str, str], Record] = {}

    def add(self, run: Run, shares: str, header: Record, jobs: Sequence[Record]) -> None:
        """Take over what one process printed: `header` once, `jobs` as far as it got."""
        for case, job in zip(run.cases, jobs, strict=False):
            self._add(run, case, shares, header, job, case.name, job["samples_ns"], (case.n_prompt, 0, 0))
            if case.n_gen:
                name = f"{case.model} tg{case.n_gen} @ d{case.n_prompt} ub{case.n_ubatch}"
                self._add(run, case, shares, header, job, name, job["gen_ns"], (0, case.n_gen, case.n_prompt))

    def _add(
        self,
        run: Run,
        case: Case,
        shares: str,
        header: Record,
        job: Record,
        name: str,
        samples: list[int],
        counts: tuple[int, int, int],
    ) -> None:
        new = {
            **self._common,
            "case": name,
            "step": case.step,
            "arm": run.arm.name,
            "baseline": run.arm.baseline,
            "model_filename": case.model,
            "model_type": header["model_type"],
            "model_size": header["model_size"],
            "model_n_params": header["model_n_params"],
            "n_layer": header["n_layer"],
            "n_batch": case.n_batch,
            "n_ubatch": case.n_ubatch,
            "type_k": "f16",
            "type_v": "f16",
            "n_gpu_layers": 999,
            "split_mode": "none" if run.arm.split == "none" else "layer",
            "main_gpu": 0,
            "flash_attn": 1,
            "devices": header["devices"],
            "tensor_split": shares,
            "build": run.arm.build,
            "peer_copies": run.arm.peer,
            "arm_env": dict(run.arm.env),
            "n_prompt": counts[0],
            "n_gen": counts[1],
            "n_depth": counts[2],
            "test_time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "load_ns": header["load_ns"],
            "samples_ns": [],
            "rounds": [],
            "logits": [],
            "states": [],
            "texts": [],
            "steps_ns": [],
        }
        record = self._records.setdefault((name, run.arm.name), new)
        record["samples_ns"] += samples
        record["rounds"] += [run.round] * len(samples)
        record["steps_ns"] = job["steps_ns"] or record["steps_ns"]
        record["turboprefill"] = job.get("turboprefill")
        record["device_bytes"] = [a - b for a, b in zip(header["free_empty"], job["free_after"], strict=True)]
        record["context_bytes"] = [a - b for a, b in zip(job["free_before"], job["free_after"], strict=True)]
        for field, source in (("logits", "logits"), ("states", "states"), ("texts", "gen_tokens")):
            record[field] = sorted({*record[field], *job[source]})

    def finished(self) -> list[Record]:
        """All records with their averages, cases in order."""
        for record in self._records.values():
            tokens, nanoseconds = record["n_prompt"] + record["n_gen"], record["samples_ns"]
            record["samples_ts"] = speeds = [1e9 * tokens / sample for sample in nanoseconds]
            for unit, values in (("ns", nanoseconds), ("ts", speeds)):
                record[f"avg_{unit}"] = statistics.fmean(values)
                record[f"stddev_{unit}"] = statistics.stdev(values) if len(values) > 1 else 0.0
            record["median_ts"] = statistics.median(speeds)
        return sorted(self._records.values(), key=_place)


def _place(record: Record) -> tuple[Any, ...]:
    return (record["model_filename"], record["n_gen"], record["n_prompt"], -record["n_ubatch"], record["case"])


def bound_ns(steps: Sequence[int], stages: int) -> float:
    """The time of a perfect pipeline of equal stages, from the time that each ubatch takes on one device."""
    return (sum(steps) + (stages - 1) * max(steps)) / stages


def find(records: Iterable[Record], case: str, arm: str) -> Record | None:
    """The record of an arm in a case."""
    return next((r for r in records if r["case"] == case and r["arm"] == arm), None)


def efficiency(record: Record, records: Iterable[Record], stages: int) -> float | None:
    """Bound over median time; None where `single` did not measure this prompt and ubatch size."""
    if record["arm"] == "single":
        return None
    for other in records:
        same = all(other[key] == record[key] for key in ("model_filename", "n_prompt", "n_ubatch", "n_gen"))
        if same and other["arm"] == "single" and other["steps_ns"]:
            return bound_ns(other["steps_ns"], stages) / float(statistics.median(record["samples_ns"]))
    return None


def check(records: Iterable[Record]) -> list[tuple[str, bool]]:
    """For each prompt and ubatch size: a sentence, and whether all arms' results are the same bytes."""
    groups: dict[str, list[Record]] = {}
    other_sizes = {arm.name for arm in ARMS.values() if arm.own_ubatch}
    for record in records:  # older files have arms that no longer exist; all of those used the case's ubatch size
        if record["arm"] in other_sizes:
            continue
        depth = record["n_depth"] or record["n_prompt"]
        groups.setdefault(f"{record['model_filename']} pp{depth} ub{record['n_ubatch']}", []).append(record)
    out = []
    for name, group in groups.items():
        faults, kinds = [], []
        for field, kind in (("logits", "logits"), ("states", "state"), ("texts", "generated tokens")):
            arms: dict[str, set[str]] = {}
            for record in group:
                for value in record[field]:
                    arms.setdefault(value, set()).add(record["arm"])
            if arms:
                kinds.append(kind)
            if len(arms) > 1:
                parts = "; ".join(f"{value}: {', '.join(sorted(who))}" for value, who in arms.items())
                faults.append(f"{kind} DIFFER ({parts})")
        count = len({record["arm"] for record in group})
        same = f"{' and '.join(kinds)} identical in {count} arms" if count > 1 else "one arm, nothing to compare with"
        text = "; ".join(faults) or same
        out.append((f"{name}: {text}", not faults))
    return out
