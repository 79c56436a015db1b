"""The command line of scripts/coverage: builds with counters, runs the suites, and reports the lines that none runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from nativebuild import ROOT, JobsOption, SourceOption, TreeOption
from nativecoverage.builds import Builds, make_builds
from nativecoverage.counts import Counts, clear_counts, read_counts
from nativecoverage.unreached import judge, read_known
from turboprefill.cli.console import err, out, progress
from turboprefill.errors import TurboPrefillError

KNOWN = Path(__file__).resolve().parent / "unreached.json"
SUITES = ("driver", "pytest", "server")


def main(
    suites: Annotated[list[str] | None, typer.Argument(help=f"Only these of {', '.join(SUITES)}.")] = None,
    work: Annotated[Path, typer.Option(help="Tree, builds and counters; kept.")] = ROOT / "build/coverage",
    tree: TreeOption = None,
    source: SourceOption = "auto",
    jobs: JobsOption = None,
    keep: Annotated[bool, typer.Option("--keep", help="Add to what earlier runs counted.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write how often each line ran.")] = None,
) -> None:
    """Which lines of the overlay do the tests run? Those that none runs must be listed with a reason.

    Builds llama.cpp, the driver of scripts/sanitize and the Python package with counters, which takes minutes the
    first time; then runs the driver, the tests of the engine, and llama-server's checks. Needs gcc and gcov.
    Exit code 0 only if every line ran or is listed in tests/nativecoverage/unreached.json, and the list is up to date.

    [bold]Examples[/]

      scripts/coverage
      scripts/coverage driver --keep     this suite again, on top of what was counted
    """
    chosen = suites or list(SUITES)
    if unknown := sorted(set(chosen) - set(SUITES)):
        err.print(f"[red]error:[/] there is no suite {', '.join(unknown)}: expected {', '.join(SUITES)}")
        raise typer.Exit(2)
    work = work.absolute()
    try:
        builds = make_builds(work, tree, source, jobs, progress())
        if not keep:
            clear_counts(builds.objects)
        failed = [name for name in chosen if _run(name, builds, work)]
        counts = read_counts(builds.objects, ROOT / "overlay")
    except TurboPrefillError as error:
        err.print(f"[red]error:[/] {escape(str(error))}")
        raise typer.Exit(2) from error
    if json_file:
        json_file.write_text(json.dumps(counts), encoding="utf-8")
    good = _report(counts, complete=set(chosen) == set(SUITES) or keep)
    for name in failed:
        out.print(f"[red]{name} failed[/]")
    raise typer.Exit(0 if good and not failed else 1)


def _run(name: str, builds: Builds, work: Path) -> int:
    """Run a suite on the builds with counters; its exit code."""
    out.print(f"[bold]{name}[/]")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("TURBOPREFILL", "LLAMA_"))}
    tests = os.pathsep.join(map(str, (ROOT / "tests", ROOT / "tests/helpers", ROOT / "benchmarks/server")))
    if name == "pytest":
        environment["PYTHONPATH"] = os.pathsep.join([str(builds.package), tests])
        chosen = sorted(map(str, (*ROOT.glob("tests/test_overlay_*.py"), *ROOT.glob("tests/test_bindings_*.py"))))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    else:
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), tests])
        module, folder = ("nativecoverage.drive", work) if name == "driver" else ("llamaserver.on", work / "servers")
        command = [sys.executable, "-m", module, str(builds.llama / "bin"), str(builds.native), str(folder)]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def _report(counts: Counts, *, complete: bool) -> bool:
    texts = {file: (ROOT / "overlay" / file).read_text(encoding="utf-8").splitlines() for file in counts}
    counts = {file: {n: c for n, c in lines.items() if n <= len(texts[file])} for file, lines in counts.items()}
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("file")
    for name in ("lines", "run", "%"):
        table.add_column(name, justify="right")
    for file, lines in counts.items():
        n_run = sum(count > 0 for count in lines.values())
        if lines:
            table.add_row(file, str(len(lines)), str(n_run), f"{100 * n_run / len(lines):.1f}")
    out.print(table)
    verdict = judge(counts, texts, read_known(KNOWN))
    for file, number, text in verdict.unknown:
        out.print(f"[red]not run:[/] {file}:{number}: {escape(text)}")
    if complete:
        for entry, text in verdict.outdated:
            out.print(f"[red]out of date:[/] {entry.file}: {escape(text)}: it runs, or is not there any more")
    return not verdict.unknown and not (complete and verdict.outdated)


if __name__ == "__main__":
    typer.run(main)
