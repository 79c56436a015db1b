"""``turboprefill diff``: TurboPrefill's lines in a tree, as a patch."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from turboprefill.cli.install import TreeArgument
from turboprefill.tools.patcher import diff

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("diff")(_diff)


def _diff(
    directory: TreeArgument,
    full: Annotated[bool, typer.Option("--full", help="Include TurboPrefill's own files.")] = False,
) -> None:
    """Show TurboPrefill's lines in a llama.cpp tree as a unified diff.

    Shows the lines that are installed, or those that install would insert.

    [bold]Examples[/]

      turboprefill diff llama.cpp
      turboprefill diff llama.cpp --full > turboprefill.patch     for git apply on an untouched tree
    """
    for line in diff(directory, full=full):
        # Bytes, not text: the files' own line endings must survive.
        sys.stdout.buffer.write(line.encode("utf-8", "replace") + b"\n")
