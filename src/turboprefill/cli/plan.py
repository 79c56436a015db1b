"""``turboprefill plan``: which device should hold which layers, and what comes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from turboprefill.cli.console import err, out

if TYPE_CHECKING:
    from turboprefill.planner import DeviceSpec, ModelFacts, Needs, Plan

__all__ = ["register"]

_UBATCH = 512  # llama.cpp's own default


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan")(plan)


def plan(
    model: Annotated[str, typer.Argument(help="GGUF file, or the shape of a synthetic model such as llama70.")],
    devices: Annotated[
        str | None,
        typer.Option(help="A JSON file, 8x80GB, 4xH200, 2x24GB@0.5, or names as CUDA0,CUDA1. Default: all GPUs."),
    ] = None,
    rpc: Annotated[str | None, typer.Option(help="RPC servers: HOST:PORT,HOST:PORT")] = None,
    n_ctx: Annotated[int, typer.Option(min=1, help="Tokens that must fit into memory.")] = 8192,
    n_ubatch: Annotated[str, typer.Option(help="Tokens per ubatch, or auto.")] = str(_UBATCH),
    prompt: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a usual prompt. Default: the whole context.")
    ] = None,
    type_k: Annotated[str, typer.Option(help="Type of the KV cache's keys.")] = "f16",
    type_v: Annotated[str, typer.Option(help="Type of its values.")] = "f16",
    n_seq_max: Annotated[int, typer.Option(min=1, help="Sequences that share the context.")] = 1,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Measure the devices' speed with this model.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    out_file: Annotated[Path | None, typer.Option("--out", help="Draw the plan into this PNG file.")] = None,
) -> None:
    """Choose the layers for each device, so that the slowest one is as fast as it can be and everything fits.

    Reads the model file only; loads it with --calibrate. Needs no GPU if --devices describes some.

    [bold]Examples[/]

      turboprefill plan model.gguf
      turboprefill plan model.gguf --devices 8x80GB --n-ctx 32768
      turboprefill plan model.gguf --devices 2xRTX4090,1xRTX3090 --n-ubatch auto --out plan.png
      turboprefill plan model.gguf --rpc 10.0.0.2:50052,10.0.0.3:50052 --calibrate
    """
    from turboprefill.planner import make_plan
    from turboprefill.planner.memory import Needs
    from turboprefill.planner.plan import best_ubatch, default_plan

    facts = load_facts(model)
    ubatch = ubatch_option(n_ubatch)
    needs = Needs(n_ctx, min(ubatch or _UBATCH, n_ctx), n_seq_max, type_k, type_v)
    specs = find_devices(model, facts, devices, rpc, calibrate=calibrate)
    made = make_plan(facts, specs, needs, prompt)
    if ubatch is None:
        needs = replace(needs, n_ubatch=best_ubatch(made, needs.n_ubatch))
        made = make_plan(facts, specs, needs, prompt)
    usual = default_plan(facts, specs, needs, made.n_prompt)
    if as_json:
        table = [spec.as_row() for spec in specs]  # which --devices takes again
        typer.echo(
            json.dumps({"model": facts.name, **made.as_json(), "default": usual.as_json(), "devices": table}, indent=2)
        )
    else:
        _show(facts, made, usual)
    if out_file is not None:
        from turboprefill.planner import picture

        picture.draw(out_file, made, f"{facts.name}, {made.ts_line}, context of {n_ctx:,} tokens")
        err.print(f"picture: {escape(str(out_file))}")


def load_facts(model: str) -> ModelFacts:
    """The facts of a file, or of a preset if there is no such file."""
    from turboprefill.planner import read_facts
    from turboprefill.planner.presets import PRESETS, preset_facts

    if model in PRESETS and not Path(model).exists():
        return preset_facts(model)
    return read_facts(model)


def ubatch_option(text: str) -> int | None:
    """A number of tokens; None for ``auto``."""
    if text == "auto":
        return None
    if not text.isdigit() or not 0 < int(text) <= 65536:
        raise typer.BadParameter(f"--n-ubatch is {text!r}: expected a number of tokens, or auto")
    return int(text)


def find_devices(
    model: str, facts: ModelFacts, devices: str | None, rpc: str | None, *, calibrate: bool = False
) -> list[DeviceSpec]:
    """The devices that the options mean, with measured speeds where there are any."""
    from turboprefill.planner.resolve import described_devices

    described = described_devices(devices) if devices else None
    if described is not None:
        if calibrate or rpc:
            raise typer.BadParameter("--calibrate and --rpc need devices that are there, not a description of some")
        return described
    names = [name.strip() for name in devices.split(",")] if devices else None
    endpoints = [part.strip() for part in (rpc or "").split(",") if part.strip()]
    from turboprefill.planner.live import live_devices
    from turboprefill.planner.speeds import with_stored_speeds

    found = live_devices(names, endpoints)
    if not Path(model).is_file():
        from turboprefill.planner.device_spec import from_devices

        return from_devices(found)
    if calibrate:
        from turboprefill import calibration

        with err.status("measuring"):
            return calibration.calibrate(Path(model), facts, found, lambda text: err.print(escape(text)))
    return with_stored_speeds(Path(model), found)


def _gb(n: int | None) -> str:
    return "-" if n is None else f"{n / 1e9:,.2f}"


def _show(facts: ModelFacts, made: Plan, usual: Plan) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in facts.kinds().items())
    experts = f", {facts.n_expert_used} of {facts.n_expert} experts" if facts.n_expert else ""
    out.print(f"[bold]model[/]   {escape(facts.name)}: {kinds} layers{experts}, {facts.weight_bytes / 1e9:,.2f} GB")
    out.print(f"[bold]context[/] {_context(made.needs)}; prompts of {made.n_prompt:,} tokens")
    out.print(_table(made))
    slowest, theirs = max(s.seconds for s in made.stages), max(s.seconds for s in usual.stages)
    layers = "/".join(str(stage.n_layers) for stage in usual.stages)
    if any(stage.memory is not None and stage.used > stage.memory for stage in usual.stages):
        out.print(f"llama.cpp's default split ({layers} layers) would not fit")
    else:
        out.print(
            f"llama.cpp's default split ({layers} layers): the slowest stage takes {theirs / slowest:.2f}x as long"
        )
    if made.timed:
        bound = made.n_prompt / made.bound_seconds
        out.print(
            f"[bold]predicted {made.n_prompt / made.seconds:,.0f} tok/s[/], first token after {made.seconds:.2f} s; "
            f"with the work spread evenly over {len(made.busy)} stages it would be {bound:,.0f}"
        )
    out.print(f"[dim]speeds: {escape('; '.join(made.sources))}[/]")
    if made.timed and (overhead := made.overhead) is not None:
        out.print(f"a ubatch costs as much as {overhead:,.0f} tokens more: TURBOPREFILL_UBATCH=auto:{overhead:.0f}")
    out.print(f"[bold]llama-server -m {escape(facts.name)} -ngl 99 {made.ts_line} -ub {made.needs.n_ubatch}[/]")


def _context(needs: Needs) -> str:
    kv = needs.type_k if needs.type_k == needs.type_v else f"{needs.type_k}/{needs.type_v}"
    return f"{needs.n_ctx:,} tokens, KV {kv}, ubatches of {needs.n_ubatch}"


def _table(made: Plan) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("device")
    names = ("layers", "weights", "KV", "buffers", "GB in all", "of", "time")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    slowest = max((stage.seconds for stage in made.stages), default=0.0) or 1.0
    for stage in made.stages:
        last = stage.first + stage.n_layers - 1
        span = f"{stage.first}-{last}" if stage.n_layers else "-"
        table.add_row(
            escape(stage.device),
            f"{stage.n_layers} ({span}{'+out' if stage.has_output else ''})",
            _gb(stage.weights),
            _gb(stage.kv + stage.state),
            _gb(stage.buffers),
            _gb(stage.used),
            _gb(stage.memory),
            f"{stage.seconds:.2f} s" if made.timed else f"{100 * stage.seconds / slowest:.0f}%",
        )
    return table
