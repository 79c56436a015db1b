from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from processtree import running
from turboprefill import native
from turboprefill.demo import processes
from turboprefill.demo import workers as workers_module
from turboprefill.demo.workers import RpcWorkers, WorkerError


def gone(pids: list[int], patience: float = 5.0) -> bool:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if not running(set(pids)):
            return True
        time.sleep(0.02)
    return False


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_workers_listen_and_end_with_the_context() -> None:
    with RpcWorkers(2) as workers:
        pids = workers.pids
        assert len(set(workers.endpoints)) == 2
        for endpoint in workers.endpoints:
            host, port = endpoint.split(":")
            assert host == "127.0.0.1"
            socket.create_connection((host, int(port)), timeout=5).close()
        workers.check()
    assert gone(pids)


def test_workers_end_when_an_exception_passes() -> None:
    pids: list[int] = []

    def fail_amid_work() -> None:
        with RpcWorkers(1) as workers:
            pids.extend(workers.pids)
            raise KeyError

    with pytest.raises(KeyError):
        fail_amid_work()
    assert gone(pids)


def test_a_dead_worker_is_reported_with_its_last_lines() -> None:
    with RpcWorkers(2) as workers:
        os.kill(workers.pids[1], signal.SIGKILL)
        assert gone(workers.pids[1:])
        with pytest.raises(WorkerError, match=rf"{workers.endpoints[1]} was killed by signal 9(?s:.*)\| .*endpoint"):
            workers.check()


def test_a_worker_that_cannot_start_is_reported_with_what_it_wrote(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"did not start(?s:.*)\| no such device"):
        RpcWorkers(1, binary=program(tmp_path / "server", "echo no such device; exit 1"))


def test_workers_that_have_started_end_if_another_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[int] = []
    start = workers_module._start_worker

    def only_one(program: Path, threads: int) -> workers_module._Worker:
        if pids:
            raise KeyboardInterrupt
        worker = start(program, threads)
        pids.append(worker.process.pid)
        return worker

    monkeypatch.setattr(workers_module, "_start_worker", only_one)
    with pytest.raises(KeyboardInterrupt):
        RpcWorkers(2)
    assert gone(pids)


def test_the_server_is_looked_for_beside_the_native_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # an editable install keeps it away from the Python files
    monkeypatch.setattr(native, "core", SimpleNamespace(__file__=str(tmp_path / "_core.so")))
    with pytest.raises(WorkerError, match=rf"{tmp_path}/bin/ggml-rpc-server is missing; .*--rpc HOST:PORT"):
        RpcWorkers(1)
    server = tmp_path / "bin/ggml-rpc-server"
    server.parent.mkdir()
    program(server, "echo this is the one; exit 1")
    with pytest.raises(WorkerError, match=r"\| this is the one"):
        RpcWorkers(1)


def test_no_workers_at_all_are_refused() -> None:
    with pytest.raises(WorkerError, match="expected at least 1"):
        RpcWorkers(0)


def test_closing_twice_does_nothing() -> None:
    workers = RpcWorkers(1)
    workers.close()
    workers.close()


def test_workers_end_when_their_parent_is_killed() -> None:
    script = (
        "import os, sys, time\n"
        "from turboprefill.demo.workers import RpcWorkers\n"
        "workers = RpcWorkers(2)\n"
        "print(*workers.pids, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.communicate()
    assert gone(pids)


def test_a_process_that_ignores_terminate_is_killed(tmp_path: Path) -> None:
    stubborn = program(tmp_path / "stubborn", "trap '' TERM; echo ready; while :; do sleep 0.1; done")
    process = processes.start([str(stubborn)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    processes.stop(process, patience=0.2)
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
