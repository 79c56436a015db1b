"""A full disk, a taken port, workers that die, signals in the middle of a command: nothing half done, nobody left."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

import turboprefill as tp
from toytree import FILES, make_pins, make_tree
from turboprefill.archives import extract_tree
from turboprefill.build import build
from turboprefill.demo.workers import RpcWorkers
from turboprefill.download import fetch_sdist
from turboprefill.pins import Sdist
from turboprefill.progress import Silent
from turboprefill.sources import checkout
from turboprefill.tool_errors import BuildError, DownloadError, ToolError

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

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


def command(*arguments: object, **environment: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "turboprefill", *map(str, arguments)],
        env={**os.environ, **{key: str(value) for key, value in environment.items()}},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(condition: Callable[[], object], what: str, seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def children(pid: int) -> set[int]:
    """All that descend from a process and still run."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(stat.parent.name)] = int(parent)
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def running(pids: set[int]) -> set[int]:
    def state(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return "gone"

    return {pid for pid in pids if state(pid) not in ("Z", "gone")}


#
# a full disk
#


def archive(folder: Path) -> Path:
    path = folder / "llama.cpp.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(make_tree(folder / "source", {**FILES, "big.txt": b"0123456789" * 10000}), "llama.cpp")
    return path


def test_a_checkout_that_does_not_fit_says_so_and_leaves_nothing(tmp_path) -> None:
    source = archive(tmp_path)
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
    monkeypatch.setattr("turboprefill.download._session", lambda: nullcontext(session))
    monkeypatch.setattr("turboprefill.download._find", lambda *_: "http://127.0.0.1/a.tar.gz")
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
    assert not [pid for pid in children(os.getpid()) if b"a\0line" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize(
    "arguments", [["make-model", "tiny", "{}/model.gguf"], ["checkout", "{}/tree", "--from", "{}"]]
)
def test_commands_on_a_full_disk_end_with_a_message_and_leave_nothing(tmp_path, arguments) -> None:
    source = archive(tmp_path)
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


#
# signals
#


@pytest.fixture
def slow(tmp_path, monkeypatch) -> Callable[[str], Path]:
    """`slow("git")`: a program of that name that is found first, notes that it runs and sleeps."""

    def make(name: str) -> Path:
        folder, note = tmp_path / "slow", tmp_path / "started"
        folder.mkdir()
        (folder / name).write_text(
            f'#!/bin/sh\nsleep 60 &\necho $$ $! > "{note}.part"\nmv "{note}.part" "{note}"\nwait\n'
        )
        (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return note

    return make


@pytest.mark.parametrize("number", SIGNALS)
def test_a_build_that_is_ended_takes_the_compilers_along(tmp_path, slow, number) -> None:
    tree, note = make_tree(tmp_path / "llama.cpp"), slow("cmake")
    with command("build", tree, "--cpu") as process:
        until(note.exists, "cmake was not started")
        process.send_signal(number)
        output, _ = process.communicate(timeout=40)
    assert process.returncode == 130, output
    assert "interrupted" in output
    until(lambda: not running(set(map(int, note.read_text().split()))), "cmake or its child still runs", 10)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_checkout_that_is_ended_leaves_neither_files_nor_git(tmp_path, slow, number) -> None:
    source, note = archive(tmp_path), slow("git")
    dest = tmp_path / "work" / "llama.cpp"
    with command("checkout", dest, "--from", source, GIT_PYTHON_REFRESH="quiet") as process:
        until(note.exists, "git was not started")
        process.send_signal(number)
        output, _ = process.communicate(timeout=40)
    assert process.returncode == 130, output
    assert not dest.parent.exists() or list(dest.parent.iterdir()) == []
    until(lambda: not running(set(map(int, note.read_text().split()))), "git or its child still runs", 10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_demo_that_is_ended_leaves_no_process(tmp_path, model_file, number) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("one two three " * 4000)
    arguments = ["--workers", "2", "--model", model_file("tiny"), "--prompt-file", prompt, "--repeats", "1000"]
    with command("demo", *arguments, "--no-picture") as process:
        until(lambda: len(children(process.pid)) >= 3, "the workers were not started")
        time.sleep(0.5)  # somewhere in the middle
        family = children(process.pid)
        process.send_signal(number)
        output, _ = process.communicate(timeout=40)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130), output
    until(lambda: not running(family), "a process of the demo still runs", 15)


#
# RPC workers
#


def test_workers_listen_on_this_machine_alone() -> None:
    with RpcWorkers(1) as workers:
        port = int(workers.endpoints[0].rpartition(":")[2])
        lines = [
            line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()
        ]
        listening = [line[1] for line in lines if line[3] == "0A" and line[1].endswith(f":{port:04X}")]
    assert listening == [f"0100007F:{port:04X}"]


def test_a_worker_that_died_between_two_models_is_named(model_file) -> None:
    with RpcWorkers(1) as workers:
        endpoint = workers.endpoints[0]
        tp.Model(model_file("tiny"), rpc_servers=[endpoint]).close()
    with pytest.raises(tp.EndpointError, match=f"{endpoint}, used before by this process, is gone") as error:
        tp.Model(model_file("tiny"), rpc_servers=[endpoint])
    assert error.value.endpoint == endpoint


def test_a_worker_that_dies_during_a_prompt_ends_the_process_and_says_why(model_file) -> None:
    """What llama.cpp does, documented in docs/robustness.md: whoever needs to survive it uses a process of its own."""
    script = f"""
import os, signal
import turboprefill as tp
from turboprefill.demo.workers import RpcWorkers
workers = RpcWorkers(2)
model = tp.Model({str(model_file("tiny"))!r}, rpc_servers=workers.endpoints)
context = model.context(n_ctx=512, n_ubatch=16, n_threads=1)
context.decode_batch([1] * 100)
context.synchronize()
os.kill(workers.pids[1], signal.SIGKILL)
context.decode_batch([1] * 100)
context.synchronize()
print("survived")
"""
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGABRT
    assert "survived" not in done.stdout
    assert "Remote RPC server crashed or returned malformed response" in done.stderr


def test_a_port_that_is_taken_before_the_worker_has_it_costs_another_attempt(tmp_path, monkeypatch) -> None:
    real = socket.socket.getsockname
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [taken.getsockname()]

        class Socket(socket.socket):
            def getsockname(self):
                return ports.pop() if ports else real(self)

        monkeypatch.setattr("turboprefill.demo.workers.socket.socket", Socket)
        with RpcWorkers(1) as workers:
            monkeypatch.undo()
            assert workers.endpoints[0] != f"127.0.0.1:{taken.getsockname()[1]}"
            workers.check()
