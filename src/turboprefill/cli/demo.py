"""``turboprefill demo``: the same prompt on the standard path and with TurboPrefill, compared."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from turboprefill.cli import make_model
from turboprefill.cli.console import err, out

if TYPE_CHECKING:
    from turboprefill.demo.measure import Note, Plan, Result

__all__ = ["register"]

_CPU_TOKENS = 2560  # as many as a few-second run on two CPU workers reads
_CPU_UBATCH = 128
_UBATCH = 256  # where there is no plan


@dataclass(frozen=True)
class _Options:
    model: Path | None
    prompt_file: Path | None
    n_prompt: int | None
    ubatch: int | None
    n_batch: int
    repeats: int
    devices: str | None
    rpc: str | None
    virtual: str | None
    tensor_split: str | None
    json: Path | None
    png: Path | None

    def as_arguments(self) -> list[str]:
        """The command line that gives these options."""
        given = [(f.name, getattr(self, f.name)) for f in fields(self)]
        pairs = [("--" + name.replace("_", "-"), str(value)) for name, value in given if value is not None]
        return [part for pair in pairs for part in pair] + ([] if self.png else ["--no-picture"])


def register(app: typer.Typer) -> None:
    """Add ``demo``, and the hidden ``make-model``."""
    app.command("demo")(demo)
    make_model.register(app)


def demo(
    model: Annotated[Path | None, typer.Option(help="GGUF model. Default: a synthetic one, made once.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="Text to read. Default: an essay of our own.")] = None,
    n_prompt: Annotated[int | None, typer.Option(min=2, help="Tokens to read; the text is repeated if needed.")] = None,
    ubatch: Annotated[
        int | None, typer.Option(min=1, help="Tokens per ubatch. Default: as planned; 128 with CPU workers.")
    ] = None,
    n_batch: Annotated[int, typer.Option(min=1, help="Tokens per llama_decode call.")] = 2048,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each path, after a warm-up.")] = 3,
    devices: Annotated[str | None, typer.Option(help="Devices by name, as in CUDA0,CUDA1. Default: all GPUs.")] = None,
    rpc: Annotated[str | None, typer.Option(help="Use these RPC servers: HOST:PORT,HOST:PORT")] = None,
    virtual: Annotated[
        str | None, typer.Option(help="Virtual devices: 4, or as in 4,peer=refused,split_us=5000")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Local CPU workers to start where there are no two GPUs.")] = 2,
    tensor_split: Annotated[str | None, typer.Option(help="Share of the layers per device, as in 3,1")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the result to this file.")] = None,
    png: Annotated[Path, typer.Option(help="Where to draw the two timelines.")] = Path("turboprefill-demo.png"),
    no_picture: Annotated[bool, typer.Option("--no-picture", help="Draw nothing.")] = False,
) -> None:
    """Read a prompt on both paths, alternating: speed, timelines, and whether the results are the same bytes.

    Takes the GPUs if there are at least two. Otherwise it starts local RPC workers that compute on the CPU.
    With --virtual it takes devices with configured times, as many as you like (docs/virtual.md).
    Exit code 0 only if logits and state are identical.
    """
    from turboprefill.demo import settings

    options = _Options(
        model, prompt_file, n_prompt, ubatch, n_batch, repeats, devices, rpc, virtual, tensor_split, json,
        None if no_picture else png,
    )  # fmt: skip
    settings.read_text(prompt_file)  # a wrong file name should not cost the time to start anything
    settings.split_ratios(tensor_split)
    if virtual is not None:
        if rpc or devices:
            raise typer.BadParameter("--virtual brings its own devices: leave out --rpc and --devices")
        raise typer.Exit(0 if _run(options) else 1)
    if rpc or devices or len(settings.gpu_names()) >= 2:
        raise typer.Exit(0 if _run(options) else 1)
    raise typer.Exit(_with_workers(options, workers))


def _with_workers(options: _Options, n: int) -> int:
    """Start workers, and this command again with them: llama.cpp ends its process when a worker dies.

    From out here we can still say which worker it was, and what it wrote last.
    """
    from turboprefill.demo import processes, settings
    from turboprefill.demo.workers import RpcWorkers, WorkerError

    err.print(f"fewer than two GPUs: starting {n} local CPU workers")
    if warning := settings.crowded(n):
        err.print(f"[yellow]{warning}[/]")
    with RpcWorkers(n) as workers:
        arguments = replace(options, rpc=",".join(workers.endpoints)).as_arguments()
        # what a user can act on is our report, not a debugger's view of the process
        environment = {"GGML_NO_BACKTRACE": "1", **os.environ}
        child = processes.start([sys.executable, "-m", "turboprefill", "demo", *arguments], env=environment)
        try:
            code = child.wait()
        except KeyboardInterrupt:
            _let_finish(child)
            raise
        finally:
            processes.stop(child)
        if code < 0:
            workers.check(patience=2.0)
            raise WorkerError(
                f"the measurement was ended by signal {-code}; the workers still run. See its lines above."
            )
    return code


def _let_finish(child: subprocess.Popen[bytes]) -> None:
    """The measurement got the same Ctrl-C: it may print its own last line."""
    try:
        child.wait(2)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()


def _run(options: _Options) -> bool:
    from turboprefill.demo import measure, report

    with err.status("starting", refresh_per_second=4) as status:  # the cores are for the workers

        def note(text: str) -> None:
            status.update(escape(text))
            if not err.is_terminal:
                err.print(escape(text))

        result = measure.run(_plan(options, note), note)
    report.show(result, out)
    if options.virtual is not None:
        from turboprefill.demo import virtual_devices

        for line in virtual_devices.explain(options.virtual):
            out.print(f"[dim]{escape(line)}[/]")
    elif result.plan.n_threads == 1:
        out.print("[dim]Local CPU workers share this machine's cores: look at the ratio, not at tok/s.[/]")
    _write_files(options, result)
    return result.logits_identical and result.state_identical


def _plan(options: _Options, note: Note) -> Plan:
    from turboprefill.demo import settings
    from turboprefill.demo.measure import Plan
    from turboprefill.options import DEFAULT_UBATCH

    endpoints = settings.split_list(options.rpc)
    names = settings.split_list(options.devices)
    on_cpu = settings.is_loopback(endpoints)
    preset, n_prompt, n_ubatch = ("demo", _CPU_TOKENS, _CPU_UBATCH) if on_cpu else ("demo-gpu", None, None)
    if options.virtual is not None:
        from turboprefill.demo import virtual_devices

        names = virtual_devices.load(options.virtual)
        preset, n_prompt, n_ubatch = virtual_devices.PRESET, virtual_devices.TOKENS, virtual_devices.UBATCH
    model = options.model or settings.synthetic_model(preset, note)
    n_prompt, n_ubatch = options.n_prompt or n_prompt, options.ubatch or n_ubatch
    # both paths get the same split and the same ubatches, whatever the environment says
    os.environ["TURBOPREFILL_SPLIT"] = "off"
    os.environ["TURBOPREFILL_UBATCH"] = "off"
    split = settings.split_ratios(options.tensor_split)
    shipped: int | None = None
    if split is None:
        choice = settings.planned(model, names, endpoints, n_prompt or settings.USUAL_PROMPT, note)
        if choice is not None:
            split, n_ubatch = choice.split, n_ubatch or choice.n_ubatch
            # virtual devices take a configured time for a graph, whatever its layers and its ubatch are
            if options.virtual is None and (choice.differs or n_ubatch != DEFAULT_UBATCH):
                shipped = options.ubatch or DEFAULT_UBATCH
    n_ubatch = n_ubatch or _UBATCH
    return Plan(
        model=str(model),
        text=settings.read_text(options.prompt_file),
        n_prompt=n_prompt,
        n_ubatch=n_ubatch,
        n_batch=max(options.n_batch, n_ubatch),
        repeats=options.repeats,
        devices=names,
        rpc_servers=endpoints,
        tensor_split=split,
        n_threads=1 if options.virtual is not None else settings.host_threads(endpoints),
        shipped_ubatch=shipped,
    )


def _write_files(options: _Options, result: Result) -> None:
    from turboprefill.demo import report, timeline

    if options.png is not None:
        title = f"{result.n_prompt:,} tokens in ubatches of {result.plan.n_ubatch}, {len(result.devices)} devices"
        timeline.draw(options.png, result.standard.spans, result.turbo.spans, title)
        out.print(f"timelines: {escape(str(options.png))}")
    if options.json is not None:
        report.write_json(result, options.json)
        out.print(f"numbers:   {escape(str(options.json))}")
