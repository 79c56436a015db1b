"""A full disk, and archives that are damaged: a message that names the file, and nothing half done."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import psutil
import pytest

from processtree import children
from toytree import FILES, make_archive, make_pins, make_tree
from turboprefill.tools.archives import extract_tree
from turboprefill.tools.build import build
from turboprefill.tools.download import fetch_sdist
from turboprefill.tools.errors import BuildError, DownloadError, ToolError
from turboprefill.tools.pins import Sdist
from turboprefill.tools.progress import Silent
from turboprefill.tools.sources import checkout

pytestmark = pytest.mark.timeout(120)


@contextlib.contextmanager
def files_up_to(n_bytes: int) -> Iterator[None]:
    """Writing more into one file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkout_that_does_not_fit_says_so_and_leaves_nothing(tmp_path) -> None:
    source = make_archive(tmp_path)
    dest = tmp_path / "work" / "llama.cpp"
    with files_up_to(50000), pytest.raises(ToolError, match="File too large") as error:
        checkout(dest, source=str(source), pins=make_pins())
    assert "Is it complete" not in str(error.value)  # it is
    assert list(dest.parent.iterdir()) == []


@pytest.mark.parametrize("packed", ["w:gz", "w:xz", "w:bz2", "w", "zip"])
def test_a_damaged_archive_is_refused_or_harmless(tmp_path, packed) -> None:
    whole = tmp_path / ("a.zip" if packed == "zip" else f"a.tar{packed[1:].replace(':', '.')}")
    source = make_tree(tmp_path / "source" / "llama.cpp")
    if packed == "zip":
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as bundle:
            for name in FILES:
                bundle.write(source / name, f"llama.cpp/{name}")
    else:
        with tarfile.open(whole, packed) as tar:
            tar.add(source, "llama.cpp")
    data = whole.read_bytes()
    rng = random.Random(0)
    refused = []
    for i in range(60):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 4])):
            damaged[rng.randrange(len(data))] = rng.randrange(256)
        path = tmp_path / f"{i}-{whole.name}"
        path.write_bytes(damaged[: rng.randrange(len(data))] if i % 3 == 0 else damaged)
        dest = tmp_path / "dest" / str(i)
        dest.mkdir(parents=True)
        try:
            extract_tree(path, dest, None, lambda *_: None)
        except ToolError as error:
            refused.append(path.name in str(error))
    assert all(refused)
    assert len(refused) >= 15


def test_a_download_that_does_not_fit_says_so_and_leaves_nothing(tmp_path, monkeypatch) -> None:
    class Reply:
        raw = SimpleNamespace(read=lambda n, decode_content: bytes(n))

        def raise_for_status(self) -> None:
            pass

    session = SimpleNamespace(get=lambda *_, **__: nullcontext(Reply()))
    monkeypatch.setenv("TURBOPREFILL_CACHE", str(tmp_path))
    monkeypatch.setattr("turboprefill.tools.download._session", lambda: nullcontext(session))
    monkeypatch.setattr("turboprefill.tools.download._find", lambda *_: "http://127.0.0.1/a.tar.gz")
    sdist = Sdist("a", "1", "a.tar.gz", "0" * 64, 1 << 30, "")
    with files_up_to(50000), pytest.raises(DownloadError, match="File too large"):
        fetch_sdist(sdist, Silent())
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_build_whose_log_does_not_fit_says_so(tmp_path, monkeypatch) -> None:
    tree = make_tree(tmp_path / "llama.cpp")
    cmake = tmp_path / "bin" / "cmake"
    cmake.parent.mkdir()
    cmake.write_text("#!/bin/sh\nexec yes a line\n")  # for ever, unless it is ended
    cmake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{cmake.parent}{os.pathsep}{os.environ['PATH']}")
    with files_up_to(100000), pytest.raises(BuildError, match=r"(?s)turboprefill-build\.log.*File too large"):
        build(tree)
    programs = [psutil.Process(pid).cmdline() for pid in children(os.getpid())]
    assert not any(program[-2:] == ["a", "line"] for program in programs)


@pytest.mark.parametrize(
    "arguments", [["make-model", "tiny", "{}/model.gguf"], ["checkout", "{}/tree", "--from", "{}"]]
)
def test_commands_on_a_full_disk_end_with_a_message_and_leave_nothing(tmp_path, arguments) -> None:
    source = make_archive(tmp_path)
    place = tmp_path / "place"
    place.mkdir()
    filled = [part.format(source if i == 3 else place) for i, part in enumerate(arguments)]
    process = subprocess.run(
        [sys.executable, "-m", "turboprefill", *filled],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    output = process.stdout + process.stderr
    assert process.returncode == 1, output
    assert "error:" in output
    assert f"cannot {'write' if arguments[0] == 'make-model' else 'unpack'}" in output
    assert "Traceback" not in output
    assert list(place.iterdir()) == []
