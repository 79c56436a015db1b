"""A taken port, workers that die, signals in the middle of a command: nothing half done, nobody left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import turboprefill as tp
from processtree import children, running
from toytree import make_archive, make_tree
from turboprefill.demo.workers import RpcWorkers
from waiting import until

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

pytestmark = pytest.mark.timeout(120)


def command(*arguments: object, **environment: object) -> subprocess.Popen[str]:
    """Start the command line; its output and its errors go the same way."""
    return subprocess.Popen(
        [sys.executable, "-m", "turboprefill", *map(str, arguments)],
        env={**os.environ, **{key: str(value) for key, value in environment.items()}},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


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
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "interrupted" in output
    until(lambda: not running(set(map(int, note.read_text().split()))), "cmake or its child still runs")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_checkout_that_is_ended_leaves_neither_files_nor_git(tmp_path, slow, number) -> None:
    source, note = make_archive(tmp_path), slow("git")
    dest = tmp_path / "work" / "llama.cpp"
    with command("checkout", dest, "--from", source, GIT_PYTHON_REFRESH="quiet") as process:
        until(note.exists, "git was not started")
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert not dest.parent.exists() or list(dest.parent.iterdir()) == []
    until(lambda: not running(set(map(int, note.read_text().split()))), "git or its child still runs")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_demo_that_is_ended_leaves_no_process(tmp_path, model_file, number) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("one two three " * 4000)
    arguments = ["--workers", "2", "--model", model_file("tiny"), "--prompt-file", prompt, "--repeats", "1000"]
    with command("demo", *arguments, "--no-picture") as process:
        assert process.stdout is not None
        assert any(line.startswith("run 1 of 1000: TurboPrefill") for line in process.stdout), "no prompt was timed"
        family = children(process.pid)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130), output
    until(lambda: not running(family), "a process of the demo still runs")


#
# RPC workers
#


def test_workers_listen_on_this_machine_alone() -> None:
    with RpcWorkers(1) as workers:
        port = int(workers.endpoints[0].rpartition(":")[2])
        sockets = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
        listening = [tuple(each.laddr) for each in sockets if each.laddr.port == port]
    assert listening == [("127.0.0.1", port)]


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
