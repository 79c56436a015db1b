"""The command line of scripts/upstream_tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nativebuild import ROOT, JobsOption, SourceOption
from turboprefill.cli.console import err, out, progress
from turboprefill.demo.prompt import read_text
from turboprefill.errors import TurboPrefillError
from upstream.arms import make_arms
from upstream.cases import CASES, Case
from upstream.compare import Row, compare
from upstream.models import Models

WORK = ROOT / "build/upstream-tests"


def main(
    work: Annotated[Path, typer.Option(help="Trees, builds, models and outputs; kept.")] = WORK,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="This test; repeat for more. A leading part will do.")
    ] = None,
    devices: Annotated[
        str, typer.Option(metavar="virtual|rpc|NAMES", help="NAMES: devices of this machine, as CUDA0,CUDA1,CUDA2.")
    ] = "virtual",
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all rows there.")] = None,
    sabotage: Annotated[
        bool, typer.Option("--sabotage", help="Lose every 7th upload of the patched build: each test must fail now.")
    ] = False,
    source: SourceOption = "auto",
    jobs: JobsOption = None,
    list_: Annotated[bool, typer.Option("--list", help="Say what there is, run nothing.")] = False,
) -> None:
    """Upstream's own test programs on an unpatched llama.cpp and on one with TurboPrefill, on the same devices.

    What they compute has to be the same bytes, and ubatches have to have been pipelined.
    The first run compiles both trees, which takes minutes. docs/testing.md says what each test can see.

    [bold]Examples[/]

      scripts/upstream_tests
      scripts/upstream_tests --only results --only state-dump
      scripts/upstream_tests --sabotage              are the tests blind?
      scripts/upstream_tests --devices CUDA0,CUDA1,CUDA2
    """
    chosen = [case for case in CASES if not only or any(case.name.startswith(name) for name in only)]
    unknown = [name for name in only or () if not any(case.name.startswith(name) for case in CASES)]
    if unknown:
        err.print(f"unknown test {', '.join(unknown)}: expected one of {', '.join(case.name for case in CASES)}")
        raise typer.Exit(2)
    if list_:
        for case in chosen:
            out.print(f"{case.name:22} {case.about}")
        return
    try:
        rows = _run(chosen, work.absolute(), devices, source, jobs, sabotage=sabotage)
    except TurboPrefillError as error:
        err.print(f"[red]error:[/] {escape(str(error))}")
        raise typer.Exit(2) from error
    _print(rows, sabotage=sabotage)
    if json_file:
        json_file.write_text(json.dumps([row.to_json() for row in rows], indent=2) + "\n", encoding="utf-8")
    if sabotage:
        raise typer.Exit(any(row.passed for row in rows))
    raise typer.Exit(not all(row.passed for row in rows))


def _run(cases: list[Case], work: Path, kind: str, source: str, jobs: int | None, *, sabotage: bool) -> list[Row]:
    cuda = kind not in ("virtual", "rpc")
    arms = make_arms(work, source=source, jobs=jobs, cuda=cuda, progress=progress())
    models = Models(work / "models", arms[0])
    rows = []
    for case in cases:
        if sabotage and not case.pipelined:
            continue  # the damage is done where the pipeline uploads
        err.print(f"{case.name} ...")
        rows.append(compare(case, arms, models=models, work=work, kind=kind, text=read_text(None), sabotage=sabotage))
        err.print(f"{case.name}: {escape(rows[-1].problem) or 'passed'}")
    return rows


def _print(rows: list[Row], *, sabotage: bool) -> None:
    table = Table(title="with lost uploads: every test should fail" if sabotage else None)
    table.add_column("test")
    for title in ("unpatched", "patched", "equal", "pipelined", "standard", "contexts"):
        table.add_column(title, justify="right")
    table.add_column("")
    for row in rows:
        seconds = [f"{row.seconds[name]:.1f} s" if name in row.seconds else "" for name in ("unpatched", "patched")]
        counted = row.counted
        if sabotage:
            verdict = "[red]BLIND[/]" if row.passed else "[green]seen[/]"
        else:
            verdict = "[green]pass[/]" if row.passed else "[red]FAIL[/]"
        used = f"{counted.contexts_pipelined}/{counted.contexts}"
        equal = "yes" if row.equal else "no"
        table.add_row(row.name, *seconds, equal, str(counted.pipelined), str(counted.standard), used, verdict)
    # rich would cut the columns of a log
    Console(highlight=False, width=max(100, out.width)).print(table)
    for row in rows:
        if row.problem and not sabotage:
            out.print(f"{row.name}: {escape(row.problem)}")
    failed = sum(not row.passed for row in rows)
    out.print(f"{failed} of {len(rows)} failed" if failed else f"all {len(rows)} passed")


if __name__ == "__main__":
    typer.run(main)
