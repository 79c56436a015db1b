"""``turboprefill make-model``: write one of the synthetic models to a file (hidden; for tests and measurements)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress

from turboprefill.cli.console import err, out
from turboprefill.tools.errors import ToolError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("make-model", hidden=True)(make_model)


def make_model(
    preset: Annotated[str, typer.Argument(help="Shape, such as tiny, demo, llama70, gptoss120.")],
    path: Annotated[Path, typer.Argument(help="File to write.")],
    layers: Annotated[int | None, typer.Option(help="Number of layers. Default: the preset's.")] = None,
    vocab: Annotated[int | None, typer.Option(help="Vocabulary size. Default: the preset's.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed for the weights.")] = 0,
) -> None:
    """Write a synthetic GGUF model: random weights in the shape of a real model, and a working tokenizer.

    For tests and measurements: it computes like the real model, but what it writes makes no sense.

    [bold]Examples[/]

      turboprefill make-model tiny tiny.gguf
      turboprefill make-model llama70 small.gguf --layers 8
    """
    from turboprefill import synth

    with Progress(console=err, transient=True) as progress:
        task = progress.add_task(f"writing {preset}", total=None)
        try:
            synth.write_model(
                path,
                preset,
                n_layers=layers,
                n_vocab=vocab,
                seed=seed,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        except OSError as error:  # NumPy's error names neither the file nor the reason
            raise ToolError(f"cannot write {path}: {error}. Check free space and permissions.") from error
    out.print(f"{escape(str(path))}: {path.stat().st_size / 1e6:,.1f} MB")
