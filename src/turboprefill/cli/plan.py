"""``turboprefill plan``: which device should hold which layers, and the throughput to expect."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
    from turboprefill.device import Device
    from turboprefill.planner import DeviceSpec, ModelFacts, Needs, Plan
    from turboprefill.planner.resolve import Measure

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan")(plan)


def plan(
    model: ModelArgument,
    devices: Annotated[
        str | None,
        typer.Option(
            help="8x80GB, 4xH200, 2x24GB@0.5, a JSON file, or device names as in CUDA0,CUDA1. Default: all GPUs."
        ),
    ] = None,
    rpc: RpcOption = None,
    n_ctx: Annotated[int, typer.Option(min=1, help="Context size in tokens, which must fit in memory.")] = 8192,
    n_ubatch: UbatchOption = str(DEFAULT_UBATCH),
    prompt: Annotated[
        int | None, typer.Option(min=1, help="Typical prompt length in tokens. Default: the whole context.")
    ] = None,
    type_k: Annotated[str, typer.Option(help="KV cache type for keys.")] = "f16",
    type_v: Annotated[str, typer.Option(help="KV cache type for values.")] = "f16",
    n_seq_max: Annotated[int, typer.Option(min=1, help="Number of sequences that share the context.")] = 1,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure the speed of the devices with this model first.")
    ] = False,
    as_json: JsonOption = False,
    out_file: Annotated[Path | None, typer.Option("--out", help="Draw the plan to this PNG file.")] = None,
) -> None:
    """Choose the layers for each device so that everything fits and the slowest device is as fast as possible.

    Reads only the header of the model file, unless --calibrate is given. Needs no GPU if --devices describes them.

    [bold]Examples[/]

      turboprefill plan model.gguf
      turboprefill plan model.gguf --devices 8x80GB --n-ctx 32768
      turboprefill plan model.gguf --devices 2xRTX4090,1xRTX3090 --n-ubatch auto --out plan.png
      turboprefill plan model.gguf --rpc 10.0.0.2:50052,10.0.0.3:50052 --calibrate
    """
    from turboprefill.planner.memory import Needs
    from turboprefill.planner.plan import choose_plan, default_plan
    from turboprefill.planner.presets import load_facts

    if out_file is not None:
        plots.require(out_file)
    facts = load_facts(model)
    ubatch = ubatch_of(n_ubatch)
    needs = Needs(n_ctx, min(ubatch or DEFAULT_UBATCH, n_ctx), n_seq_max, type_k, type_v)
    specs = devices_of(model, devices, rpc, _measure(model, facts) if calibrate else None)
    made = choose_plan(facts, specs, needs, prompt, auto_ubatch=ubatch is None)
    usual = default_plan(facts, specs, made.needs, made.n_prompt)
    if as_json:
        typer.echo(_json(facts, specs, made, usual))
    else:
        _show(facts, made, usual)
    if out_file is not None:
        _draw(out_file, facts, made)


def _measure(model: str, facts: ModelFacts) -> Measure:
    """Measures devices with the model and reports progress."""

    def measure(devices: Sequence[Device]) -> list[DeviceSpec]:
        from turboprefill.calibration import calibrate

        with err.status("measuring"):
            return calibrate(Path(model), facts, devices, lambda text: err.print(escape(text)))

    return measure


def _json(facts: ModelFacts, specs: Sequence[DeviceSpec], made: Plan, usual: Plan) -> str:
    table = [spec.as_row() for spec in specs]  # which --devices takes again
    return json.dumps({"model": facts.name, **made.as_json(), "default": usual.as_json(), "devices": table}, indent=2)


def _draw(path: Path, facts: ModelFacts, made: Plan) -> None:
    from turboprefill.planner import picture

    picture.draw(path, made, f"{facts.name}, {made.ts_line}, context of {made.needs.n_ctx:,} tokens")
    err.print(f"picture: {escape(str(path))}")


def _gb(n: int | None) -> str:
    return "-" if n is None else f"{n / 1e9:,.2f}"


def _show(facts: ModelFacts, made: Plan, usual: Plan) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in facts.kinds().items())
    experts = f", {facts.n_expert_used} of {facts.n_expert} experts" if facts.n_expert else ""
    out.print(f"[bold]model[/]   {escape(facts.name)}: {kinds} layers{experts}, {facts.weight_bytes / 1e9:,.2f} GB")
    out.print(f"[bold]context[/] {_context(made.needs)}, prompt of {made.n_prompt:,} tokens")
    out.print(_table(made))
    out.print(_compared(made, usual))
    if made.timed:
        bound = made.n_prompt / made.bound_seconds
        out.print(
            f"[bold]predicted {made.n_prompt / made.seconds:,.0f} tok/s[/], TTFT {made.seconds:.2f} s; "
            f"a perfectly balanced pipeline of {len(made.busy)} stages would reach {bound:,.0f} tok/s"
        )
    out.print(f"[dim]speeds: {escape('; '.join(made.sources))}[/]")
    if made.timed and (overhead := made.overhead) is not None:
        out.print(f"fixed cost per ubatch: {overhead:,.0f} token equivalents (TURBOPREFILL_UBATCH=auto:{overhead:.0f})")
    out.print(f"[bold]llama-server -m {escape(facts.name)} -ngl 99 {made.ts_line} -ub {made.needs.n_ubatch}[/]")


def _compared(made: Plan, usual: Plan) -> str:
    layers = "/".join(str(stage.n_layers) for stage in usual.stages)
    if not usual.fits:
        return f"llama.cpp's default split ({layers} layers) does not fit in memory"
    ratio = usual.slowest_seconds / made.slowest_seconds
    return f"llama.cpp's default split ({layers} layers): its slowest stage takes {ratio:.2f}x as long"


def _context(needs: Needs) -> str:
    kv = needs.type_k if needs.type_k == needs.type_v else f"{needs.type_k}/{needs.type_v}"
    return f"{needs.n_ctx:,} tokens, {kv} KV cache, ubatch {needs.n_ubatch}"


def _table(made: Plan) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("device")
    names = ("layers", "weights", "KV", "buffers", "total GB", "capacity", "time")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    slowest = made.slowest_seconds or 1.0
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
