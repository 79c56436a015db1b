"""Unpacking the llama.cpp tree out of an archive, and nothing but that tree.

An archive is not trusted: only regular files and folders are made, nothing can land outside of the destination,
links that lead out fail, and git's own files are left out (an archive may carry a ``.git`` that points elsewhere).

tarfile's own "data" filter would allow more: it makes absolute names relative, and follows only those links that are
there already, so two links in the right order lead out. Nor does it know zip files.
"""

from __future__ import annotations

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from turboprefill.tools.errors import ToolError
from turboprefill.tools.progress import Advance

__all__ = ["ARCHIVE_SUFFIXES", "extract_tree"]

# What the modules raise over damaged content. RuntimeError: encrypted, or packed in an unknown way.
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tar", ".zip")


@dataclass(frozen=True)
class _Entry:
    name: str
    kind: str  # "file", "link", "folder" or "other"
    mode: int
    target: str  # of a link
    open: Callable[[], IO[bytes] | None]


def extract_tree(archive: Path, dest: Path, subtree: str | None, advance: Advance) -> None:
    """Unpack a llama.cpp tree.

    Args:
        archive: a tar file, compressed or not, or a zip file.
        dest: an empty folder; becomes the tree. Throw it away if this raises.
        subtree: where the tree is inside the archive, below its single top folder; None: look for it.
        advance: told how many entries were looked at.

    Raises:
        ToolError: not an archive, no llama.cpp in it, or an entry that does not belong in one.
    """
    links: list[tuple[Path, str]] = []
    n_files = 0
    try:
        prefix = _find_tree(archive) if subtree is None else None
        for i, entry in enumerate(_entries(archive)):
            advance(i, None)
            if prefix is None and subtree is not None:
                prefix = PurePosixPath(entry.name).parts[:1] + PurePosixPath(subtree).parts
            place = _place(archive, entry, prefix or ())
            if place is None:
                continue
            path = dest / place
            if entry.kind == "folder":
                path.mkdir(parents=True, exist_ok=True)
            elif entry.kind == "link":
                links.append((path, entry.target))
            else:
                _write(path, entry)
                n_files += 1
        _make_links(archive, dest, links)
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's, so not about the content
            raise ToolError(f"cannot unpack {archive} into {dest.parent}: {error.strerror}.") from error
        msg = f"cannot unpack {archive}: {error}. Is it complete? Expected one of {', '.join(ARCHIVE_SUFFIXES)}."
        raise ToolError(msg) from error
    if not n_files:
        raise ToolError(f"{archive} has no files below {subtree!r}; expected a llama.cpp tree there.")


def _place(archive: Path, entry: _Entry, prefix: tuple[str, ...]) -> PurePosixPath | None:
    """Where an entry goes, relative to the destination; None: not part of the tree."""
    path = PurePosixPath(entry.name)
    if path.is_absolute() or ".." in path.parts or "\\" in entry.name:
        raise ToolError(f"{archive} is not safe to unpack: its entry {entry.name!r} leads out of the destination.")
    if path.parts[: len(prefix)] != prefix or path.parts == prefix:
        return None
    inside = PurePosixPath(*path.parts[len(prefix) :])
    if ".git" in inside.parts:
        return None
    if entry.kind == "other":
        raise ToolError(
            f"{archive} is not safe to unpack: {entry.name!r} is neither a file, a folder nor a symbolic link."
        )
    return inside


def _write(path: Path, entry: _Entry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = entry.open()
    if source is None:
        raise tarfile.ReadError(f"{entry.name} has no content")
    with source, path.open("xb") as file:
        shutil.copyfileobj(source, file)
    path.chmod(0o755 if entry.mode & stat.S_IXUSR else 0o644)


def _make_links(archive: Path, dest: Path, links: Sequence[tuple[Path, str]]) -> None:
    """Last, so that no file is ever written through a link."""
    root = dest.resolve()

    def check(path: Path, name: Path) -> None:
        if not path.resolve().is_relative_to(root):
            raise ToolError(
                f"{archive} is not safe to unpack: its link {name.relative_to(dest)} leads out of the tree."
            )

    for path, target in links:
        check(path.parent, path)  # it may lie behind a link that was made before
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
    for path, _ in links:  # only now is it known where links to links lead
        check(path, path)


def _find_tree(archive: Path) -> tuple[str, ...]:
    names = {PurePosixPath(entry.name).parts for entry in _entries(archive)}
    heads = sorted((n[:-2] for n in names if n[-2:] == ("include", "llama.h")), key=len)
    for head in heads:
        if (*head, "CMakeLists.txt") in names and any(n[: len(head) + 1] == (*head, "ggml") for n in names):
            return head
    raise ToolError(
        f"{archive} does not contain a llama.cpp tree: no folder in it has include/llama.h, CMakeLists.txt and ggml."
    )


def _entries(archive: Path) -> Iterator[_Entry]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as bundle:
            for info in bundle.infolist():
                yield _zip_entry(bundle, info)
        return
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            kind = "file" if member.isreg() else "folder" if member.isdir() else "link" if member.issym() else "other"
            yield _Entry(member.name, kind, member.mode, member.linkname, lambda m=member: tar.extractfile(m))  # type: ignore[misc]


def _zip_entry(bundle: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Entry:
    mode = info.external_attr >> 16
    kind = "folder" if info.is_dir() else "file"
    target = ""
    if stat.S_ISLNK(mode):
        kind, target = "link", bundle.read(info).decode("utf-8", "replace")
    return _Entry(info.filename, kind, mode, target, lambda: bundle.open(info))
