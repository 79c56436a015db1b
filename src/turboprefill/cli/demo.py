"""``turboprefill demo``: the same prompt on the standard path and with TurboPrefill, compared."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from turboprefill.cli.console import err, out

if TYPE_CHECKING:
    from turboprefill.demo.choices import Options
    from turboprefill.demo.measure import Result

__all__ = ["register"]


@dataclass(frozen=True)
class _Files:
    """What to write; None: not at all."""

    json: Path | None
    png: Path | None


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("demo")(demo)


def demo(
    model: Annotated[Path | None, typer.Option(help="GGUF model. Default: a synthetic one, cached.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="Prompt text. Default: a bundled essay.")] = None,
    n_prompt: Annotated[int | None, typer.Option(min=2, help="Prompt tokens; the text is repeated if needed.")] = None,
    ubatch: Annotated[
        int | None, typer.Option(min=1, help="Tokens per ubatch. Default: the planner's choice; 128 with CPU workers.")
    ] = None,
    n_batch: Annotated[int, typer.Option(min=1, help="Tokens per llama_decode call.")] = 2048,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs per path, after a warm-up.")] = 3,
    devices: Annotated[str | None, typer.Option(help="Devices by name: CUDA0,CUDA1. Default: all GPUs.")] = None,
    rpc: Annotated[str | None, typer.Option(help="RPC servers to use: HOST:PORT,HOST:PORT")] = None,
    virtual: Annotated[
        str | None, typer.Option(help="Virtual devices: 4, or with properties: 4,peer=refused,split_us=5000")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Local CPU workers to start without two GPUs.")] = 2,
    tensor_split: Annotated[str | None, typer.Option(help="Share of the layers per device, such as 3,1")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the result to this JSON file.")] = None,
    png: Annotated[
        Path | None,
        typer.Option(
            help="Where to draw the two timelines: a PNG, or an HTML file if the name ends in .html. "
            "Default: turboprefill-demo.png, or .html if matplotlib is not installed."
        ),
    ] = None,
    no_picture: Annotated[bool, typer.Option("--no-picture", help="Do not draw the timelines.")] = False,
) -> None:
    """Process one prompt on both paths, alternating: compare speed and timelines, and the results byte for byte.

    No model file needed; the demo generates one.
    Uses the GPUs if there are at least two; otherwise starts local RPC workers that compute on the CPU.
    With --virtual it uses any number of virtual devices with configured timings (docs/virtual.md).
    Exits with 0 only if ubatches were pipelined and logits and state are identical, else with 1.

    [bold]Examples[/]

      turboprefill demo
      turboprefill demo --virtual 4                    four virtual devices
      turboprefill demo --model model.gguf --json result.json
      turboprefill demo --rpc 10.0.0.2:50052,10.0.0.3:50052
    """
    # here and below: other commands should not wait for NumPy and the native module
    from turboprefill.demo import timeline
    from turboprefill.demo.choices import Options, needs_workers

    options = Options(model, prompt_file, n_prompt, ubatch, n_batch, repeats, devices, rpc, virtual, tensor_split)
    files = _Files(json, None if no_picture else png or timeline.default_path())
    if files.png is not None:
        timeline.check(files.png)
    options.check()
    if virtual is not None and (rpc or devices):
        raise typer.BadParameter("--virtual creates its own devices: leave out --rpc and --devices")
    if needs_workers(options):
        raise typer.Exit(_with_workers(options, files, workers))
    result = _measure(options)
    _report(options, files, result)
    raise typer.Exit(0 if result.pipelined and result.identical else 1)


def _with_workers(options: Options, files: _Files, n: int) -> int:
    """Start workers, and this command again with them; its exit code."""
    from turboprefill.demo import settings, supervise

    def again(endpoints: Sequence[str]) -> list[str]:
        arguments = [*_arguments(options), "--rpc", ",".join(endpoints), *_arguments(files)]
        return [sys.executable, "-m", "turboprefill", "demo", *arguments, *([] if files.png else ["--no-picture"])]

    err.print(f"fewer than two GPUs: starting {n} local CPU workers")
    if warning := settings.crowded(n):
        err.print(f"[yellow]{warning}[/]")
    return supervise.run_with_workers(n, again)


def _arguments(given: Options | _Files) -> list[str]:
    """The part of a command line that gives these options."""
    pairs = [("--" + f.name.replace("_", "-"), getattr(given, f.name)) for f in fields(given)]
    return [part for name, value in pairs if value is not None for part in (name, str(value))]


def _measure(options: Options) -> Result:
    from turboprefill.demo import measure
    from turboprefill.demo.choices import choose_workload

    with err.status("starting", refresh_per_second=4) as status:  # the cores are for the workers

        def note(text: str) -> None:
            status.update(escape(text))
            if not err.is_terminal:
                err.print(escape(text))

        return measure.run(choose_workload(options, note), note)


def _report(options: Options, files: _Files, result: Result) -> None:
    from turboprefill.demo import report, timeline
    from turboprefill.demo.choices import remarks

    report.show(result, out)
    for line in remarks(options, result):
        out.print(f"[dim]{escape(line)}[/]")
    if files.png is not None:
        timeline.draw(files.png, result.standard.spans, result.turbo.spans, report.picture_title(result))
        out.print(f"timelines: {escape(str(files.png))}")
    if files.json is not None:
        report.write_json(result, files.json)
        out.print(f"numbers:   {escape(str(files.json))}")
