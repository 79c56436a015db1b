"""``turboprefill prepare-tree``: what the package build needs; not shown in --help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from turboprefill.cli.console import out, progress
from turboprefill.tools.prepare import prepare_tree

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("prepare-tree", hidden=True)(_prepare_tree)


def _prepare_tree(
    directory: Annotated[Path, typer.Argument(metavar="DEST", help="A new directory, or one that this command made.")],
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="auto|git|pypi|PATH", help="Default: $TURBOPREFILL_SOURCE, else auto."),
    ] = None,
) -> None:
    """Make DEST the pinned llama.cpp with TurboPrefill installed; do nothing if it already is.

    Unchanged files keep their timestamps, so that rebuilding is quick.
    """
    done = prepare_tree(directory, source=source, progress=progress())
    what = f"{done.n_changed} files changed" if done.changed else "nothing to do"
    out.print(f"{escape(str(directory))}: llama.cpp {done.base or '(not pinned)'} with TurboPrefill, {what}")
