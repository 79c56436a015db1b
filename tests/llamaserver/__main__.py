"""The command line of scripts/server_tests: builds llama-server with TurboPrefill, and runs the checks."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from llamaserver import abuse, checks
from llamaserver.lab import Lab
from nativebuild import ROOT, JobsOption, SourceOption, TreeOption, compile_native, patched_tree
from turboprefill.cli.console import err, out, progress
from turboprefill.errors import TurboPrefillError
from turboprefill.tools.build import BuildOptions, build

_NAMES = [check.__name__.replace("_", "-") for check in checks.ALL]


def main(
    names: Annotated[list[str] | None, typer.Argument(help=f"Only these of {', '.join(_NAMES)}.")] = None,
    abuse_minutes: Annotated[
        float, typer.Option("--abuse", metavar="MINUTES", min=0, help="Clients that misbehave, after the checks.")
    ] = 0,
    work: Annotated[Path, typer.Option(help="Tree, build, models and logs; kept.")] = ROOT / "build/server-tests",
    tree: TreeOption = None,
    source: SourceOption = "auto",
    jobs: JobsOption = None,
) -> None:
    """llama-server with TurboPrefill off and on: the same answers, whatever is asked and however.

    Builds llama-server with TurboPrefill and the virtual devices, which takes minutes the first time, then asks.
    Exit code 0 only if everything holds, 1 if something does not, 2 if there is no server to ask.

    [bold]Examples[/]

      scripts/server_tests
      scripts/server_tests together faults     these checks
      scripts/server_tests --abuse 10          and ten minutes of eight clients that misbehave
    """
    unknown = sorted(set(names or ()) - set(_NAMES))
    if unknown:
        err.print(f"[red]error:[/] there is no check {', '.join(unknown)}: expected {', '.join(_NAMES)}")
        raise typer.Exit(2)
    work = work.absolute()
    try:
        lab = _lab(work, tree, source, jobs)
    except TurboPrefillError as error:
        err.print(f"[red]error:[/] {escape(str(error))}")
        raise typer.Exit(2) from error
    failed = run_checks(lab, names)
    if abuse_minutes:
        failed += not _run("abuse", lambda: abuse.run(lab, abuse_minutes))
    if failed:
        out.print(f"[red]{failed} failed[/]; the servers' logs are in {escape(str(lab.folder))}")
        raise typer.Exit(1)


def run_checks(lab: Lab, names: list[str] | None = None) -> int:
    """Run these checks, or all; how many failed."""
    chosen = zip(_NAMES, checks.ALL, strict=True)
    return sum(not _run(name, lambda check=check: check(lab)) for name, check in chosen if not names or name in names)


def _lab(work: Path, given: Path | None, source: str, jobs: int | None) -> Lab:
    shown = progress()
    tree = patched_tree(given, work, source, shown)
    # no instructions that this processor may only pretend to have
    defines = ("BUILD_SHARED_LIBS=ON", "LLAMA_BUILD_SERVER=ON", "LLAMA_CURL=OFF", "GGML_NATIVE=OFF", "GGML_OPENMP=OFF")
    options = BuildOptions(
        cuda=False, targets=("llama", "llama-server"), jobs=jobs, build_dir=work / "llama", defines=defines
    )
    built = build(tree, options, progress=shown)
    with shown.task("compiling the virtual devices"):
        native = compile_native(
            work / "native", tree=tree, llama=built.build_dir, targets=("turboprefill-virtual",), jobs=jobs
        )
    folder = work / "servers"
    folder.mkdir(parents=True, exist_ok=True)
    return Lab(built.build_dir / "bin", native / "libturboprefill-virtual.so", folder)


def _run(name: str, check: Callable[[], str]) -> bool:
    start = time.monotonic()
    try:
        said = check()
    except (AssertionError, OSError, RuntimeError) as error:
        out.print(f"[red]FAIL[/] {name}: {escape(str(error))}")
        return False
    out.print(f"[green]ok[/]   {name}: {escape(said)} [dim]({time.monotonic() - start:.0f} s)[/]")
    return True


if __name__ == "__main__":
    typer.run(main)
