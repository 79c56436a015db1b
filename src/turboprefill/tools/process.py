"""Running a long external command: output goes to a log file and, line by line, to a callback."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from turboprefill.tools.errors import ToolError

__all__ = ["CommandFailedError", "CommandOutput", "children_end", "output_of", "run"]

_TAIL = 15  # lines quoted when a command fails
_PATIENCE = 5.0  # seconds between asking a process group to end and ending it


class CommandFailedError(ToolError):
    """A command could not be started, or returned something other than 0.

    Attributes:
        code: its return code; None if it did not start.
        tail: its last lines.
    """

    def __init__(self, message: str, code: int | None, tail: Sequence[str]) -> None:
        super().__init__(message)
        self.code = code
        self.tail = tuple(tail)


@dataclass(frozen=True)
class CommandOutput:
    """What a short command printed; ``code`` is None if it did not start or did not end in time."""

    code: int | None
    stdout: str
    stderr: str


def output_of(*command: str, timeout: float = 20) -> CommandOutput:
    """Run a short command and never raise."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            errors="replace",
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return CommandOutput(None, "", str(error))
    return CommandOutput(done.returncode, done.stdout, done.stderr)


def run(
    command: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = lambda _line: None,
) -> None:
    """Run a command to its end. On Ctrl-C, or any other exception, it ends with everything it started.

    Args:
        command: program and arguments; no shell is involved.
        log: file to append the command and its output to.
        environment: variables to add to this process's.
        on_line: called with every line of output (stdout and stderr together).

    Raises:
        CommandFailedError: it could not be started, or failed, or the log cannot be written.
    """
    tail: deque[str] = deque(maxlen=_TAIL)
    with _Log(log) as file, children_end():  # Ctrl-C may come before we know what was started
        file.write(f"$ {subprocess.list2cmdline(command)}\n")
        try:
            process = subprocess.Popen(
                list(command),
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # a process group of its own, which can be ended as a whole
            )
        except OSError as error:
            msg = f"cannot start {command[0]}: {error.strerror}"
            raise CommandFailedError(msg, None, ()) from error
        with process:
            try:
                for line in process.stdout or ():
                    file.write(line)
                    tail.append(line.rstrip())
                    on_line(line.rstrip())
                code = process.wait()
            except BaseException:
                _end(process)
                raise
        file.write(f"[return code {code}]\n")
    if code:
        raise CommandFailedError(f"{command[0]} returned {code}", code, tail)


class _Log:
    """A file to append lines to; each is there at once. What goes wrong with it is a CommandFailedError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> _Log:
        with self._errors():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8", buffering=1)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # what could not be written was an error before
            self._file.close()

    def write(self, line: str) -> None:
        with self._errors():
            self._file.write(line)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CommandFailedError(f"cannot write {self._path}: {error.strerror}", None, ()) from error


@contextlib.contextmanager
def children_end() -> Iterator[None]:
    """When Ctrl-C passes: processes that were started inside have ended before it goes on.

    For libraries that start programs and forget them then.
    """
    before = _descendants()
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        until = time.monotonic() + _PATIENCE
        while left := _descendants() - before:
            late = time.monotonic() > until
            for process in left:
                with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                    process.send_signal(signal.SIGKILL if late else signal.SIGTERM)
            if late:
                break
            time.sleep(0.02)
        raise


def _descendants() -> set[psutil.Process]:
    """Processes that descend from this one and still run."""
    return {process for process in psutil.Process().children(recursive=True) if _runs(process)}


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end(process: subprocess.Popen[str]) -> None:
    for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        with contextlib.suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, number)
            else:
                process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
            return
