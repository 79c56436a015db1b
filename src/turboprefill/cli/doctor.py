"""``turboprefill doctor``: what is available, what is missing, and what to do about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from turboprefill.cli.console import err, out
from turboprefill.tools.doctor import Report, examine
from turboprefill.tools.hardware import Gpu

__all__ = ["register"]

_MARKS = {True: "[green]ok[/]", False: "[red]missing[/]", None: "[dim]-[/]"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor")(_doctor)


def _doctor(
    directory: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="A llama.cpp tree to examine as well.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output; the keys are stable.")] = False,
) -> None:
    """Show what this machine has, what prevents prompts from being pipelined, and how to fix it.

    Changes nothing; exits with 0 whatever it finds.

    [bold]Examples[/]

      turboprefill doctor
      turboprefill doctor llama.cpp
      turboprefill doctor --json | jq .can_pipeline
    """
    with err.status("examining this machine"):
        report = examine(directory)
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=2))
        return
    _print_machine(report)
    _print_requirements(report)


def _print_machine(report: Report) -> None:
    table = Table.grid(padding=(0, 2))
    for tool in report.tools:
        found = f"{tool.version or '?'}  {tool.path}" if tool.path else "[yellow]not found[/]"
        table.add_row(f"  {tool.name}", found, f"[dim]{tool.purpose}[/]")
    out.print("[bold]Tools[/]")
    out.print(table)
    out.print("[bold]Machine[/]")
    if report.memory:
        total, available = (n / (1 << 30) for n in report.memory)
        out.print(f"  memory {total:.1f} GiB, {available:.1f} GiB available")
    for gpu in report.gpus.found:
        out.print(f"  GPU {gpu.index}: {', '.join(_facts(gpu))}")
    if report.gpus.driver:
        out.print(f"  NVIDIA driver {escape(report.gpus.driver)}")
    if not report.gpus.found:
        out.print(f"  no NVIDIA GPU found: {escape(report.gpus.reason)}")
    package = report.package
    out.print(
        f"[bold]Package[/]\n  turboprefill {package['version']}, overlay {package['overlay_version'] or 'missing'}"
    )


def _facts(gpu: Gpu) -> list[str]:
    facts = [escape(gpu.name), f"{gpu.memory / (1 << 30):.1f} GiB"]
    if gpu.compute_capability:
        facts.append(f"compute capability {gpu.compute_capability}")
    if gpu.pcie_width:
        facts.append(f"PCIe x{gpu.pcie_width}")
    return facts


def _print_requirements(report: Report) -> None:
    out.print("[bold]Requirements for pipelining[/]")
    for requirement in report.requirements:
        out.print(f"  {_MARKS[requirement.met]:>6} {requirement.name}: {escape(requirement.found)}")
        if requirement.remedy:
            out.print(f"         -> {escape(requirement.remedy)}")
    if report.can_pipeline:
        out.print(
            f"[green]A patched llama.cpp can pipeline prompts over {report.visible_gpus} devices here[/], "
            "given -sm layer, all layers on devices, and a prompt longer than one ubatch (-ub)"
        )
    else:
        out.print(
            f"{report.n_unmet} of these are missing; until they are there, prompts take llama.cpp's standard path"
        )
