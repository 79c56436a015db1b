"""Where the command line writes: results to stdout, progress and errors to stderr."""

from __future__ import annotations

from rich.console import Console

__all__ = ["err", "out"]

# soft_wrap: paths and commands stay in one piece, so that they can be copied.
out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)
