"""Where this installation keeps its own data, and where it may put downloads."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_dir", "overlay_dir", "pins_file"]

_PACKAGE = Path(__file__).resolve().parent


def cache_dir() -> Path:
    """Folder for downloads that are worth keeping; ``TURBOPREFILL_CACHE`` overrides it. Not created here."""
    override = os.environ.get("TURBOPREFILL_CACHE")
    if override:
        return Path(override).expanduser()
    from platformdirs import user_cache_path  # here: a bare machine can patch a tree without it

    return user_cache_path("turboprefill", appauthor=False)


def overlay_dir() -> Path:
    """Folder with ``hooks.json`` and our C++ files: inside the package once installed, else the source tree's."""
    installed = _PACKAGE / "overlay"
    return installed if installed.is_dir() else _PACKAGE.parents[1] / "overlay"


def pins_file() -> Path:
    """The one place where upstream versions and their hashes stand."""
    return _PACKAGE / "pins.json"
