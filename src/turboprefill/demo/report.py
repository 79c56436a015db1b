"""The result in a table, in words and as JSON."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from turboprefill.demo.measure import Arm, Result, busy_percent

__all__ = ["as_json", "conclusion", "picture_title", "show", "write_json"]


def as_json(result: Result) -> dict[str, Any]:
    """The result as plain values. The first eight keys are a promise; more may follow."""
    standard, turbo = result.standard, result.turbo
    return {
        "prompt_tokens": result.n_prompt,
        "n_ubatch": result.workload.n_ubatch,
        "devices": result.devices,
        "standard": {"tok_per_s": result.tok_per_s(standard)},
        "turbo": {
            "tok_per_s": result.tok_per_s(turbo),
            "pipelined_ubatches": turbo.pipelined_ubatches,
            "standard_ubatches": turbo.standard_ubatches,
        },
        "speedup": result.speedup,
        "logits_identical": result.logits_identical,
        "state_identical": result.state_identical,
        "n_batch": result.workload.n_batch,
        "model": result.workload.model,
        "text_tokens": result.n_text,
        "compared_prefix_tokens": result.n_prefix,
        "ttft_s": {"standard": standard.seconds, "turbo": turbo.seconds},
        "stages": [{"device": device, "transport": transport} for device, transport in result.stages],
        "busy_percent": {"standard": busy_percent(standard.spans), "turbo": busy_percent(turbo.spans)},
        "reason": turbo.reason,
        "tensor_split": None if result.workload.tensor_split is None else list(result.workload.tensor_split),
        "as_shipped": _shipped_json(result),
        "speedup_over_as_shipped": result.speedup_over_shipped,
    }


def _shipped_json(result: Result) -> dict[str, Any] | None:
    if result.shipped is None:
        return None
    return {"tok_per_s": result.tok_per_s(result.shipped), "n_ubatch": result.workload.shipped_ubatch}


def write_json(result: Result, path: Path) -> None:
    """Write `as_json` to `path`.

    Raises:
        OSError: the file cannot be written.
    """
    path.write_text(json.dumps(as_json(result), indent=2) + "\n", encoding="utf-8")


def picture_title(result: Result) -> str:
    """What the timelines show, in a line."""
    return f"{result.n_prompt:,} tokens in ubatches of {result.workload.n_ubatch}, {len(result.devices)} devices"


def show(result: Result, console: Console) -> None:
    """Print configuration, table and conclusion."""
    workload = result.workload
    console.print()
    console.print(f"[bold]model[/]   {escape(workload.model)}" + _note(result.description))
    sizes = f"ubatches of {workload.n_ubatch}, calls of {workload.n_batch}"
    console.print(f"[bold]prompt[/]  {result.n_prompt:,} tokens, {sizes}")
    if result.n_prompt > result.n_text:
        console.print(f"        (the text has {result.n_text:,} tokens and is repeated)")
    if result.workload.tensor_split is not None:
        console.print(f"[bold]split[/]   -ts {','.join(f'{share:g}' for share in result.workload.tensor_split)}")
    transports = dict(result.stages)
    for device in result.devices:
        console.print(f"[bold]device[/]  {escape(device)}" + _note(_transport(transports.get(device, ""))))
    console.print(_table(result))
    for line in conclusion(result):
        console.print(line)


def conclusion(result: Result) -> list[str]:
    """What the numbers mean, in sentences with rich markup; none about speed if nothing was pipelined."""
    lines = _speed(result) if result.pipelined else []
    lines += _standard_ubatches(result)
    lines.append(
        _verdict(
            result.logits_identical,
            f"Logits are byte-identical: at the last position in every run, and at all of the first "
            f"{result.n_prefix:,} positions.",
            "LOGITS DIFFER between the two paths. This is a bug: do not use this build.",
        )
    )
    lines.append(
        _verdict(
            result.state_identical,
            "The saved state (everything in the caches after the prompt) is byte-identical.",
            "THE STATE DIFFERS between the two paths. This is a bug: do not use this build.",
        )
    )
    return lines


def _speed(result: Result) -> list[str]:
    lines = []
    if (over_shipped := result.speedup_over_shipped) is not None:
        lines.append(
            f"[bold]TurboPrefill, as planned, processes this prompt {_ratio(over_shipped)} stock llama.cpp "
            f"(its own split, ubatches of {result.workload.shipped_ubatch}).[/]"
        )
    same = " with the same split and ubatches" if lines else ""
    lines.append(f"[bold]TurboPrefill processes this prompt {_ratio(result.speedup)} the standard path{same}.[/]")
    return lines


def _standard_ubatches(result: Result) -> list[str]:
    turbo, reason = result.turbo, escape(result.turbo.reason or "no reason was given")
    count = f"{turbo.standard_ubatches} of {turbo.standard_ubatches + turbo.pipelined_ubatches} ubatches"
    if not result.pipelined:
        return [
            f"[bold red]NOTHING WAS PIPELINED: {count} took the standard path: {reason}.[/]",
            "Both runs used the standard path, so this run says nothing about TurboPrefill.",
        ]
    if turbo.standard_ubatches:
        return [f"[yellow]{count} took the standard path even with TurboPrefill: {reason}[/]"]
    return []


def _table(result: Result) -> Table:
    table = Table(title=None, show_edge=False, pad_edge=False)
    table.add_column("path")
    for name in ("tok/s", "TTFT", "+-", "speedup", "runs", "busy"):
        table.add_column(name, justify="right")
    base = result.shipped or result.standard
    for arm in (result.shipped, result.standard, result.turbo):
        if arm is None:
            continue
        rates = result.tok_per_s(arm)
        table.add_row(
            arm.name,
            f"{statistics.median(rates):,.0f}",
            f"{statistics.median(arm.seconds):.2f} s",
            f"{50 * (max(rates) - min(rates)) / statistics.median(rates):.0f}%",
            _speedup(base, arm) if result.pipelined else "-",
            str(len(rates)),
            _busy(result, arm),
        )
    return table


def _speedup(base: Arm, arm: Arm) -> str:
    return f"[bold]{statistics.median(base.seconds) / statistics.median(arm.seconds):.2f}x[/]"


def _busy(result: Result, arm: Arm) -> str:
    busy = busy_percent(arm.spans)
    return "/".join(f"{busy[device]:.0f}" for device in result.devices if device in busy) + "%" if busy else "-"


def _ratio(speedup: float) -> str:
    return f"{speedup:.2f} times as fast as" if speedup >= 1 else f"at {speedup:.2f} times the speed of"


def _verdict(fine: bool, good: str, bad: str) -> str:
    return f"[green]{good}[/]" if fine else f"[bold red]{bad}[/]"


def _note(text: str) -> str:
    return f"  [dim]{escape(text)}[/]" if text else ""


def _transport(name: str) -> str:
    return f"input: {name}" if name and name != "none" else ""
