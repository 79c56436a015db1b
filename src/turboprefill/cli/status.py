"""``turboprefill status``: the state of a tree."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.markup import escape

from turboprefill.cli.console import out
from turboprefill.cli.install import TreeArgument
from turboprefill.tools.overlay import load_overlay
from turboprefill.tools.patcher import status
from turboprefill.tools.treestate import TreeState

__all__ = ["register"]

_MEANING = {
    "pristine": "unmodified llama.cpp, TurboPrefill is not installed",
    "installed": "TurboPrefill is installed",
    "partial": "some of TurboPrefill's lines or files are missing",
    "modified": "some files have local edits",
    "unknown base": "a llama.cpp version that is not pinned, TurboPrefill is not installed",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status")(_status)


def _status(
    directory: TreeArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output; the keys are stable.")] = False,
) -> None:
    """Show the state of a llama.cpp tree, determined from its content alone.

    States: pristine, installed, modified (local edits), partial, unknown base.

    [bold]Examples[/]

      turboprefill status llama.cpp
      turboprefill status llama.cpp --json | jq -r .state
    """
    overlay = load_overlay()
    state = status(directory, overlay=overlay)
    if as_json:
        typer.echo(json.dumps(state.as_json(overlay), indent=2))
        return
    tree = escape(str(directory))
    out.print(f"[bold]{state.state}[/]: {_MEANING[state.state]}")
    base = state.match.base
    out.print(f"  base       {_base_in_words(state)}" if base else "  base       none of the known versions")
    out.print(f"  installed  {state.version or 'no'} (this turboprefill has {overlay.version})")
    for file in state.files:
        if not file.local_edits and (state.up_to_date or not state.present):
            continue
        edits = " [yellow](local edits)[/]" if file.local_edits else ""
        out.print(f"  {file.state:13} {escape(file.path)}{edits}")
    for failure in state.failures:
        out.print(f"  [red]does not fit[/]  {escape(str(failure))}")
    out.print(_advice(state, tree))


def _base_in_words(state: TreeState) -> str:
    exact = "" if state.match.known else f", except for {', '.join(state.match.differing)}"
    return escape(f"{state.match.base}{exact}")


def _advice(state: TreeState, tree: str) -> str:
    if state.failures:
        return f"next: for details: turboprefill install {tree} --dry-run"
    if state.up_to_date:
        return f"next: turboprefill build {tree}"
    if state.state == "modified":
        return f"next: review the edits (git -C {tree} diff), then turboprefill install {tree} --force"
    return f"next: turboprefill install {tree}"
