"""``turboprefill build``: compile a llama.cpp tree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from turboprefill.cli.console import err, out, progress
from turboprefill.cli.install import TreeArgument
from turboprefill.tools.build import BuildOptions, build
from turboprefill.tools.patcher import status

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("build")(_build)


def _build(
    directory: TreeArgument,
    cuda: Annotated[
        bool | None,
        typer.Option("--cuda/--cpu", help="Default: CUDA if nvcc and a GPU are found.", show_default=False),
    ] = None,
    rpc: Annotated[
        bool, typer.Option("--rpc/--no-rpc", help="Include the backend for devices on other machines.")
    ] = True,
    target: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="CMake target to build; repeatable.", show_default=False)
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, help="Parallel compile jobs. Default: as many as CPUs and memory allow."),
    ] = None,
    build_dir: Annotated[Path | None, typer.Option(metavar="B", help="Default: DIR/build.", show_default=False)] = None,
    native: Annotated[
        bool, typer.Option("--native", help="Use every instruction of this CPU; may crash on virtual machines.")
    ] = False,
    define: Annotated[
        list[str] | None,
        typer.Option("-D", metavar="NAME=VALUE", help="Additional CMake setting; repeatable.", show_default=False),
    ] = None,
) -> None:
    """Compile a llama.cpp tree: by default the server, command line, benchmark, perplexity tool and RPC server.

    Rebuilds compile only what changed; ccache is used if it is installed.

    [bold]Examples[/]

      turboprefill build llama.cpp
      turboprefill build llama.cpp --cpu --target llama-bench --jobs 4
      turboprefill build llama.cpp --cuda -D CMAKE_CUDA_ARCHITECTURES=86
    """
    state = status(directory)
    if state.version is None:
        err.print("[yellow]note:[/] TurboPrefill is not installed in this tree; building plain llama.cpp")
    options = BuildOptions(
        cuda=cuda,
        rpc=rpc,
        targets=tuple(target or ()),
        jobs=jobs,
        build_dir=build_dir,
        native=native,
        defines=tuple(define or ()),
    )
    done = build(directory, options, base=state.match.known, progress=progress())
    kind = "CUDA" if done.cuda else "CPU"
    out.print(f"[green]built for {kind} in {done.seconds:.0f} s[/]: {escape(', '.join(done.targets))}")
    out.print(f"programs are in {escape(str(done.build_dir / 'bin'))}")
    if state.version:
        out.print("TurboPrefill is off until the environment variable TURBOPREFILL=1 is set")
