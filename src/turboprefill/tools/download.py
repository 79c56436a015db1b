"""Fetching one pinned archive from a Python package index, once."""

from __future__ import annotations

import hashlib
import os
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import IO
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError as TransferError
from urllib3.util import Retry

from turboprefill.paths import cache_dir
from turboprefill.tools.errors import DownloadError
from turboprefill.tools.pins import Sdist
from turboprefill.tools.progress import Progress

__all__ = ["fetch_sdist", "index_url"]

_TIMEOUT = (10, 60)  # seconds: to connect, and between two pieces of data
_OTHER_WAYS = (
    "Try again, set PIP_INDEX_URL to an index that you can reach, "
    "or get llama.cpp some other way and pass it with --from PATH."
)


def index_url() -> str:
    """Base address of the package index: pip's PIP_INDEX_URL where it is set, else pypi.org."""
    return (os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple").rstrip("/") + "/"


def fetch_sdist(sdist: Sdist, progress: Progress) -> Path:
    """Path of the archive in the cache, downloaded unless it is there already.

    Raises:
        DownloadError: index or file not reachable, cut short, or with another content than pinned. Nothing of it
            stays in the cache.
    """
    path = cache_dir() / "downloads" / sdist.filename
    try:
        if path.exists():
            if _sha256(path) == sdist.sha256:
                progress.note(f"using the cached {path}")
                return path
            progress.note(f"{path} does not match its pinned hash; downloading it again")
            path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{sdist.filename}-", dir=path.parent)
    except OSError as error:
        msg = f"cannot write to {path.parent}: {error.strerror}. Set TURBOPREFILL_CACHE to a writable folder."
        raise DownloadError(msg) from error
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file, _session() as session:
            _download(session, _find(session, sdist), sdist, file, progress)
        part.replace(path)
    except OSError as error:  # also of the part that was still to be written
        raise DownloadError(f"cannot write to {path.parent}: {error.strerror}. Nothing of it was kept.") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def _session() -> requests.Session:
    session = requests.Session()
    retries = HTTPAdapter(max_retries=Retry(2, backoff_factor=0.5, status_forcelist=(500, 502, 503, 504)))
    session.mount("https://", retries)
    session.mount("http://", retries)
    return session


def _find(session: requests.Session, sdist: Sdist) -> str:
    page = urljoin(index_url(), f"{sdist.project}/")
    accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
    try:
        reply = session.get(page, headers={"Accept": accept}, timeout=_TIMEOUT)
        reply.raise_for_status()
        if "json" in reply.headers.get("Content-Type", ""):
            links = [str(file["url"]) for file in reply.json()["files"]]
        else:
            links = _Links(reply.text).found
    except (requests.RequestException, KeyError, ValueError) as error:
        msg = f"cannot read the package index {_plain(page)}: {_reason(error)}. {_OTHER_WAYS}"
        raise DownloadError(msg) from error
    for link in links:
        if urlsplit(link).path.rsplit("/", 1)[-1] == sdist.filename:
            return urljoin(reply.url, link).partition("#")[0]
    msg = f"the package index {_plain(page)} has no {sdist.filename} ({len(links)} other files). {_OTHER_WAYS}"
    raise DownloadError(msg)


def _download(session: requests.Session, url: str, sdist: Sdist, file: IO[bytes], progress: Progress) -> None:
    digest = hashlib.sha256()
    n_bytes = 0
    try:
        with (
            session.get(url, stream=True, timeout=_TIMEOUT) as reply,
            progress.task(f"downloading {sdist.filename} from {urlsplit(url).hostname}", "bytes") as advance,
        ):
            reply.raise_for_status()
            # Some indexes label the archive with a content encoding; its raw bytes are what is pinned.
            while piece := reply.raw.read(1 << 18, decode_content=False):
                file.write(piece)
                digest.update(piece)
                n_bytes += len(piece)
                advance(n_bytes, sdist.size)
        file.flush()
        if digest.hexdigest() != sdist.sha256:
            raise DownloadError(_mismatch(url, sdist, n_bytes, digest.hexdigest()))
    except (requests.RequestException, TransferError, OSError) as error:
        msg = (
            f"downloading {_plain(url)} failed after {n_bytes} of {sdist.size} bytes: {_reason(error)}. "
            f"Nothing of it was kept. {_OTHER_WAYS}"
        )
        raise DownloadError(msg) from error


def _mismatch(url: str, sdist: Sdist, n_bytes: int, found: str) -> str:
    if n_bytes < sdist.size:
        what = f"ended after {n_bytes} of {sdist.size} bytes"
    else:
        what = f"has sha256 {found}, expected {sdist.sha256}"
    return f"{_plain(url)} {what}. Nothing of it was kept. {_OTHER_WAYS}"


class _Links(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for key, value in attrs if tag == "a" and key == "href" and value]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _plain(url: str) -> str:
    """The address without a user name and password, which an index address may carry."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _reason(error: Exception) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    return str(error) or type(error).__name__
