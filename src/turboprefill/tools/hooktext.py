"""Inserting lines into a text and taking them out again, without touching anything else in it.

Works on whole files in memory. Taking out is exact: ``strip(insert(text)) == text`` byte for byte, for LF and
CRLF files, with or without a newline at the end.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

__all__ = ["AnchorFailure", "Hook", "Text", "comment_prefix", "insert", "is_tagged", "sha256_lf", "strip"]

TAG = "turboprefill"
_SLASHES = {".h", ".hpp", ".c", ".cc", ".cpp", ".inc", ".inl", ".cu", ".cuh", ".m", ".metal"}
_HASHES = {".cmake", ".py", ".sh"}


@dataclass(frozen=True)
class Hook:
    """Lines to insert at one place of one upstream file."""

    file: str
    anchor: str  # literal text that exactly one line of the file contains; "" with where == "end"
    where: str  # "before", "after" or "end"
    lines: tuple[str, ...]  # without the tag
    why: str
    function: str = ""  # the function or struct that the place is in, for people
    optional: str = ""  # hooks of one such name are left out together where one of them finds no place


@dataclass(frozen=True)
class AnchorFailure:
    """A hook that found no place, or more than one."""

    hook: Hook
    found: tuple[int, ...]  # 1-based lines that contain the anchor
    nearest: tuple[int, str] | None  # the most similar line, when there is none that contains it

    def __str__(self) -> str:
        where = f"{self.hook.file}: expected exactly one line with `{self.hook.anchor}`, found "
        if self.found:
            return where + f"{len(self.found)}: lines {', '.join(map(str, self.found))}"
        if self.nearest:
            number, text = self.nearest
            return where + f"none; most similar is line {number}: `{text.strip()}`"
        return where + "none"


@dataclass(frozen=True)
class Line:
    text: str
    eol: str  # "\n", "\r\n", or "" for a last line without one


Text = tuple[Line, ...]


def parse(data: bytes) -> Text:
    """Split a file; any bytes are allowed and survive :func:`render`."""
    parts = data.decode("utf-8", "surrogateescape").split("\n")
    lines = [Line(p[:-1], "\r\n") if p.endswith("\r") else Line(p, "\n") for p in parts[:-1]]
    if parts[-1]:
        lines.append(Line(parts[-1], ""))
    return tuple(lines)


def render(text: Text) -> bytes:
    """The inverse of :func:`parse`."""
    return "".join(line.text + line.eol for line in text).encode("utf-8", "surrogateescape")


def comment_prefix(path: str) -> str | None:
    """How a comment starts in this kind of file, or None where we know of none."""
    name = PurePosixPath(path)
    if name.suffix in _SLASHES:
        return "//"
    if name.suffix in _HASHES or name.name == "CMakeLists.txt":
        return "#"
    return None


def is_tagged(line: Line, path: str) -> bool:
    """Whether we inserted this line."""
    return line.text.rstrip().endswith(f"{comment_prefix(path)} {TAG}")


def strip(text: Text, path: str) -> Text:
    """The text without the lines that we inserted."""
    kept = [line for line in text if not is_tagged(line, path)]
    # An inserted line may have become the last one and taken over the missing newline.
    if kept and text and not text[-1].eol and kept[-1].eol:
        kept[-1] = Line(kept[-1].text, "")
    return tuple(kept)


def insert(text: Text, hooks: Sequence[Hook], path: str) -> tuple[Text, list[AnchorFailure]]:
    """Insert the lines of all hooks of one file.

    Args:
        text: the file without inserted lines.
        hooks: this file's hooks; several at one anchor keep their order.
        path: the file's path in the tree, which decides how a tag looks.

    Returns:
        the new text and no failures, or the unchanged text and every hook that found no unique place.
    """
    before: dict[int, list[Hook]] = {}
    after: dict[int, list[Hook]] = {}
    failures: list[AnchorFailure] = []
    for hook in hooks:
        if hook.where == "end":
            after.setdefault(len(text) - 1, []).append(hook)
            continue
        found = [i for i, line in enumerate(text) if hook.anchor in line.text]
        if len(found) == 1:
            (before if hook.where == "before" else after).setdefault(found[0], []).append(hook)
        else:
            nearest = None if found else _nearest(hook.anchor, text)
            failures.append(AnchorFailure(hook, tuple(i + 1 for i in found), nearest))
    if failures:
        return text, failures
    return _weave(text, before, after, path), []


def _weave(text: Text, before: dict[int, list[Hook]], after: dict[int, list[Hook]], path: str) -> Text:
    suffix = f" {comment_prefix(path)} {TAG}"
    result: list[Line] = []

    def add(hooks: list[Hook], eol: str) -> None:
        result.extend(Line(line + suffix, eol) for hook in hooks for line in hook.lines)

    add(after.get(-1, []), "\n")  # an empty file has no last line to append to
    for i, line in enumerate(text):
        eol = line.eol or (text[i - 1].eol if i else "\n")
        add(before.get(i, []), eol)
        if i in after:
            result.append(Line(line.text, eol))
            add(after[i], eol)
            if not line.eol:
                result[-1] = Line(result[-1].text, "")
        else:
            result.append(line)
    return tuple(result)


def _nearest(anchor: str, text: Text) -> tuple[int, str] | None:
    matcher = difflib.SequenceMatcher(autojunk=False)
    matcher.set_seq2(anchor.strip())
    best, best_ratio = None, 0.5
    for number, line in enumerate(text, 1):
        matcher.set_seq1(line.text.strip())
        if matcher.real_quick_ratio() > best_ratio and matcher.quick_ratio() > best_ratio:
            ratio = matcher.ratio()
            if ratio > best_ratio:
                best, best_ratio = (number, line.text), ratio
    return best


def sha256_lf(data: bytes) -> str:
    """Hash of a text file that does not depend on whether its lines end in LF or CRLF."""
    return hashlib.sha256(data.replace(b"\r\n", b"\n")).hexdigest()
