"""``turboprefill simulate``: what a machine that one does not have would do."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from turboprefill.cli.console import err, out
from turboprefill.cli.plan import find_devices, load_facts, ubatch_option

if TYPE_CHECKING:
    from turboprefill.planner import DeviceSpec
    from turboprefill.planner.predict import Point
    from turboprefill.planner.simulate import Link

__all__ = ["register"]

_SWEEPS = ("gpus", "prompt", "ubatch")
_PROMPTS = tuple(1 << i for i in range(9, 21))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("simulate")(simulate)


def simulate(
    model: Annotated[str, typer.Argument(help="GGUF file, or the shape of a synthetic model such as llama70.")],
    devices: Annotated[
        str | None, typer.Option(help="16xRTX4090, a JSON file, or names as CUDA0,CUDA1. Default: all GPUs.")
    ] = None,
    rpc: Annotated[str | None, typer.Option(help="RPC servers: HOST:PORT,HOST:PORT")] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 16384,
    n_ctx: Annotated[int | None, typer.Option(min=1, help="Tokens that must fit. Default: the prompt.")] = None,
    n_ubatch: Annotated[str, typer.Option(help="Tokens per ubatch, or auto.")] = "512",
    link: Annotated[str | None, typer.Option(help="nvlink, pcie4x4, 100Gbit, 25GB/s. Default: pcie4x16.")] = None,
    latency_us: Annotated[float | None, typer.Option(min=0, help="Microseconds of each transfer.")] = None,
    peer: Annotated[bool | None, typer.Option("--peer/--staged", help="Directly, or through host memory.")] = None,
    sweep: Annotated[str | None, typer.Option(help="gpus, prompt or ubatch: a range instead of one number.")] = None,
    most: Annotated[int, typer.Option(min=1, max=1024, help="GPUs that a sweep goes up to.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    out_file: Annotated[Path | None, typer.Option("--out", help="Draw the sweep into this PNG file.")] = None,
) -> None:
    """Predict how fast a prompt is read, on devices that need not be there.

    Speeds of the H200 and of devices measured with `turboprefill plan --calibrate` are measurements.
    Those of other cards are estimates from their data sheets, and only good for comparing.
    docs/planner.md says what is modelled, and how far predictions were off.

    [bold]Examples[/]

      turboprefill simulate model.gguf --devices 16xRTX4090 --link pcie4x4
      turboprefill simulate llama70 --devices 64xH200 --link 100Gbit --prompt 1000000
      turboprefill simulate model.gguf --devices 1xH200 --sweep gpus --most 32 --out gpus.png
    """
    from turboprefill.planner.links import link_from
    from turboprefill.planner.memory import Needs
    from turboprefill.planner.predict import predict

    if sweep is not None and sweep not in _SWEEPS:
        raise typer.BadParameter(f"--sweep is {sweep!r}: expected one of {', '.join(_SWEEPS)}")
    facts, specs = load_facts(model), find_devices(model, load_facts(model), devices, rpc)
    way = _table_link(devices) if link is None else None
    way = way or link_from(link or "pcie4x16", latency_us, None if peer is None else not peer)
    ubatch = ubatch_option(n_ubatch)
    needs = None if n_ctx is None else Needs(n_ctx=n_ctx)
    if sweep == "gpus":
        from turboprefill.planner.predict import sweep_devices

        points = sweep_devices(facts, specs, way, prompt, max(most, len(specs)), needs=needs, n_ubatch=ubatch)
    elif sweep == "prompt":
        points = [predict(facts, specs, way, n, needs=needs, n_ubatch=ubatch) for n in _PROMPTS]
    elif sweep == "ubatch":
        from turboprefill.planner.ubatch import SIZES

        sizes = [size for size in SIZES if size <= prompt]
        points = [predict(facts, specs, way, prompt, needs=needs, n_ubatch=size) for size in sizes]
    else:
        points = [predict(facts, specs, way, prompt, needs=needs, n_ubatch=ubatch)]
    if as_json:
        rows = [{**asdict(point), "tok_per_s": point.speed} for point in points]
        sources = sorted({spec.source for spec in specs})
        typer.echo(json.dumps({"model": facts.name, "link": asdict(way), "sources": sources, "points": rows}, indent=2))
    else:
        _show(facts.name, specs, way, points, sweep)
        if sweep is None and points[0].seconds:
            more = predict(facts, [*specs, replace(specs[-1], name="more")], way, prompt, needs=needs, n_ubatch=ubatch)
            out.print(f"one more device like the last: {more.speed / points[0].speed:.2f}x")
    if out_file is not None:
        _draw(out_file, facts.name, points, sweep)
        err.print(f"picture: {escape(str(out_file))}")


def _table_link(devices: str | None) -> Link | None:
    from turboprefill.planner.descriptions import read_table
    from turboprefill.planner.links import link_from_table

    return link_from_table(read_table(Path(devices))) if devices and Path(devices).is_file() else None


def _timed(devices: list[DeviceSpec]) -> bool:
    return all(device.timed for device in devices)


def _show(name: str, devices: list[DeviceSpec], way: Link, points: list[Point], sweep: str | None) -> None:
    from turboprefill.planner.predict import pays_until

    through = "through host memory" if way.staged else "directly"
    out.print(f"[bold]model[/] {escape(name)}   [bold]link[/] {way.bandwidth / 1e9:,.1f} GB/s, {through}")
    out.print(f"[dim]speeds: {escape('; '.join(dict.fromkeys(device.source for device in devices)))}[/]")
    out.print(_table(points, timed=_timed(devices)))
    out.print(
        "[dim]device, host: how busy the slowest device and the host are; "
        "llama.cpp: its own path with its default split[/]"
    )
    if sweep == "gpus" and (until := pays_until(points)) is not None:
        out.print(f"[bold]{until} devices[/]: after that, one more adds less than half of what a device does alone")
    elif sweep == "ubatch":
        best = max(points, key=lambda point: point.speed)
        out.print(f"[bold]ubatches of {best.n_ubatch}[/] read this prompt fastest")


def _table(points: list[Point], *, timed: bool) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    unit = "tok/s" if timed else "relative"
    for column in ("devices", "prompt", "ubatch", unit, "gain", "device", "host", "llama.cpp"):
        table.add_column(column, justify="right", no_wrap=True)
    first = next((point for point in points if point.seconds), None)
    for point in points:
        row = [str(point.n_devices), f"{point.n_prompt:,}", str(point.n_ubatch)]
        if point.seconds is None or first is None:
            table.add_row(*row, f"lacks {point.missing / 1e9:,.1f} GB", "", "", "", "")
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


def _draw(path: Path, name: str, points: list[Point], sweep: str | None) -> None:
    from turboprefill.planner import chart
    from turboprefill.planner.predict import pays_until

    if sweep is None:
        raise typer.BadParameter("--out draws a sweep: give --sweep too")
    labels = {"gpus": "devices", "prompt": "tokens of the prompt", "ubatch": "tokens of a ubatch"}
    xs = [{"gpus": p.n_devices, "prompt": p.n_prompt, "ubatch": p.n_ubatch}[sweep] for p in points]
    lines: dict[str, list[float | None]] = {
        "TurboPrefill, best split": [p.speed for p in points],
        "llama.cpp's own path, its default split": [p.n_prompt / p.standard if p.standard else None for p in points],
    }
    fitting = [p for p in points if p.seconds]
    if sweep == "gpus" and fitting:
        each = fitting[0].speed / fitting[0].n_devices
        lines["every device as fast as one"] = [each * x for x in xs]
    until = pays_until(points) if sweep == "gpus" else None
    chart.draw_sweep(path, xs, dict(lines), label=labels[sweep], title=name, mark=until)
