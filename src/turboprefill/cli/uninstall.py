"""``turboprefill uninstall``: remove TurboPrefill from a llama.cpp tree."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from turboprefill.cli.console import err, out
from turboprefill.cli.install import TreeArgument, print_changes
from turboprefill.tools.patcher import uninstall

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("uninstall")(_uninstall)


def _uninstall(
    directory: TreeArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, write nothing.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also remove TurboPrefill's own files that were edited.")
    ] = False,
) -> None:
    """Remove TurboPrefill, of any version, from a llama.cpp tree.

    Restores every changed file byte for byte. Your own edits to llama.cpp's lines are kept.

    [bold]Examples[/]

      turboprefill uninstall llama.cpp
      turboprefill uninstall llama.cpp --dry-run
    """
    done = uninstall(directory, dry_run=dry_run, force=force)
    tree = escape(str(directory))
    if not done.changes:
        out.print(f"TurboPrefill is not installed in {tree}; nothing to do")
        return
    print_changes(done)
    for note in done.notes:
        err.print(f"[yellow]note:[/] {escape(note)}")
    if dry_run:
        out.print("dry run: nothing was written")
    else:
        out.print(f"[green]TurboPrefill was removed from {tree}[/]")
