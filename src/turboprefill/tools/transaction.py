"""All changes to a tree, or none: even if the disk is full, or Ctrl-C is pressed in between."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from turboprefill.tools.errors import RefusedError

__all__ = ["Transaction", "transaction"]

_PREFIX = ".turboprefill-"


class Transaction:
    """Changes made so far, each with a copy of what was there before. Made by :func:`transaction`."""

    def __init__(self, root: Path, aside: Path) -> None:
        self._root = root
        self._aside = aside  # on the same filesystem as the files, so that a rename restores them
        self._journal: list[tuple[Path, Path | None]] = []
        self._new_folders: list[Path] = []

    def write(self, path: Path, data: bytes) -> None:
        """Replace or create a file in one step; an existing file keeps its mode."""
        before = self._remember(path)
        self._make_folders(path.parent)
        fresh = self._aside / f"new-{len(self._journal)}"
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if before:
            fresh.chmod(stat.S_IMODE(before.stat().st_mode))
        else:
            fresh.chmod(0o644)
        fresh.replace(path)

    def delete(self, path: Path) -> None:
        """Remove a file, and the folders that it leaves empty."""
        self._remember(path)
        path.unlink()
        with contextlib.suppress(OSError):
            for folder in path.parents:
                if folder == self._root:
                    break
                folder.rmdir()  # fails, and stops here, unless it is empty

    def rollback(self) -> None:
        """Put everything back."""
        for path, copy in reversed(self._journal):
            if copy is None:
                path.unlink(missing_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                copy.replace(path)
        for folder in reversed(self._new_folders):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _remember(self, path: Path) -> Path | None:
        copy = None
        if path.exists():
            copy = self._aside / f"old-{len(self._journal)}"
            shutil.copy2(path, copy)
        self._journal.append((path, copy))
        return copy

    def _make_folders(self, folder: Path) -> None:
        missing = [folder, *folder.parents]
        missing = missing[: next(i for i, p in enumerate(missing) if p.exists())]
        for each in reversed(missing):
            self._new_folders.append(each)
            each.mkdir()


@contextlib.contextmanager
def transaction(root: Path) -> Iterator[Transaction]:
    """Change files below ``root``; on any exception, Ctrl-C included, the tree is what it was before.

    Raises:
        RefusedError: another process is changing this tree, or it cannot be written.
    """
    with _lock(root):
        _drop_leftovers(root)
        try:
            aside = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        except OSError as error:
            msg = f"cannot write to {root}: {error.strerror}. Nothing was changed. Check its owner and mount."
            raise RefusedError(msg) from error
        changes = Transaction(root, aside)
        try:
            yield changes
        except BaseException:
            with _uninterrupted():
                changes.rollback()
                shutil.rmtree(aside, ignore_errors=True)
            raise
        with _uninterrupted():
            shutil.rmtree(aside, ignore_errors=True)


def _drop_leftovers(root: Path) -> None:
    # From a process that was killed outright. The lock is ours, so nobody uses them any more.
    for old in root.glob(_PREFIX + "*"):
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _lock(root: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    handle = os.open(root, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            msg = f"another turboprefill command is changing {root}. Wait until it has finished, then try again."
            raise RefusedError(msg) from error
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
