"""The command line of scripts/mutants."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from mutants import catalogue, results
from mutants.catalogue import Mutant, MutantError
from turboprefill.cli.console import err, out

# A kind has a catalogue KIND.json and a module KIND_runner.py with run(mutants, options, tell); one without a catalogue
# is left out.
KINDS = ("python", "overlay")


def main(
    quick: Annotated[bool, typer.Option("--quick", help="The short selection of continuous integration.")] = False,
    only: Annotated[str | None, typer.Option(metavar="|".join(KINDS), help="Only this kind of mutants.")] = None,
    ids: Annotated[list[str] | None, typer.Option("--id", metavar="ID", help="This mutant; repeat for more.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Mutants at once. Default: one for each CPU.")] = None,
    timeout_s: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", min=1, help="Most time of one mutant; longer counts as killed."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all results there.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the mutants, run nothing.")] = False,
    pipeline_off: Annotated[
        bool, typer.Option("--pipeline-off", help="Instead: each test that claims to see the pipeline, without one.")
    ] = False,
) -> None:
    """Put deliberate mistakes into copies of the sources, one at a time: some test has to notice each.

    First the same tests run without any mistake, and must pass.
    Exit code 0 only if each mutant was killed, and those survived for which the catalogue gives a reason;
    1 otherwise; 2 if nothing could be tried.

    [bold]Examples[/]

      scripts/mutants
      scripts/mutants --quick
      scripts/mutants --only overlay
      scripts/mutants --id patcher-dry-run-writes
      scripts/mutants --pipeline-off --quick
    """
    if pipeline_off:
        raise typer.Exit(without_pipeline(quick))
    try:
        chosen = {kind: _chosen(kind, quick, ids) for kind in KINDS if _wanted(kind, only)}
        _check(chosen, only, ids)
        if list_:
            _list(chosen)
            return
        options = results.Options(jobs or len(os.sched_getaffinity(0)), timeout_s)
        found = list(_run(chosen, options))
    except MutantError as error:
        err.print(f"[red]error:[/] {escape(str(error))}")
        raise typer.Exit(2) from error
    if json_file is not None:
        results.write_json(found, json_file)
    raise typer.Exit(0 if results.show_summary(found, out) else 1)


def without_pipeline(quick: bool) -> int:
    """Run the tests that claim to see the pipeline on the installed package, without one; 0 if all of them notice."""
    folders = (catalogue.ROOT / "tests", catalogue.ROOT / "tests/helpers")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, "-m", "pipelineoff", *(["--quick"] if quick else [])]
    return subprocess.run(command, cwd=catalogue.ROOT, env=environment, check=False).returncode


def _wanted(kind: str, only: str | None) -> bool:
    return only in (None, kind) and catalogue.catalogue_path(kind).exists()


def _chosen(kind: str, quick: bool, ids: list[str] | None) -> list[Mutant]:
    mutants = catalogue.load(kind)
    return [m for m in mutants if (m.quick or not quick) and (not ids or m.id in ids)]


def _check(chosen: dict[str, list[Mutant]], only: str | None, ids: list[str] | None) -> None:
    known = {mutant.id for mutants in chosen.values() for mutant in mutants}
    if unknown := sorted(set(ids or ()) - known):
        raise MutantError(f"there is no mutant {', '.join(unknown)} in this selection; --list shows all of them")
    if not known:
        raise MutantError(f"no mutants of kind {only or 'any'}: expected one of {', '.join(KINDS)} with a catalogue")


def _list(chosen: dict[str, list[Mutant]]) -> None:
    for kind, mutants in chosen.items():
        for mutant in mutants:
            marks = " quick" * mutant.quick + " survives" * bool(mutant.survives)
            out.print(f"{kind:8} {mutant.id:44} {escape(mutant.file)}{marks}")


def _run(chosen: dict[str, list[Mutant]], options: results.Options) -> Iterator[results.Result]:
    total = sum(map(len, chosen.values()))
    number = count(1)

    def tell(result: results.Result) -> None:
        colour = "default" if result.expected else "red"
        err.print(f"[{colour}]{next(number):4}/{total} {escape(result.line)}[/]")

    for kind, mutants in chosen.items():
        if mutants:
            runner = importlib.import_module(f"mutants.{kind}_runner")
            err.print(f"{kind}: running the tests without any mutant, then {len(mutants)} mutants")
            yield from runner.run(mutants, options, tell)


if __name__ == "__main__":
    typer.run(main)
