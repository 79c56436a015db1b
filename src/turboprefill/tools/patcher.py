"""Installing TurboPrefill into a llama.cpp tree, and removing it again.

Everything is decided in memory first. Then either all files change or none does.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from turboprefill.tools.errors import RefusedError
from turboprefill.tools.hooktext import sha256_lf
from turboprefill.tools.overlay import Overlay, load_overlay
from turboprefill.tools.pins import Base, Pins, load_pins
from turboprefill.tools.transaction import transaction
from turboprefill.tools.tree import Tree, untouched
from turboprefill.tools.treestate import TreeState, inspect_tree

__all__ = ["Outcome", "diff", "install", "status", "uninstall"]


@dataclass(frozen=True)
class Outcome:
    """What install or uninstall did, or would do in a dry run.

    Attributes:
        before: the state of the tree that it found.
        changes: path in the tree -> (old content, new content); None means no file.
        notes: what the user should know, one sentence each.
    """

    before: TreeState
    changes: Mapping[str, tuple[bytes | None, bytes | None]]
    notes: tuple[str, ...]


def status(root: Path, *, overlay: Overlay | None = None, pins: Pins | None = None) -> TreeState:
    """Look at a tree and change nothing.

    Raises:
        RefusedError: it is not a llama.cpp tree, or not readable.
    """
    return inspect_tree(Tree(root), overlay or load_overlay(), pins)


def install(
    root: Path,
    *,
    dry_run: bool = False,
    force: bool = False,
    overlay: Overlay | None = None,
    pins: Pins | None = None,
) -> Outcome:
    """Install the overlay, bring another version of it up to date, or complete a partial one.

    Args:
        root: the tree.
        dry_run: find out everything, write nothing.
        force: go on when files that get lines have local edits, and replace edited copies of our own files.
        overlay: what to install; this package's by default.
        pins: known upstream versions; this package's by default.

    Raises:
        RefusedError: something does not fit; all of it is listed, and nothing was changed.
    """
    overlay, pins = overlay or load_overlay(), pins or load_pins()
    state = status(root, overlay=overlay, pins=pins)
    _refuse_failed_anchors(state, pins)
    if not force:
        _refuse_edits(state)
    wanted: dict[str, bytes | None] = {}
    for file in state.files:
        if file.role == "hooked":
            wanted[file.path] = state.wanted[file.path]
        else:  # a file of ours that this overlay does not have goes away
            wanted[file.path] = overlay.own.get(file.path)
    changes = {
        name: (state.contents.get(name), new)
        for name, new in wanted.items()
        if not _same(name, state.contents.get(name), new, overlay)
    }
    _carry_out(state.tree, changes, dry_run)
    return Outcome(state, changes, tuple(_install_notes(state, pins)))


def uninstall(
    root: Path,
    *,
    dry_run: bool = False,
    force: bool = False,
    overlay: Overlay | None = None,
    pins: Pins | None = None,
) -> Outcome:
    """Remove our lines and files, of whichever version; anything else stays byte for byte.

    Args:
        root: the tree.
        dry_run: find out everything, write nothing.
        force: also remove files of ours that have local edits.
        overlay: names the files to look for first; this package's by default.
        pins: known upstream versions, to check the result against; this package's by default.

    Raises:
        RefusedError: a file of ours was edited, or the tree cannot be written; nothing was changed.
    """
    state = status(root, overlay=overlay, pins=pins)
    edited = [f.path for f in state.files if f.role == "own" and f.state == "edited"]
    if edited and not force:
        msg = (
            f"{root}: these TurboPrefill files were edited after installation: {', '.join(edited)}. "
            "Removing them would lose those edits, so nothing was changed. Save the edits, then: "
            f"turboprefill uninstall --force {root}"
        )
        raise RefusedError(msg)
    changes: dict[str, tuple[bytes | None, bytes | None]] = {}
    for file in state.files:
        data = state.contents.get(file.path)
        if data is None:
            continue
        bare = untouched(data, file.path) if file.role == "hooked" else None
        if bare != data:
            changes[file.path] = (data, bare)
    _carry_out(state.tree, changes, dry_run)
    return Outcome(state, changes, tuple(_uninstall_notes(state, changes)))


def diff(root: Path, *, full: bool = False, overlay: Overlay | None = None, pins: Pins | None = None) -> Iterator[str]:
    """Lines of a unified diff from the tree without TurboPrefill to the tree with it.

    Shows what is installed, or what installing would add where nothing is.

    Args:
        root: the tree.
        full: our own files too; then ``git apply`` can use the result on an untouched tree.
        overlay: this package's by default.
        pins: this package's by default.

    Raises:
        RefusedError: not a llama.cpp tree, or nothing is installed and some anchor does not fit.
    """
    overlay, pins = overlay or load_overlay(), pins or load_pins()
    state = status(root, overlay=overlay, pins=pins)
    installed = state.present
    if not installed:
        _refuse_failed_anchors(state, pins)
    for file in state.files:
        data = state.contents.get(file.path)
        if file.role == "hooked":
            if data is not None:
                new = data if installed else state.wanted[file.path]
                yield from _unified(file.path, untouched(data, file.path), new)
        elif full:
            yield from _unified(file.path, None, data if installed else overlay.own[file.path])


def _carry_out(tree: Tree, changes: Mapping[str, tuple[bytes | None, bytes | None]], dry_run: bool) -> None:
    if dry_run or not changes:
        return
    paths = {name: tree.path(name) for name in changes}
    try:
        with transaction(tree.root) as files:
            for name, (_, new) in changes.items():
                if new is None:
                    files.delete(paths[name])
                else:
                    files.write(paths[name], new)
    except OSError as error:
        msg = (
            f"writing to {tree.root} failed: {error.strerror or error}"
            f"{f' ({error.filename})' if error.filename else ''}. Every file was put back as it was. "
            "Check free space, the owner of the files and how the disk is mounted."
        )
        raise RefusedError(msg) from error


def _refuse_failed_anchors(state: TreeState, pins: Pins) -> None:
    if not state.failures:
        return
    absent = [f.path for f in state.files if f.role == "hooked" and f.state == "missing"]
    lines = [f"{state.tree.root}: this llama.cpp does not fit; nothing was changed."]
    lines += [f"  {name}: no such file" for name in absent]
    lines += [f"  {failure}" for failure in state.failures if failure.hook.file not in absent]
    lines.append(
        f"TurboPrefill is tested with llama.cpp {pins.default}. Use that version (turboprefill checkout NEW_DIR), "
        "undo local changes to these files, or look for a turboprefill release for this llama.cpp."
    )
    raise RefusedError("\n".join(lines))


def _refuse_edits(state: TreeState) -> None:
    if not state.edited:
        return
    base = state.match.base
    against = f"llama.cpp {base}" if base else "the version in git"
    lines = [f"{state.tree.root}: these files differ from {against}; nothing was changed."]
    lines += [f"  {name}" for name in state.edited]
    lines.append(
        f"Every insertion point was found, so `turboprefill install --force {state.tree.root}` can proceed; "
        "edits in llama.cpp's files are kept, edited copies of TurboPrefill's own files are replaced."
    )
    raise RefusedError("\n".join(lines))


def _same(name: str, old: bytes | None, new: bytes | None, overlay: Overlay) -> bool:
    if old is not None and new is not None and name in overlay.own:
        return sha256_lf(old) == sha256_lf(new)  # git may have given our file other line ends
    return old == new


def _install_notes(state: TreeState, pins: Pins) -> Iterator[str]:
    known = state.match.known
    if known != pins.default:
        found = f"llama.cpp {known}" if known else "not a pinned version"
        yield f"This tree is {found}. Every anchor was found, but TurboPrefill is tested with llama.cpp {pins.default}."
    if state.left_out:
        yield (
            f"Optional parts left out because this tree has no place for them: {', '.join(state.left_out)}. "
            "Results are the same; llama-server waits more often."
        )


def _uninstall_notes(state: TreeState, changes: Mapping[str, tuple[bytes | None, bytes | None]]) -> Iterator[str]:
    head = state.tree.head_reader()
    restored = {name: new for name, (_, new) in changes.items() if new is not None}
    verdicts = {name: _is_original(name, new, state.match.base, head) for name, new in restored.items()}
    kept = [name for name, original in verdicts.items() if original is False]
    if kept:
        yield f"Local edits that are not TurboPrefill's were kept: {', '.join(kept)}."
    elif verdicts and all(verdicts.values()):
        yield "Every restored file was checked against llama.cpp's own version of it."


def _is_original(name: str, data: bytes, base: Base | None, head: Callable[[str], bytes | None]) -> bool | None:
    """Whether this is upstream's own text; None when there is nothing to compare with."""
    digest = sha256_lf(data)
    if base and base.files.get(name) == digest:
        return True
    committed = head(name)
    if committed is not None:
        return sha256_lf(untouched(committed, name)) == digest
    return False if base and name in base.files else None


def _unified(name: str, old: bytes | None, new: bytes | None) -> Iterator[str]:
    def lines(data: bytes | None) -> list[str]:
        # Not splitlines(): it also splits at form feeds and the like.
        parts = (data or b"").decode("utf-8", "replace").split("\n")
        return [part + "\n" for part in parts[:-1]] + [part for part in parts[-1:] if part]

    start = "/dev/null" if old is None else f"a/{name}"
    for line in difflib.unified_diff(lines(old), lines(new), start, f"b/{name}"):
        yield line.removesuffix("\n")
        if not line.endswith("\n"):
            yield "\\ No newline at end of file"
