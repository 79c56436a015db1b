"""The git operations that checking out needs."""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turboprefill.tools.errors import DownloadError, ToolError
from turboprefill.tools.progress import Advance, Progress

if TYPE_CHECKING:
    from git import Repo

__all__ = ["clone_local", "fetch_commit", "forget_outer_repository", "git_available", "made_here", "record_tree"]

_AUTHOR = "TurboPrefill <turboprefill@localhost>"
_DATE = "2000-01-01T00:00:00+0000"  # constant, so that the same tree always becomes the same commit
_OURS = ("turboprefill", "checkout")  # set in the configuration of every repository made here
# Give up on a stalled connection, and never wait for a password to be typed.
_IMPATIENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "true",
    "GIT_HTTP_LOW_SPEED_LIMIT": "1000",  # bytes per second
    "GIT_HTTP_LOW_SPEED_TIME": "15",  # seconds
}


def forget_outer_repository(environment: MutableMapping[str, str] = os.environ) -> None:
    """Remove the variables that git sets for hooks: they would point our git at the caller's repository."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR"):
        environment.pop(name, None)


def git_available() -> bool:
    """Whether there is a git program."""
    try:
        import git
    except ImportError:
        return False
    return bool(git)


def fetch_commit(url: str, wanted: str, dest: Path, progress: Progress) -> str:
    """Fetch one commit without history into the empty folder ``dest`` and check it out.

    Args:
        url: of the repository.
        wanted: a full commit id, or a tag.
        dest: an empty folder. Throw it away if this raises.
        progress: told how far the transfer is.

    Returns:
        the full id of the commit.

    Raises:
        DownloadError: the server cannot be reached within seconds, has no such commit, or the transfer failed.
    """
    _probe(url)
    with _new_repository(dest) as repo, progress.task(f"fetching {wanted[:12]} from {url}") as advance:
        from git.exc import GitCommandError

        is_commit = len(wanted) == 40
        try:
            repo.git.update_environment(**_IMPATIENT)
            origin = repo.create_remote("origin", url)
            origin.fetch(wanted if is_commit else f"refs/tags/{wanted}", depth=1, progress=_percent(advance))
            repo.git.checkout("--detach", "FETCH_HEAD")
        except GitCommandError as error:
            reason = str(error.stderr).strip().strip("'").splitlines()
            msg = f"git could not fetch {wanted} from {url}: {reason[-1].strip() if reason else error.status}"
            raise DownloadError(msg) from error
        commit = repo.head.commit.hexsha
    if is_commit and commit != wanted.lower():
        raise DownloadError(f"{url} gave commit {commit}, expected {wanted}")
    return commit


def clone_local(source: Path, wanted: str | None, dest: Path, progress: Progress) -> str:
    """Clone a repository on this machine and check out a commit of it.

    Args:
        source: a repository; its uncommitted changes do not come along.
        wanted: anything that names a commit in it; None: its HEAD.
        dest: an empty folder. Throw it away if this raises.
        progress: told what is going on.

    Returns:
        the full id of the commit.

    Raises:
        ToolError: git fails, or there is no such commit.
    """
    from git import Repo
    from git.exc import GitError

    try:
        with progress.task(f"cloning {source}"), Repo(source) as origin:
            commit = str(origin.git.rev_parse("--verify", f"{wanted or 'HEAD'}^{{commit}}"))
            with Repo.clone_from(str(source), dest, no_checkout=True) as repo:
                _keep_bytes(repo)
                repo.git.checkout("--detach", commit)
    except (GitError, OSError) as error:
        msg = f"cannot check out {wanted or 'HEAD'} from the repository {source}: {_short(error)}"
        raise ToolError(msg) from error
    return commit


def record_tree(tree: Path, message: str, progress: Progress) -> str:
    """Make a tree without a repository the only commit of a fresh one.

    Returns:
        the id of the commit, which depends only on the content and the message.

    Raises:
        ToolError: git fails.
    """
    from git.exc import GitError

    try:
        with progress.task("recording the tree in a git repository"), _new_repository(tree) as repo:
            repo.git.add("--all", "--force")  # upstream's .gitignore hides files that the archive has
            repo.git.update_environment(GIT_AUTHOR_DATE=_DATE, GIT_COMMITTER_DATE=_DATE)
            repo.git.commit("--quiet", "--no-verify", "--no-gpg-sign", "--allow-empty", "-m", message)
            return repo.head.commit.hexsha
    except GitError as error:
        raise ToolError(f"git could not record {tree}: {_short(error)}") from error


@contextmanager
def _new_repository(folder: Path) -> Iterator[Repo]:
    from git import Repo

    with Repo.init(folder, initial_branch="turboprefill-base") as repo:
        _keep_bytes(repo)
        name, _, mail = _AUTHOR.rstrip(">").partition(" <")
        who = {
            f"GIT_{role}_{key}": value
            for role in ("AUTHOR", "COMMITTER")
            for key, value in (("NAME", name), ("EMAIL", mail))
        }
        repo.git.update_environment(**who)
        yield repo


def made_here(folder: Path) -> bool:
    """Whether this module made the repository of ``folder``, so that nobody else's work is in its history."""
    from git import Repo
    from git.exc import GitError

    try:
        with Repo(folder) as repo, repo.config_reader("repository") as config:
            return bool(config.get_value(*_OURS, default=False))
    except (GitError, OSError):
        return False


def _keep_bytes(repo: Repo) -> None:
    # The user's own settings could convert line ends, and run hooks.
    with repo.config_writer() as config:
        config.set_value("core", "autocrlf", "false")
        config.set_value("core", "hooksPath", os.devnull)
        config.set_value(_OURS[0], _OURS[1], "true")


def _probe(url: str) -> None:
    """Fail within seconds where git itself might wait for minutes."""
    if not url.startswith(("http://", "https://")):
        return
    import requests  # here: most commands need no network, and it takes long to load

    try:
        with requests.get(f"{url}/info/refs?service=git-upload-pack", timeout=(5, 10), stream=True) as reply:
            status = reply.status_code
    except requests.RequestException as error:
        raise DownloadError(f"{url} cannot be reached ({type(error).__name__})") from error
    if status >= 400:
        raise DownloadError(f"{url} answers with HTTP status {status}")


def _percent(advance: Advance) -> Any:
    def update(_operation: int, done: float | str, total: float | str | None = None, _message: str = "") -> None:
        advance(float(done or 0), float(total) if total else None)

    return update


def _short(error: Exception) -> str:
    lines = str(getattr(error, "stderr", "") or error).strip().strip("'").splitlines()
    return lines[-1].strip() if lines else type(error).__name__
