"""What state a tree is in, worked out from its content alone: there is no marker file to go stale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from turboprefill.tools.hooktext import AnchorFailure, insert, is_tagged, parse, render, strip
from turboprefill.tools.overlay import HEADER, Overlay, header_version, seal_state
from turboprefill.tools.pins import Pins, load_pins
from turboprefill.tools.tree import BaseMatch, Tree, match_base

__all__ = ["FileState", "TreeState", "inspect_tree"]


@dataclass(frozen=True)
class FileState:
    """One file that matters to TurboPrefill.

    Attributes:
        path: in the tree.
        role: "hooked" (upstream's, gets lines) or "own".
        state: hooked: "untouched", "installed", "incomplete" (some of our lines), "other lines", "missing";
            own: "installed", "other version", "edited", "missing".
        local_edits: it was edited by hand.
    """

    path: str
    role: str
    state: str
    local_edits: bool


@dataclass(frozen=True)
class TreeState:
    """Everything that install, uninstall, status and diff need to know; nothing is read a second time.

    Attributes:
        tree: where.
        state: "pristine", "installed", "modified", "partial" or "unknown base".
        version: of the installed header, or None.
        up_to_date: the tree is exactly what installing this overlay would make.
        match: agreement with known upstream versions.
        files: every hooked and own file, including those that only an older overlay had.
        failures: hooks of this overlay that do not fit.
        contents: current content of every file in ``files`` that exists.
        wanted: content of the hooked files with this overlay's lines; without those that do not fit.
        left_out: what of this overlay is optional and has no place in this tree.
    """

    tree: Tree
    state: str
    version: str | None
    up_to_date: bool
    match: BaseMatch
    files: tuple[FileState, ...]
    failures: tuple[AnchorFailure, ...]
    contents: Mapping[str, bytes]
    wanted: Mapping[str, bytes]
    left_out: tuple[str, ...]

    @property
    def edited(self) -> tuple[str, ...]:
        """Files with local edits."""
        return tuple(file.path for file in self.files if file.local_edits)

    @property
    def present(self) -> bool:
        """Whether anything of TurboPrefill is in the tree, of whichever version."""
        return any(file.state not in ("untouched", "missing") for file in self.files)

    def as_json(self, overlay: Overlay) -> dict[str, Any]:
        """For ``status --json``; the keys are an interface."""
        base = self.match.base
        return {
            "schema": 1,
            "tree": str(self.tree.root),
            "state": self.state,
            "version": self.version,
            "overlay_version": overlay.version,
            "up_to_date": self.up_to_date,
            "base": base and {"name": base.name, "commit": base.commit, "exact": self.match.known is not None},
            "git_head": self.tree.head_commit(),
            "left_out": list(self.left_out),
            "files": [
                {"path": f.path, "role": f.role, "state": f.state, "local_edits": f.local_edits} for f in self.files
            ],
            "anchors_failed": [
                {
                    "file": f.hook.file,
                    "anchor": f.hook.anchor,
                    "found": list(f.found),
                    "nearest": f.nearest and f.nearest[0],
                }
                for f in self.failures
            ],
        }


def inspect_tree(tree: Tree, overlay: Overlay, pins: Pins | None = None) -> TreeState:
    """Determine the state of a tree.

    Raises:
        RefusedError: a file that matters cannot be read, or lies outside of the tree.
    """
    contents: dict[str, bytes] = {}
    known = overlay.hooked_files
    hooked, own = _gather(tree, overlay, contents)
    overlay, left_out = overlay.fitted(contents)
    hooked = [name for name in hooked if name in contents or overlay.hooks_of(name)]
    match = match_base(tree, known, pins or load_pins(), contents)
    wanted: dict[str, bytes] = {}
    failures: list[AnchorFailure] = []
    files = [_hooked_state(name, overlay, match, contents, wanted, failures) for name in hooked]
    files += [_own_state(name, overlay, contents) for name in own]
    version = header_version(contents.get(HEADER, b""))
    return TreeState(
        tree,
        _overall(files, match, version, overlay.version),
        version,
        all(f.state == "installed" for f in files),
        match,
        tuple(files),
        tuple(failures),
        contents,
        wanted,
        left_out,
    )


def _gather(tree: Tree, overlay: Overlay, contents: dict[str, bytes]) -> tuple[list[str], list[str]]:
    hooked, own = list(overlay.hooked_files), list(overlay.own)
    for name in hooked + own:
        data = tree.read(name)
        if data is not None:
            contents[name] = data
    # Leftovers of an overlay with other files or other hooks.
    for name, data in tree.marked_files():
        if name in contents:
            continue
        if seal_state(data) != "none":
            own.append(name)
        elif any(is_tagged(line, name) for line in parse(data)):
            hooked.append(name)
        else:
            continue
        tree.path(name)  # refuses links that lead out
        contents[name] = data
    return hooked, own


def _hooked_state(
    name: str,
    overlay: Overlay,
    match: BaseMatch,
    contents: Mapping[str, bytes],
    wanted: dict[str, bytes],
    failures: list[AnchorFailure],
) -> FileState:
    data = contents.get(name)
    hooks = overlay.hooks_of(name)
    if data is None:
        failures += [AnchorFailure(hook, (), None) for hook in hooks]
        return FileState(name, "hooked", "missing", False)
    text = parse(data)
    bare = strip(text, name)
    result, failed = insert(bare, hooks, name)
    failures += failed
    edited = name in match.edited
    if not failed:
        wanted[name] = render(result)
    if wanted.get(name) == data:
        return FileState(name, "hooked", "installed", edited)
    if bare == text:
        return FileState(name, "hooked", "untouched", edited)
    ours = {line.text for line in text if is_tagged(line, name)}
    incomplete = ours < {line.text for line in result}
    return FileState(name, "hooked", "incomplete" if incomplete else "other lines", edited)


def _own_state(name: str, overlay: Overlay, contents: Mapping[str, bytes]) -> FileState:
    data = contents.get(name)
    if data is None:
        return FileState(name, "own", "missing", False)
    sealed = seal_state(data)
    if sealed != "intact":
        return FileState(name, "own", "edited", True)
    same = data.replace(b"\r\n", b"\n") == overlay.own.get(name, b"").replace(b"\r\n", b"\n")
    return FileState(name, "own", "installed" if same else "other version", False)


def _overall(files: list[FileState], match: BaseMatch, version: str | None, current: str) -> str:
    if any(f.local_edits for f in files):
        return "modified"
    if all(f.state in ("untouched", "missing") for f in files):
        return "pristine" if match.known else "unknown base"
    # Which files belong to another version is not known, so only this version can be found incomplete.
    lacking = any(f.state in ("untouched", "incomplete", "missing") for f in files)
    return "partial" if version is None or (version == current and lacking) else "installed"
