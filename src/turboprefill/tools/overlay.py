"""What TurboPrefill adds to llama.cpp: whole files of our own, and single lines at literal anchors.

An installed copy of a file of ours ends in a *seal*, a comment with the hash of the text above it. It tells an
untouched copy of any version, which may be replaced or removed, from one that was edited.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from turboprefill.paths import overlay_dir
from turboprefill.tools.errors import ToolError
from turboprefill.tools.hooktext import TAG, Hook, comment_prefix, insert, is_tagged, parse, strip

__all__ = ["Overlay", "header_version", "load_overlay", "seal", "seal_state"]

HEADER = "include/turboprefill.h"
_NAMED = re.compile(rf"[\w-]*{TAG}[\w-]*\.(?:h|c|cpp|inc)\b")
_SOURCES = {".h", ".c", ".cpp", ".inc"}
_SEAL = re.compile(rb"^(?://|#) turboprefill: installed copy, sha256 of the text above ([0-9a-f]{64})\r?\n?\Z")
_VERSION = re.compile(rb'^[ \t]*#[ \t]*define[ \t]+TURBOPREFILL_VERSION[ \t]+"([^"\n]+)"', re.MULTILINE)


@dataclass(frozen=True)
class Overlay:
    """A set of own files and hooks.

    Attributes:
        version: from ``TURBOPREFILL_VERSION`` in the overlay's header.
        own: path in the tree -> sealed content.
        hooks: in the order of ``hooks.json``, which is that of the source.
    """

    version: str
    own: Mapping[str, bytes]
    hooks: tuple[Hook, ...]

    @cached_property
    def hooked_files(self) -> tuple[str, ...]:
        """Upstream files that get lines, in the order of their first hook."""
        return tuple(dict.fromkeys(hook.file for hook in self.hooks))

    def hooks_of(self, file: str) -> tuple[Hook, ...]:
        """The hooks of one upstream file."""
        return tuple(hook for hook in self.hooks if hook.file == file)

    def fitted(self, contents: Mapping[str, bytes]) -> tuple[Overlay, tuple[str, ...]]:
        """This overlay without the optional hooks that a tree has no place for.

        Args:
            contents: what the tree's files hold, with or without lines of ours.

        Returns:
            the overlay, and the names of what was left out; hooks of one name go together.
        """
        unfit = {hook.optional for hook in self.hooks if hook.optional and not _has_place(hook, contents)}
        hooks = tuple(hook for hook in self.hooks if hook.optional not in unfit)
        return replace(self, hooks=hooks), tuple(sorted(unfit))


def _has_place(hook: Hook, contents: Mapping[str, bytes]) -> bool:
    data = contents.get(hook.file)
    return data is not None and not insert(strip(parse(data), hook.file), [hook], hook.file)[1]


def header_version(data: bytes) -> str | None:
    """The version that a copy of our header carries, or None."""
    match = _VERSION.search(data)
    return match.group(1).decode("utf-8", "replace") if match else None


def seal(data: bytes, path: str) -> bytes:
    """The content to install for a file of ours."""
    if not data.endswith(b"\n"):
        data += b"\n"
    digest = hashlib.sha256(data.replace(b"\r\n", b"\n")).hexdigest()
    return data + f"{comment_prefix(path)} {TAG}: installed copy, sha256 of the text above {digest}\n".encode()


def seal_state(data: bytes) -> str:
    """``"intact"``, ``"broken"`` (edited since it was installed) or ``"none"``."""
    body_end = data.rstrip(b"\r\n").rfind(b"\n") + 1
    match = _SEAL.match(data[body_end:])
    if not match:
        return "none"
    digest = hashlib.sha256(data[:body_end].replace(b"\r\n", b"\n")).hexdigest()
    return "intact" if digest.encode() == match.group(1) else "broken"


def load_overlay(folder: Path | None = None) -> Overlay:
    """Read and check an overlay.

    Raises:
        ToolError: ``hooks.json`` or a file is missing or breaks the rules. Every fault is listed.
    """
    folder = folder or overlay_dir()
    index = folder / "hooks.json"
    try:
        raw = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"cannot read the overlay {index}: {error}. It is part of the package: reinstall turboprefill."
        raise ToolError(msg) from error
    faults: list[str] = []
    hooks = tuple(_hook(entry, faults) for entry in raw.get("hooks", []))
    own = {path: _own(folder, path, faults) for path in _own_files(folder)}
    faults.extend(_missing(hooks, own))
    version = header_version(own.get(HEADER, b""))
    if version is None:
        faults.append(f'no own file {HEADER} with `#define TURBOPREFILL_VERSION "x.y.z"`')
    if faults:
        raise ToolError(f"{index} is not usable:\n  " + "\n  ".join(faults))
    return Overlay(version or "", own, hooks)


def _hook(entry: dict[str, Any], faults: list[str]) -> Hook:
    lines = entry.get("lines", [])
    hook = Hook(
        entry.get("file", ""),
        entry.get("anchor", ""),
        entry.get("where", ""),
        tuple(lines),
        entry.get("why", ""),
        entry.get("in", ""),
        entry.get("optional", ""),
    )
    name = f"hook {hook.file} `{hook.anchor}`"
    if not _inside(hook.file) or comment_prefix(hook.file) is None:
        faults.append(f"{name}: file must be a relative path of a C, C++ or CMake file")
        return hook
    if hook.where not in ("before", "after", "end"):
        faults.append(f"{name}: where is {hook.where!r}, expected before, after or end")
    if (hook.where == "end") != (hook.anchor == ""):
        faults.append(f"{name}: an anchor is needed, except with where = end, which takes none")
    if not lines:
        faults.append(f"{name}: no lines")
    for line in lines:
        if "\n" in line or "\r" in line or line.endswith("\\"):
            faults.append(f"{name}: `{line}` is not a single line that can carry a tag")
        elif is_tagged(parse(line.encode() or b" ")[0], hook.file):
            faults.append(f"{name}: `{line}` already carries the tag, which installing adds")
    return hook


def _own_files(folder: Path) -> list[str]:
    """Paths of the C and C++ files below the folder; each has the same path in a llama.cpp tree."""
    paths = (path for path in folder.rglob("*") if path.suffix in _SOURCES and path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _missing(hooks: tuple[Hook, ...], own: Mapping[str, bytes]) -> list[str]:
    """Files that hooks compile or include, and that are not there."""
    present = {PurePosixPath(path).name for path in own}
    named = {name for hook in hooks for line in hook.lines for name in _NAMED.findall(line)}
    return [
        f"file {name}: a hook names it, and no file below the overlay's folder has that name"
        for name in sorted(named - present)
    ]


def _own(folder: Path, path: str, faults: list[str]) -> bytes:
    if TAG not in path:
        faults.append(f"file {path}: must have {TAG!r} in its path, so that it can be found again in a tree")
        return b""
    try:
        return seal((folder / path).read_bytes(), path)
    except OSError as error:
        faults.append(f"file {path}: {error.strerror or error}")
        return b""


def _inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\\" not in path
