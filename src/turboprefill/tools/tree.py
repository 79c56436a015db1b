"""A llama.cpp tree on disk: reading it safely, and telling which upstream version it is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from turboprefill.tools.errors import RefusedError
from turboprefill.tools.hooktext import TAG, comment_prefix, parse, render, sha256_lf, strip
from turboprefill.tools.pins import Base, Pins

__all__ = ["BaseMatch", "Tree", "match_base"]

_LANDMARKS = ("CMakeLists.txt", "include/llama.h", "ggml/src", "src")
# Where anything of ours can be: the folders of upstream's libraries.
_SCANNED = ("include", "src", "ggml", "common")


@dataclass(frozen=True)
class BaseMatch:
    """How far a tree agrees with the pins.

    Attributes:
        base: the known version that most hooked files agree with, or None if none agrees.
        differing: hooked files, taken without our lines, that are not as in that version.
        edited: hooked files that differ from the tree's own git HEAD, or from ``base`` where git cannot tell.
    """

    base: Base | None
    differing: tuple[str, ...]
    edited: tuple[str, ...]

    @property
    def known(self) -> Base | None:
        """The base, if all hooked files are exactly that version's."""
        return None if self.differing else self.base


class Tree:
    """A folder that holds llama.cpp.

    Raises:
        RefusedError: it does not exist, or it is something else.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            what = "is a file" if root.exists() else "does not exist"
            msg = f"{root} {what}; expected a folder with llama.cpp. To get one: turboprefill checkout {root}"
            raise RefusedError(msg)
        self.root = root.resolve()
        missing = [name for name in _LANDMARKS if not (self.root / name).exists()]
        if missing:
            msg = (
                f"{root} is not a llama.cpp tree: {', '.join(missing)} not found. "
                f"Give the folder that holds llama.cpp's top CMakeLists.txt, or get one: turboprefill checkout NEW_DIR"
            )
            raise RefusedError(msg)

    def path(self, name: str) -> Path:
        """The real path of a file of the tree.

        Raises:
            RefusedError: a symbolic link leads out of the tree, or the place is taken by a folder.
        """
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root):
            msg = (
                f"{self.root / name} leads out of the tree, to {path}; nothing was changed. "
                "TurboPrefill only changes files inside the tree: replace the link by a copy."
            )
            raise RefusedError(msg)
        if path.is_dir():
            msg = f"{path} is a folder; expected a file. Nothing was changed. Is this a llama.cpp tree?"
            raise RefusedError(msg)
        return path

    def read(self, name: str) -> bytes | None:
        """Content of a file, or None if there is none.

        Raises:
            RefusedError: it cannot be read.
        """
        path = self.path(name)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            msg = f"cannot read {path}: {error.strerror}. Nothing was changed. Check the tree's owner and permissions."
            raise RefusedError(msg) from error

    def marked_files(self) -> Iterator[tuple[str, bytes]]:
        """Every source file below the library folders that mentions us, with its content, in a stable order."""
        wanted = TAG.encode()
        for name in self._source_files():
            try:
                data = (self.root / name).read_bytes()
            except OSError:
                continue  # a broken link, say; files that matter are read, and complained about, by name
            if wanted in data:
                yield name, data

    def _source_files(self) -> Iterator[str]:
        yield "CMakeLists.txt"
        for top in _SCANNED:
            for folder, subfolders, files in os.walk(self.root / top):
                # Objects and copies of our files may lie in build folders.
                subfolders[:] = sorted(d for d in subfolders if not (Path(folder) / d / "CMakeCache.txt").exists())
                for file in sorted(files):
                    if comment_prefix(file):
                        yield (Path(folder) / file).relative_to(self.root).as_posix()

    def head_reader(self) -> Callable[[str], bytes | None]:
        """A function that reads a file as the tree's git HEAD has it; None where git cannot tell."""

        def read(name: str) -> bytes | None:
            # "./": relative to the tree, which may be a folder of a larger repository.
            return _ask_git(self.root, "show", f"HEAD:./{name}")

        return read

    def head_commit(self) -> str | None:
        """Full id of the tree's own git HEAD, or None."""
        answer = _ask_git(self.root, "rev_parse", "HEAD") if (self.root / ".git").exists() else None
        return answer.decode().strip() if answer else None

    def head_message(self) -> str:
        """Message of the tree's own git HEAD; empty where there is none."""
        answer = _ask_git(self.root, "log", "-1", "--format=%B") if (self.root / ".git").exists() else None
        return (answer or b"").decode("utf-8", "replace")


def _ask_git(root: Path, command: str, *arguments: str) -> bytes | None:
    """Output of a git command, or None: no git, no repository, nothing committed, not ours to read."""
    try:
        from git import Git
        from git.exc import GitError
    except ImportError:  # GitPython cannot be imported without the git program
        return None
    try:
        answer = getattr(Git(str(root)), command)(*arguments, stdout_as_string=False, strip_newline_in_stdout=False)
    except (GitError, OSError):
        return None
    return answer if isinstance(answer, bytes) else None


def match_base(tree: Tree, files: Sequence[str], pins: Pins, contents: dict[str, bytes]) -> BaseMatch:
    """Compare the hooked files, without our lines, with the pins and with git.

    Args:
        tree: where they are.
        files: paths of the hooked files.
        pins: known versions.
        contents: those of ``files`` that exist, as they are on disk.
    """
    clean = {name: untouched(contents[name], name) for name in files if name in contents}
    hashes = {name: sha256_lf(data) for name, data in clean.items()}

    def differing(base: Base) -> tuple[str, ...]:
        return tuple(name for name in files if name in base.files and base.files[name] != hashes.get(name))

    # `min` keeps the first of equals, and the pins are sorted from new to old.
    best = min(pins.bases, key=lambda base: len(differing(base)), default=None)
    if best and len(differing(best)) == sum(name in best.files for name in files):
        best = None
    off = differing(best) if best else ()
    suspects: Iterable[str] = off if best else clean
    head = tree.head_reader()
    edited = []
    for name in suspects:
        committed = head(name)
        if committed is None:
            if best:
                edited.append(name)
        elif sha256_lf(untouched(committed, name)) != hashes.get(name):
            edited.append(name)
    return BaseMatch(best, off, tuple(edited))


def untouched(data: bytes, name: str) -> bytes:
    """A hooked file's content without our lines."""
    return render(strip(parse(data), name))
