"""The llama.cpp versions this package knows, as read from ``pins.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from turboprefill.paths import pins_file
from turboprefill.tools.errors import ToolError

__all__ = ["Base", "Pins", "Sdist", "load_pins"]


@dataclass(frozen=True)
class Sdist:
    """A source archive on the package index that carries the upstream tree."""

    project: str
    version: str
    filename: str
    sha256: str
    size: int  # bytes
    subtree: str  # path of the llama.cpp tree inside the archive


@dataclass(frozen=True)
class Base:
    """One upstream version: its names, an archive that carries it, hashes of the files that hooks touch."""

    name: str  # upstream's build tag, e.g. b11312
    commit: str  # full 40 hex digits
    ggml: str
    sdist: Sdist | None
    files: Mapping[str, str]  # path in the tree -> sha256 of the untouched file with LF line ends

    def __str__(self) -> str:
        return f"{self.name} ({self.commit[:9]})"


@dataclass(frozen=True)
class Pins:
    """All known bases, newest first."""

    repository: str
    default: Base
    bases: tuple[Base, ...]

    def find(self, wanted: str) -> Base | None:
        """The base that a tag, an sdist version or a commit (at least 7 digits of it) names, or None."""
        for base in self.bases:
            names = {base.name, base.commit} | ({base.sdist.version} if base.sdist else set())
            if wanted in names or (len(wanted) >= 7 and base.commit.startswith(wanted.lower())):
                return base
        return None

    def known(self) -> str:
        """Every base in words, for messages."""
        return ", ".join(str(base) for base in self.bases)


def _base(raw: dict[str, Any]) -> Base:
    sdist = Sdist(**raw["sdist"]) if raw.get("sdist") else None
    return Base(raw["name"], raw["commit"], raw["ggml"], sdist, raw["files"])


def load_pins(path: Path | None = None) -> Pins:
    """Read the pins.

    Raises:
        ToolError: the file is missing or damaged, which means a broken installation.
    """
    return _load(path or pins_file())


@lru_cache(maxsize=4)
def _load(path: Path) -> Pins:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        bases = tuple(_base(entry) for entry in raw["bases"])
        default = next(base for base in bases if base.name == raw["default"])
        return Pins(raw["repository"], default, bases)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        msg = f"cannot read {path}: {error!r}. It is part of the package: reinstall turboprefill."
        raise ToolError(msg) from error
