"""``turboprefill simulate``: predicts throughput on hardware you don't have."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from turboprefill import plots
from turboprefill.cli.console import err, out
from turboprefill.cli.plan_options import JsonOption, ModelArgument, RpcOption, UbatchOption, devices_of, ubatch_of
from turboprefill.options import DEFAULT_UBATCH

if TYPE_CHECKING:
    from turboprefill.planner import DeviceSpec, ModelFacts
    from turboprefill.planner.predict import Point
    from turboprefill.planner.simulate import Link

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("simulate")(simulate)


def simulate(
    model: ModelArgument,
    devices: Annotated[
        str | None, typer.Option(help="16xRTX4090, a JSON file, or device names as in CUDA0,CUDA1. Default: all GPUs.")
    ] = None,
    rpc: RpcOption = None,
    prompt: Annotated[int, typer.Option(min=1, help="Prompt length in tokens.")] = 16384,
    n_ctx: Annotated[
        int | None, typer.Option(min=1, help="Context size in tokens, which must fit in memory. Default: the prompt.")
    ] = None,
    n_ubatch: UbatchOption = str(DEFAULT_UBATCH),
    link: Annotated[
        str | None, typer.Option(help="Link between devices: nvlink, pcie4x4, 100Gbit, 25GB/s. Default: pcie4x16.")
    ] = None,
    latency_us: Annotated[float | None, typer.Option(min=0, help="Latency of each transfer, in microseconds.")] = None,
    peer: Annotated[
        bool | None, typer.Option("--peer/--staged", help="Copy between devices directly, or through host memory.")
    ] = None,
    over: Annotated[str | None, typer.Option("--sweep", help="Vary one of gpus, prompt, ubatch.")] = None,
    most: Annotated[int, typer.Option(min=1, max=1024, help="Largest number of GPUs in a sweep.")] = 16,
    as_json: JsonOption = False,
    out_file: Annotated[Path | None, typer.Option("--out", help="Draw the sweep to this PNG file.")] = None,
) -> None:
    """Predict prefill throughput on hardware you don't have.

    Speeds of the H200, and of devices measured with `turboprefill plan --calibrate`, are measurements.
    Those of other cards are estimates from their datasheets, and good for comparisons only.
    docs/planner.md describes what is modelled and how accurate it is.

    [bold]Examples[/]

      turboprefill simulate model.gguf --devices 16xRTX4090 --link pcie4x4
      turboprefill simulate llama70 --devices 64xH200 --link 100Gbit --prompt 1000000
      turboprefill simulate model.gguf --devices 1xH200 --sweep gpus --most 32 --out gpus.png
    """
    from turboprefill.planner.links import find_link
    from turboprefill.planner.memory import Needs
    from turboprefill.planner.presets import load_facts
    from turboprefill.planner.sweeps import SWEEPS, predict_one_more, sweep

    if over is not None and over not in SWEEPS:
        raise typer.BadParameter(f"--sweep is {over!r}: expected one of {', '.join(SWEEPS)}")
    if out_file is not None:
        plots.require(out_file)
    facts = load_facts(model)
    specs = devices_of(model, devices, rpc)
    way = find_link(link, devices, latency_us, None if peer is None else not peer)
    ubatch = ubatch_of(n_ubatch)
    needs = None if n_ctx is None else Needs(n_ctx=n_ctx)
    points = sweep(over, facts, specs, way, prompt, most=most, needs=needs, n_ubatch=ubatch)
    if as_json:
        typer.echo(_json(facts, specs, way, points))
    else:
        _show(facts, specs, way, points, over)
        if over is None and points[0].seconds:
            more = predict_one_more(facts, specs, way, prompt, needs=needs, n_ubatch=ubatch)
            out.print(f"one more device like the last: {more.speed / points[0].speed:.2f}x")
    if out_file is not None:
        _draw(out_file, facts.name, points, over)
        err.print(f"picture: {escape(str(out_file))}")


def _json(facts: ModelFacts, specs: Sequence[DeviceSpec], way: Link, points: Sequence[Point]) -> str:
    rows = [{**asdict(point), "tok_per_s": point.speed} for point in points]
    sources = sorted({spec.source for spec in specs})
    return json.dumps({"model": facts.name, "link": asdict(way), "sources": sources, "points": rows}, indent=2)


def _show(facts: ModelFacts, specs: Sequence[DeviceSpec], way: Link, points: Sequence[Point], over: str | None) -> None:
    from turboprefill.planner.sweeps import pays_until

    through = "through host memory" if way.staged else "directly"
    out.print(f"[bold]model[/] {escape(facts.name)}   [bold]link[/] {way.bandwidth / 1e9:,.1f} GB/s, {through}")
    out.print(f"[dim]speeds: {escape('; '.join(dict.fromkeys(spec.source for spec in specs)))}[/]")
    out.print(_table(points, timed=all(spec.timed for spec in specs)))
    out.print(
        "[dim]device, host: utilization of the busiest device and of the host; "
        "llama.cpp: stock llama.cpp with its default split[/]"
    )
    if over == "gpus" and (until := pays_until(points)) is not None:
        out.print(
            f"[bold]{until} devices[/]: beyond that, one more adds less than half of a single device's throughput"
        )
    elif over == "ubatch":
        best = max(points, key=lambda point: point.speed)
        out.print(f"[bold]ubatch {best.n_ubatch}[/] is the fastest for this prompt")


def _table(points: Sequence[Point], *, timed: bool) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    unit = "tok/s" if timed else "relative"
    for column in ("devices", "prompt", "ubatch", unit, "speedup", "device", "host", "llama.cpp"):
        table.add_column(column, justify="right", no_wrap=True)
    first = next((point for point in points if point.seconds), None)
    for point in points:
        row = [str(point.n_devices), f"{point.n_prompt:,}", str(point.n_ubatch)]
        if point.seconds is None or first is None:
            table.add_row(*row, f"{point.missing / 1e9:,.1f} GB short", "", "", "", "")
            continue
        theirs = point.n_prompt / (point.standard or point.seconds)
        scale = 1.0 if timed else 100 / first.speed
        table.add_row(
            *row,
            f"{point.speed * scale:,.0f}",
            f"{point.speed / first.speed:.2f}x",
            f"{100 * point.devices_busy:.0f}%",
            f"{100 * point.host_busy:.0f}%",
            f"{theirs * scale:,.0f}",
        )
    return table


def _draw(path: Path, name: str, points: Sequence[Point], over: str | None) -> None:
    from turboprefill.planner import chart
    from turboprefill.planner.sweeps import pays_until

    if over is None:
        raise typer.BadParameter("--out draws a sweep: add --sweep")
    labels = {"gpus": "devices", "prompt": "prompt length, tokens", "ubatch": "ubatch size, tokens"}
    xs = [{"gpus": p.n_devices, "prompt": p.n_prompt, "ubatch": p.n_ubatch}[over] for p in points]
    lines: dict[str, list[float | None]] = {
        "TurboPrefill, planned split": [p.speed for p in points],
        "stock llama.cpp, default split": [p.n_prompt / p.standard if p.standard else None for p in points],
    }
    fitting = [p for p in points if p.seconds]
    if over == "gpus" and fitting:
        each = fitting[0].speed / fitting[0].n_devices
        lines["linear scaling"] = [each * x for x in xs]
    until = pays_until(points) if over == "gpus" else None
    chart.draw_sweep(path, xs, dict(lines), label=labels[over], title=name, mark=until)
