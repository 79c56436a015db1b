"""``turboprefill install``: add TurboPrefill to a llama.cpp tree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from turboprefill.cli.console import err, out
from turboprefill.tools.overlay import load_overlay
from turboprefill.tools.patcher import Outcome, install

__all__ = ["TreeArgument", "print_changes", "register"]

TreeArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A llama.cpp tree.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("install")(_install)


def _install(
    directory: TreeArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, write nothing.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Proceed even if files that TurboPrefill changes have local edits.")
    ] = False,
) -> None:
    """Add TurboPrefill to a llama.cpp tree.

    Adds a few files of its own, and inserts single lines into llama.cpp's files, each marked "turboprefill".
    All or nothing: if any insertion point is missing or ambiguous, all such points are listed and the tree stays
    unchanged. After upgrading turboprefill, run it again to update the tree.

    [bold]Examples[/]

      turboprefill install llama.cpp
      turboprefill install llama.cpp --dry-run      does it fit?
      turboprefill diff llama.cpp                   show the exact lines
      turboprefill uninstall llama.cpp              undo it
    """
    overlay = load_overlay()
    done = install(directory, dry_run=dry_run, force=force, overlay=overlay)
    for note in done.notes:
        err.print(f"[yellow]note:[/] {escape(note)}")
    tree = escape(str(directory))
    if not done.changes:
        out.print(f"TurboPrefill {overlay.version} is already installed in {tree}; nothing to do")
        return
    print_changes(done)
    if dry_run:
        out.print(f"dry run: nothing was written. TurboPrefill {overlay.version} fits {tree}")
        return
    before = f" (was {done.before.version})" if done.before.version not in (None, overlay.version) else ""
    out.print(f"[green]TurboPrefill {overlay.version}{before} is installed in {tree}[/]")
    out.print(f"next: turboprefill build {tree}")


def print_changes(outcome: Outcome) -> None:
    """One line per changed file."""
    for name, (old, new) in outcome.changes.items():
        n_lines = (new or b"").count(b"\n") - (old or b"").count(b"\n")
        what = "new" if old is None else "removed" if new is None else "changed"
        out.print(f"  {what:8} {escape(name)} ({n_lines:+d} lines)")
