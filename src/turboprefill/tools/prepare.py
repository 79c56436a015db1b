"""The tree that the package build compiles: the pinned llama.cpp with TurboPrefill in it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from turboprefill.tools.patcher import install
from turboprefill.tools.pins import Base
from turboprefill.tools.progress import Progress
from turboprefill.tools.sources import checkout

__all__ = ["Prepared", "prepare_tree"]


@dataclass(frozen=True)
class Prepared:
    """A tree that is ready to build.

    Attributes:
        base: the llama.cpp version, or None if it is not pinned.
        n_changed: files that installing changed.
        changed: False if everything was there already.
    """

    base: Base | None
    n_changed: int
    changed: bool


def prepare_tree(directory: Path, *, source: str | None = None, progress: Progress | None = None) -> Prepared:
    """Make `directory` the pinned llama.cpp with TurboPrefill in it; do nothing where it is that already.

    Files that do not change keep their times, so that a build after it stays short.

    Args:
        directory: a new folder, or one that this function made before; what was edited in it is lost.
        source: as for :func:`checkout`; None: $TURBOPREFILL_SOURCE, else "auto".
        progress: told what is going on.

    Raises:
        RefusedError: the folder holds something else.
        ToolError: llama.cpp cannot be had.
    """
    chosen = source or os.environ.get("TURBOPREFILL_SOURCE") or "auto"
    done = checkout(directory, source=chosen, replace=True, progress=progress)
    outcome = install(directory, force=True)  # this tree is the build's own
    return Prepared(done.base, len(outcome.changes), done.created or bool(outcome.changes))
