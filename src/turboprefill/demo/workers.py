"""Local RPC workers: processes that stand in for GPUs, each computing on its share of the CPU."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import psutil

from turboprefill.demo import processes
from turboprefill.errors import NativeModuleError, TurboPrefillError

__all__ = ["RpcWorkers", "WorkerError"]

_START_TIMEOUT = 20.0  # seconds until a worker has to listen
_ATTEMPTS = 3  # another program may take the free port before the worker does
_LOG_LINES = 12


class WorkerError(TurboPrefillError):
    """A local RPC worker did not start, or ended while it was needed."""


@dataclass
class _Worker:
    endpoint: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]

    def last_words(self) -> str:
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
        return "\n".join(f"  | {line}" for line in lines) or "  | (no output)"

    def close(self) -> None:
        processes.stop(self.process)
        self.log.close()


def _packaged_server() -> Path:
    from turboprefill.native import rpc_server_path  # here: workers from another build need no native module

    try:
        return rpc_server_path()
    except NativeModuleError as error:
        raise WorkerError(f"{error}, or use servers that already run: --rpc HOST:PORT,HOST:PORT") from error


class RpcWorkers:
    """`n` RPC servers on 127.0.0.1, as a context manager; they end with it, and with this process.

    Args:
        n: number of workers, at least 1.
        threads: compute threads of each.
        binary: the server program; default: the packaged one.

    Raises:
        WorkerError: the package was installed without the server, or a worker cannot be started; those already
            started are ended.
    """

    def __init__(self, n: int, *, threads: int = 1, binary: Path | None = None) -> None:
        if n < 1:
            raise WorkerError(f"the number of workers is {n}: expected at least 1")
        program = binary or _packaged_server()
        self._workers: list[_Worker] = []
        try:
            for _ in range(n):
                self._workers.append(_start_worker(program, threads))
        except BaseException:
            self.close()
            raise

    @property
    def endpoints(self) -> list[str]:
        """host:port of each worker, in order."""
        return [worker.endpoint for worker in self._workers]

    @property
    def pids(self) -> list[int]:
        """Process ids, in order."""
        return [worker.process.pid for worker in self._workers]

    def check(self, patience: float = 0.0) -> None:
        """Raise WorkerError, with its last log lines, if a worker is no longer running.

        A killed process closes its connections before it counts as ended: after a broken connection, wait up to
        `patience` seconds.
        """
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and all(worker.process.poll() is None for worker in self._workers):
            time.sleep(0.05)
        for worker in self._workers:
            if (code := worker.process.poll()) is not None:
                how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
                raise WorkerError(f"the worker on {worker.endpoint} {how}. Its last lines:\n{worker.last_words()}")

    def close(self) -> None:
        """End all workers. Calling it again does nothing."""
        for worker in self._workers:
            worker.close()
        self._workers = []

    def __enter__(self) -> RpcWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _start_worker(program: Path, threads: int) -> _Worker:
    for attempt in range(_ATTEMPTS):
        worker = _launch(program, threads)
        try:
            if _wait_until_listening(worker):
                return worker
            failure = f"a worker did not start ({program}). Its last lines:\n{worker.last_words()}"
        except BaseException:
            worker.close()
            raise
        worker.close()
        if attempt + 1 == _ATTEMPTS:
            raise WorkerError(failure)
    raise AssertionError("unreachable")


def _launch(program: Path, threads: int) -> _Worker:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(program), "--device", "CPU", "-H", "127.0.0.1", "-p", str(port), "-t", str(threads)]
    if stdbuf := shutil.which("stdbuf"):  # else a killed worker's last lines are lost in its buffer
        command = [stdbuf, "-oL", *command]
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
    # of its own session: Ctrl-C reaches us alone, and we end the workers after the measurement has stopped
    process = processes.start(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    return _Worker(f"127.0.0.1:{port}", process, log)


def _wait_until_listening(worker: _Worker) -> bool:
    host, port = worker.endpoint.split(":")
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline and worker.process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            if _has_socket(worker.process.pid, int(port)):
                return True
        time.sleep(0.02)
    return False


def _has_socket(pid: int, port: int) -> bool:
    """Whether it is this process that listens on a port; another one may have taken it."""
    try:
        sockets = psutil.Process(pid).net_connections("tcp4")
    except psutil.Error:  # it has ended
        return False
    return any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in sockets)
