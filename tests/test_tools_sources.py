"""Checking out llama.cpp, from everywhere, without a network."""

from __future__ import annotations

import errno
import functools
import hashlib
import http.server
import io
import os
import stat
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from toytree import FILES, HOOKED, make_pins, make_tree, snapshot
from turboprefill.tools import gitrepo, sources
from turboprefill.tools.archives import extract_tree
from turboprefill.tools.download import fetch_sdist
from turboprefill.tools.errors import DownloadError, RefusedError, ToolError
from turboprefill.tools.pins import Pins, Sdist
from turboprefill.tools.progress import Silent
from turboprefill.tools.sources import checkout

NAME = "toy_llama-1.0.tar.gz"
TOP = "toy_llama-1.0"
UNREACHABLE = "http://127.0.0.1:9"


def tar_with(entries: dict[str, bytes], links: dict[str, str] | None = None, compression: str = "gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as tar:  # type: ignore[call-overload]
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return buffer.getvalue()


@functools.cache  # gzip notes the time, and all of a test must see one archive
def sdist_bytes() -> bytes:
    inside = {f"{TOP}/vendor/llama.cpp/{name}": data for name, data in FILES.items()}
    extra = {f"{TOP}/setup.py": b"", f"{TOP}/vendor/llama.cpp/.git": b"gitdir: ../../elsewhere\n"}
    return tar_with({**inside, **extra})


class Index:
    """A package index on this machine; counts requests, and can be told to misbehave."""

    def __init__(self) -> None:
        self.archive = sdist_bytes()
        self.promised_length: int | None = None
        self.as_json = False
        self.archive_path = f"/files/{NAME}"
        self.requests: list[str] = []
        self.failures = 0  # requests that are answered with "503 Service Unavailable", as long as there are some
        self.moved_to = ""  # where the page of the project is instead
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.requests.append(self.path)
                if index.failures:
                    index.failures -= 1
                    self.send_error(503)
                elif index.moved_to and self.path == "/simple/toy-llama/":
                    self.send_response(301)
                    self.send_header("Location", index.moved_to)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                elif self.path in ("/simple/toy-llama/", index.moved_to):
                    self.page()
                elif self.path == index.archive_path:
                    self.send("application/octet-stream", index.archive, index.promised_length)
                else:
                    self.send_error(404)

            def page(self) -> None:
                if index.as_json:
                    text = f'{{"files": [{{"url": "/files/{NAME}"}}]}}'
                    self.send("application/vnd.pypi.simple.v1+json", text.encode())
                else:
                    self.send(
                        "text/html", f'<a href="/files/x.whl">x</a><a href="../../files/{NAME}#sha256=1">'.encode()
                    )

            def send(self, kind: str, data: bytes, length: int | None = None) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data) if length is None else length))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/simple"


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    index = Index()
    thread = threading.Thread(target=index.server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", index.url)
    monkeypatch.setenv("TURBOPREFILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    yield index
    index.server.shutdown()
    index.server.server_close()
    thread.join()


@pytest.fixture
def pins() -> Pins:
    data = sdist_bytes()
    sdist = Sdist("toy-llama", "1.0", NAME, hashlib.sha256(data).hexdigest(), len(data), "vendor/llama.cpp")
    return make_pins(sdist, repository=UNREACHABLE)


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "work" / "llama.cpp"


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@localhost", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def repository(folder: Path) -> Path:
    make_tree(folder)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "upstream")
    return folder


class Notes(Silent):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, message: str) -> None:
        self.heard.append(message)


def assert_nothing_left(dest: Path) -> None:
    assert not dest.exists()
    assert not dest.parent.exists() or list(dest.parent.iterdir()) == []


@pytest.mark.parametrize("as_json", [False, True], ids=["HTML index", "JSON index"])
def test_the_archive_of_the_index_becomes_the_tree(index: Index, pins: Pins, dest: Path, as_json: bool) -> None:
    index.as_json = as_json
    done = checkout(dest, source="pypi", pins=pins)
    assert done.created
    assert done.base == pins.default
    assert {name: data for name, (data, _) in snapshot(dest).items()} == FILES


def test_the_tree_of_an_archive_is_a_clean_git_repository(index: Index, pins: Pins, dest: Path) -> None:
    checkout(dest, source="pypi", pins=pins)
    assert (dest / ".git").is_dir()
    assert git(dest, "status", "--porcelain", "--ignored") == ""
    assert pins.default.commit in git(dest, "log", "-1", "--format=%B")


def test_the_same_archive_always_becomes_the_same_commit(index: Index, pins: Pins, tmp_path: Path) -> None:
    roots = [checkout(tmp_path / name, source="pypi", pins=pins).root for name in ("a", "b")]
    assert len({git(root, "rev-parse", "HEAD") for root in roots}) == 1


def test_an_archive_is_downloaded_once(index: Index, pins: Pins, tmp_path: Path) -> None:
    for name in ("a", "b"):
        checkout(tmp_path / name, source="pypi", pins=pins)
    assert index.requests.count(f"/files/{NAME}") == 1


def test_a_damaged_archive_in_the_cache_is_replaced(index: Index, pins: Pins, dest: Path, tmp_path: Path) -> None:
    (tmp_path / "cache/downloads").mkdir(parents=True)
    (tmp_path / "cache/downloads" / NAME).write_bytes(b"damaged")
    checkout(dest, source="pypi", pins=pins)
    assert (tmp_path / "cache/downloads" / NAME).read_bytes() == index.archive


def test_a_server_that_is_busy_for_a_moment_is_asked_again(index: Index, pins: Pins, dest: Path) -> None:
    index.failures = 1
    assert checkout(dest, source="pypi", pins=pins).base == pins.default
    assert index.requests[:2] == ["/simple/toy-llama/"] * 2


def test_links_are_relative_to_where_the_page_has_moved(index: Index, pins: Pins, dest: Path) -> None:
    index.moved_to = "/index/pypi/+simple/toy-llama"  # "../../files" is in another place from here
    index.archive_path = f"/index/files/{NAME}"
    assert checkout(dest, source="pypi", pins=pins).base == pins.default


class TestBadDownloads:
    def check(self, pins: Pins, dest: Path, tmp_path: Path, message: str) -> None:
        with pytest.raises(DownloadError, match=message) as error:
            checkout(dest, source="pypi", pins=pins)
        assert "--from PATH" in str(error.value)
        assert error.value.exit_code == 4
        assert_nothing_left(dest)
        assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []

    def test_another_content_leaves_nothing(self, index: Index, pins: Pins, dest: Path, tmp_path: Path) -> None:
        index.archive += b"x"
        self.check(pins, dest, tmp_path, r"has sha256 \w+, expected \w+")

    def test_a_short_file_leaves_nothing(self, index: Index, pins: Pins, dest: Path, tmp_path: Path) -> None:
        index.archive = index.archive[:100]
        self.check(pins, dest, tmp_path, r"ended after 100 of \d+ bytes")

    def test_a_lost_connection_leaves_nothing(self, index: Index, pins: Pins, dest: Path, tmp_path: Path) -> None:
        index.archive, index.promised_length = index.archive[:100], len(index.archive)
        self.check(pins, dest, tmp_path, "after 100 of")

    def test_an_index_without_the_file_is_named(self, index: Index, pins: Pins, dest: Path, tmp_path: Path) -> None:
        sdist = replace(pins.default.sdist, filename="other.tar.gz")  # type: ignore[type-var]
        base = replace(pins.default, sdist=sdist)
        self.check(Pins(pins.repository, base, (base,)), dest, tmp_path, r"127\.0\.0\.1.* has no other\.tar\.gz")

    def test_an_index_without_the_project_is_named(self, index: Index, pins: Pins, dest: Path, tmp_path: Path) -> None:
        sdist = replace(pins.default.sdist, project="nothing")  # type: ignore[type-var]
        base = replace(pins.default, sdist=sdist)
        self.check(Pins(pins.repository, base, (base,)), dest, tmp_path, "HTTP status 404")

    def test_an_unreachable_index_is_named_without_its_password(
        self, index: Index, pins: Pins, dest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
        with pytest.raises(DownloadError, match=r"index http://127\.0\.0\.1:9/simple/toy-llama/: no connection"):
            fetch_sdist(pins.default.sdist, Silent())  # type: ignore[arg-type]


def test_ctrl_c_while_downloading_leaves_nothing(
    index: Index, pins: Pins, dest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("turboprefill.tools.download.hashlib.sha256", lambda: type("", (), {"update": interrupt})())
    with pytest.raises(KeyboardInterrupt):
        checkout(dest, source="pypi", pins=pins)
    assert_nothing_left(dest)
    assert list((tmp_path / "cache/downloads").iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk full")], ids=["Ctrl-C", "disk full"])
def test_a_failure_at_the_last_step_leaves_no_half_tree(
    index: Index, pins: Pins, dest: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_arguments: object) -> None:
        raise error

    monkeypatch.setattr(gitrepo, "record_tree", fail)
    with pytest.raises(type(error)):
        checkout(dest, source="pypi", pins=pins)
    assert_nothing_left(dest)


def test_auto_falls_through_to_the_index_and_says_so(index: Index, pins: Pins, dest: Path) -> None:
    notes = Notes()
    done = checkout(dest, pins=pins, progress=notes)
    assert done.source == NAME
    assert any(UNREACHABLE in note and "package index instead" in note for note in notes.heard)


def test_what_git_left_is_not_in_the_tree_that_the_index_delivers(
    index: Index, pins: Pins, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(url: str, wanted: str, folder: Path, progress: Silent) -> str:
        (folder / ".git").mkdir()
        (folder / "half.txt").write_text("half")
        (folder / "link").symlink_to(folder.parent)
        raise DownloadError("the connection was lost")

    monkeypatch.setattr(gitrepo, "fetch_commit", half)
    checkout(dest, pins=pins)
    assert {name: data for name, (data, _) in snapshot(dest).items()} == FILES
    assert not (dest / "link").is_symlink()
    assert git(dest, "status", "--porcelain", "--ignored") == ""


def test_when_no_source_delivers_each_reason_is_given(
    index: Index, pins: Pins, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", UNREACHABLE)
    with pytest.raises(DownloadError, match=r"git: .*cannot be reached(.|\n)*pypi: .*no connection"):
        checkout(dest, pins=pins)
    assert_nothing_left(dest)


def test_git_alone_does_not_fall_through(index: Index, pins: Pins, dest: Path) -> None:
    with pytest.raises(DownloadError, match="cannot be reached"):
        checkout(dest, source="git", pins=pins)
    assert index.requests == []


def test_without_a_git_program_the_tree_is_there_all_the_same(
    index: Index, pins: Pins, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gitrepo, "git_available", lambda: False)
    notes = Notes()
    checkout(dest, pins=pins, progress=notes)
    assert (dest / "include/llama.h").exists()
    assert any("not a git repository" in note for note in notes.heard)


class TestGit:
    @pytest.fixture
    def upstream(self, tmp_path: Path) -> Path:
        upstream = repository(tmp_path / "upstream")
        git(upstream, "tag", "b1")
        (upstream / "later.txt").touch()
        git(upstream, "add", "-A")
        git(upstream, "commit", "-qm", "later")
        return upstream

    def pins_of(self, upstream: Path) -> Pins:
        base = replace(make_pins().default, commit=git(upstream, "rev-parse", "b1"))
        return Pins(upstream.as_uri(), base, (base,))

    def test_fetches_the_pinned_commit_without_history(self, upstream: Path, dest: Path) -> None:
        git(upstream, "config", "uploadpack.allowAnySHA1InWant", "true")
        pins = self.pins_of(upstream)
        done = checkout(dest, source="git", pins=pins)
        assert (git(dest, "rev-parse", "HEAD"), done.base) == (pins.default.commit, pins.default)
        assert not (dest / "later.txt").exists()

    def test_fetches_a_tag_that_is_not_pinned(self, upstream: Path, dest: Path) -> None:
        git(upstream, "tag", "b2")
        checkout(dest, source="git", commit="b2", pins=self.pins_of(upstream))
        assert (dest / "later.txt").exists()

    def test_names_a_commit_that_the_server_does_not_have(self, upstream: Path, dest: Path) -> None:
        with pytest.raises(DownloadError, match=f"could not fetch {'2' * 40}"):
            checkout(dest, source="git", commit="2" * 40, pins=self.pins_of(upstream))
        assert_nothing_left(dest)

    def test_refuses_an_abbreviated_commit_that_is_not_pinned(self, upstream: Path, dest: Path) -> None:
        with pytest.raises(DownloadError, match="expected all 40 digits"):
            checkout(dest, source="git", commit="abcdef0", pins=self.pins_of(upstream))

    def test_refuses_a_tree_that_is_not_what_is_pinned(self, upstream: Path, dest: Path) -> None:
        (upstream / HOOKED[0]).write_bytes(b"other")
        git(upstream, "commit", "-qam", "other")
        git(upstream, "tag", "-f", "b1")
        git(upstream, "config", "uploadpack.allowAnySHA1InWant", "true")
        with pytest.raises(ToolError, match=r"src/CMakeLists\.txt not as pinned"):
            checkout(dest, source="git", pins=self.pins_of(upstream))
        assert_nothing_left(dest)

    def test_a_local_repository_gives_its_head(self, upstream: Path, dest: Path) -> None:
        checkout(dest, source=str(upstream), pins=self.pins_of(upstream))
        assert git(dest, "rev-parse", "HEAD") == git(upstream, "rev-parse", "HEAD")

    def test_a_local_repository_gives_a_commit_by_name(self, upstream: Path, dest: Path) -> None:
        done = checkout(dest, source=str(upstream), commit="b1", pins=self.pins_of(upstream))
        assert done.base is not None
        assert not (dest / "later.txt").exists()

    def test_a_local_repository_without_the_commit_is_named(self, upstream: Path, dest: Path) -> None:
        with pytest.raises(ToolError, match="cannot check out nothing from the repository"):
            checkout(dest, source=str(upstream), commit="nothing", pins=self.pins_of(upstream))
        assert_nothing_left(dest)


def test_variables_of_a_git_hook_are_forgotten() -> None:
    environment = {"GIT_DIR": "/x", "GIT_INDEX_FILE": "/x/index", "GIT_SSL_CAINFO": "/ca"}
    gitrepo.forget_outer_repository(environment)
    assert environment == {"GIT_SSL_CAINFO": "/ca"}


class TestExistingDestination:
    @pytest.mark.parametrize("make_folder", [False, True], ids=["absent", "empty folder"])
    def test_absent_or_empty_is_filled(self, index: Index, pins: Pins, dest: Path, make_folder: bool) -> None:
        if make_folder:
            dest.mkdir(parents=True)
        assert checkout(dest, source="pypi", pins=pins).created

    def test_the_same_checkout_is_left_alone(self, index: Index, pins: Pins, dest: Path) -> None:
        checkout(dest, source="pypi", pins=pins)
        (dest / "mine.txt").touch()
        before = snapshot(dest)
        assert not checkout(dest, pins=pins).created
        assert snapshot(dest) == before

    def test_the_same_checkout_with_local_edits_is_left_alone(self, index: Index, pins: Pins, dest: Path) -> None:
        checkout(dest, source="pypi", pins=pins)
        (dest / HOOKED[1]).write_bytes(b"mine")
        assert not checkout(dest, pins=pins).created

    def test_something_else_is_refused_and_kept(self, pins: Pins, dest: Path) -> None:
        dest.mkdir(parents=True)
        (dest / "diary.txt").write_text("dear diary")
        with pytest.raises(RefusedError, match=r"not a llama\.cpp tree; nothing was changed"):
            checkout(dest, pins=pins)
        assert snapshot(dest).keys() == {"diary.txt"}

    def test_a_file_is_refused(self, pins: Pins, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(RefusedError):
            checkout(tmp_path / "file", pins=pins)

    def test_another_llama_cpp_is_refused(self, pins: Pins, dest: Path) -> None:
        make_tree(dest, {**FILES, HOOKED[0]: b"other", HOOKED[1]: b"other", HOOKED[2]: b"other"})
        with pytest.raises(RefusedError, match=r"differs from every known version, not b1"):
            checkout(dest, pins=pins)

    @pytest.mark.parametrize("kind", ["repository", "tree", "archive"])
    def test_the_same_local_source_is_left_alone(self, pins: Pins, dest: Path, tmp_path: Path, kind: str) -> None:
        source = tmp_path / "source"
        if kind == "archive":
            source = tmp_path / "source.tar.gz"
            source.write_bytes(sdist_bytes())
        elif kind == "tree":
            make_tree(source)
        else:
            repository(source)
        assert checkout(dest, source=str(source), pins=pins).created
        assert not checkout(dest, source=str(source), pins=pins).created


class TestReplacing:
    """What the package build asks for when its pin has moved on."""

    def older(self, pins: Pins, dest: Path) -> Pins:
        checkout(dest, source="pypi", pins=pins)
        base = replace(pins.default, name="b2", commit="2" * 40, files=dict.fromkeys(HOOKED, "0" * 64))
        return Pins(pins.repository, base, (base, *pins.bases))

    def test_a_checkout_of_ours_gives_way(self, index: Index, pins: Pins, dest: Path, tmp_path: Path) -> None:
        newer = self.older(pins, dest)
        source = make_tree(tmp_path / "source", {**FILES, "new.txt": b""})
        assert checkout(dest, source=str(source), replace=True, pins=newer).created
        assert (dest / "new.txt").exists()
        assert list(dest.parent.iterdir()) == [dest]

    def test_it_stays_if_the_new_one_cannot_be_had(self, index: Index, pins: Pins, dest: Path) -> None:
        newer = self.older(pins, dest)
        before = snapshot(dest)
        with pytest.raises(ToolError, match="not as pinned"):
            checkout(dest, source="pypi", replace=True, pins=newer)
        assert snapshot(dest) == before
        assert list(dest.parent.iterdir()) == [dest]

    def test_it_stays_unless_that_is_asked_for(self, index: Index, pins: Pins, dest: Path) -> None:
        newer = self.older(pins, dest)
        before = snapshot(dest)
        with pytest.raises(RefusedError, match=f"{dest} holds b1 .*, not b2"):
            checkout(dest, source="pypi", pins=newer)
        assert snapshot(dest) == before

    @pytest.mark.parametrize("at", ["old", "new"])
    def test_it_comes_back_if_the_new_one_cannot_take_its_place(
        self, index: Index, pins: Pins, dest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
    ) -> None:
        newer = self.older(pins, dest)
        before = snapshot(dest)
        source = make_tree(tmp_path / "source", {**FILES, "new.txt": b""})

        def refuse(*_arguments: object) -> None:
            raise OSError(errno.EBUSY, "Device or resource busy")

        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename" if at == "old" else "replace", refuse)
            with pytest.raises(ToolError, match=f"cannot move the finished tree to {dest}: Device or resource busy"):
                checkout(dest, source=str(source), replace=True, pins=newer)
        assert snapshot(dest) == before
        assert list(dest.parent.iterdir()) == [dest]

    def test_a_repository_of_somebody_else_stays(self, pins: Pins, dest: Path) -> None:
        repository(dest)
        (dest / HOOKED[0]).write_bytes(b"mine")
        with pytest.raises(RefusedError):
            checkout(dest, commit="2" * 40, replace=True, pins=pins)
        assert (dest / HOOKED[0]).read_bytes() == b"mine"


class TestLocalArchives:
    @pytest.mark.parametrize("suffix", ["tar.gz", "tar.xz", "tar"])
    @pytest.mark.parametrize("prefix", ["", "llama.cpp-b1/", f"{TOP}/vendor/llama.cpp/"])
    def test_the_tree_is_found_wherever_it_is(
        self, pins: Pins, dest: Path, tmp_path: Path, prefix: str, suffix: str
    ) -> None:
        entries = {f"{prefix}{name}": data for name, data in FILES.items()}
        archive = tmp_path / f"a.{suffix}"
        archive.write_bytes(tar_with(entries, compression=suffix.partition(".")[2]))
        assert checkout(dest, source=str(archive), pins=pins).base == pins.default

    def test_a_zip_works_too(self, pins: Pins, dest: Path, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as bundle:
            for name, data in FILES.items():
                bundle.writestr(f"llama.cpp-b1/{name}", data)
        assert checkout(dest, source=str(tmp_path / "a.zip"), pins=pins).base == pins.default

    @pytest.mark.parametrize(
        ("entries", "links", "message"),
        [
            ({"../evil.txt": b""}, {}, "leads out of the destination"),
            ({"/tmp/evil.txt": b""}, {}, "leads out of the destination"),  # noqa: S108
            ({"src/../../evil.txt": b""}, {}, "leads out of the destination"),
            ({"src\\evil.txt": b""}, {}, "leads out of the destination"),  # a separator on some systems
            ({}, {"src/evil": "../../.."}, "link src/evil leads out of the tree"),
            ({}, {"src/evil": "/etc/passwd"}, "link src/evil leads out of the tree"),
            ({}, {"up": "src/..", "src/evil": "../up/.."}, "leads out of the tree"),
            ({}, {"src/evil": "../up/..", "up": "src/.."}, "leads out of the tree"),  # tarfile's filter lets it pass
            ({}, {"src/evil": "../../../../..", "src/evil/evil.txt": "x"}, "link src/evil/evil.txt leads out"),
            ({"src/evil/x": b""}, {"src/evil": "/tmp"}, "cannot unpack"),  # noqa: S108
        ],
    )
    def test_an_archive_that_leads_out_is_refused(
        self, pins: Pins, dest: Path, tmp_path: Path, entries: dict[str, bytes], links: dict[str, str], message: str
    ) -> None:
        archive = tmp_path / "evil.tar.gz"
        archive.write_bytes(tar_with({**FILES, **entries}, links))
        with pytest.raises(ToolError, match=message):
            checkout(dest, source=str(archive), pins=pins)
        assert_nothing_left(dest)
        assert not list(tmp_path.rglob("evil.txt"))

    def test_a_device_in_an_archive_is_refused(self, pins: Pins, dest: Path, tmp_path: Path) -> None:
        with tarfile.open(tmp_path / "evil.tar", "w") as tar:
            for name, data in FILES.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            info = tarfile.TarInfo("src/device")
            info.type = tarfile.CHRTYPE
            tar.addfile(info)
        with pytest.raises(ToolError, match="neither a file"):
            checkout(dest, source=str(tmp_path / "evil.tar"), pins=pins)

    @pytest.mark.parametrize("kind", ["tar", "zip"])
    def test_programs_stay_programs_and_nothing_else_is_kept_of_a_mode(
        self, pins: Pins, dest: Path, tmp_path: Path, kind: str
    ) -> None:
        modes = {"run.sh": 0o4775, "group.sh": 0o070, "data.bin": 0o666}
        archive = tmp_path / f"a.{kind}"
        if kind == "zip":
            with zipfile.ZipFile(archive, "w") as bundle:
                for name, mode in {**dict.fromkeys(FILES, 0o644), **modes}.items():
                    entry = zipfile.ZipInfo(name)
                    entry.external_attr = (stat.S_IFREG | mode) << 16
                    bundle.writestr(entry, FILES.get(name, b""))
        else:
            with tarfile.open(archive, "w") as tar:
                for name, mode in {**dict.fromkeys(FILES, 0o644), **modes}.items():
                    info = tarfile.TarInfo(name)
                    info.size, info.mode = len(FILES.get(name, b"")), mode
                    tar.addfile(info, io.BytesIO(FILES.get(name, b"")))
        checkout(dest, source=str(archive), pins=pins)
        found = {name: stat.S_IMODE((dest / name).stat().st_mode) for name in modes}
        assert found == {"run.sh": 0o755, "group.sh": 0o644, "data.bin": 0o644}

    @pytest.mark.parametrize(("target", "leads_out"), [("../include/llama.h", False), ("../../../etc/passwd", True)])
    def test_links_of_a_zip_are_links(
        self, pins: Pins, dest: Path, tmp_path: Path, target: str, leads_out: bool
    ) -> None:
        archive = tmp_path / "a.zip"
        with zipfile.ZipFile(archive, "w") as bundle:
            for name, data in FILES.items():
                bundle.writestr(name, data)
            link = zipfile.ZipInfo("src/link.h")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            bundle.writestr(link, target)
        if leads_out:
            with pytest.raises(ToolError, match=r"link src/link\.h leads out of the tree"):
                checkout(dest, source=str(archive), pins=pins)
            assert_nothing_left(dest)
        else:
            checkout(dest, source=str(archive), pins=pins)
            assert (dest / "src/link.h").readlink() == Path(target)

    def test_an_archive_with_nothing_where_the_tree_should_be_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "a.tar.gz").write_bytes(sdist_bytes())
        (tmp_path / "dest").mkdir()
        with pytest.raises(ToolError, match=r"a\.tar\.gz has no files below 'vendor/other'"):
            extract_tree(tmp_path / "a.tar.gz", tmp_path / "dest", "vendor/other", lambda *_: None)

    def test_links_inside_the_tree_are_kept(self, pins: Pins, dest: Path, tmp_path: Path) -> None:
        (tmp_path / "a.tar.gz").write_bytes(tar_with(FILES, {"src/link.h": "../include/llama.h"}))
        checkout(dest, source=str(tmp_path / "a.tar.gz"), pins=pins)
        assert (dest / "src/link.h").read_bytes() == FILES["include/llama.h"]

    @pytest.mark.parametrize("data", [b"not an archive", sdist_bytes()[:200], tar_with({"a/b.txt": b""})])
    def test_an_archive_without_llama_cpp_is_named(self, pins: Pins, dest: Path, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "a.tar.gz").write_bytes(data)
        with pytest.raises(ToolError, match=r"a\.tar\.gz"):
            checkout(dest, source=str(tmp_path / "a.tar.gz"), pins=pins)
        assert_nothing_left(dest)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077], ids=oct)
def test_a_checkout_can_be_read_by_those_whom_the_mask_allows(
    pins: Pins, dest: Path, tmp_path: Path, mask: int
) -> None:
    source = tmp_path / "source.tar.gz"
    source.write_bytes(sdist_bytes())
    before = os.umask(mask)
    try:
        checkout(dest, source=str(source), pins=pins)
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert dest.stat().st_mode & 0o777 == 0o777 & ~mask


def test_a_local_tree_is_copied_without_its_builds(pins: Pins, dest: Path, tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source")
    (source / "build").mkdir()
    (source / "build/CMakeCache.txt").touch()
    checkout(dest, source=str(source), pins=pins)
    assert {name: data for name, (data, _) in snapshot(dest).items()} == FILES


@pytest.mark.parametrize("source", ["/nowhere/llama.cpp", "gti"])
def test_a_source_that_does_not_exist_is_named(pins: Pins, dest: Path, source: str) -> None:
    with pytest.raises(ToolError, match=f"--from {source}: no such file or folder; expected auto, git, pypi"):
        checkout(dest, source=source, pins=pins)


def test_a_local_file_that_is_no_archive_is_named(pins: Pins, dest: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ToolError, match="not an archive"):
        checkout(dest, source=str(tmp_path / "notes.txt"), pins=pins)


@pytest.mark.parametrize("name", ["b1", "1.0", "1" * 40, "1" * 9])
def test_a_base_has_many_names(pins: Pins, name: str) -> None:
    assert pins.find(name) == pins.default


@pytest.mark.parametrize("name", ["b2", "2" * 40, "1" * 6, ""])
def test_other_names_are_not_a_base(pins: Pins, name: str) -> None:
    assert pins.find(name) is None


def test_the_modules_own_pins_have_full_commits_and_hashes() -> None:
    for base in sources.load_pins().bases:
        assert len(base.commit) == 40
        assert base.sdist is not None
        assert all(len(digest) == 64 for digest in [base.sdist.sha256, *base.files.values()])
