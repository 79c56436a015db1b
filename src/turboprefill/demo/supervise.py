"""Running the measurement in a process of its own, because llama.cpp ends its process when a worker dies.

The parent process can still report which worker it was, and its last output.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence

from turboprefill.demo import processes
from turboprefill.demo.workers import RpcWorkers, WorkerError

__all__ = ["run_with_workers"]

Command = Callable[[Sequence[str]], Sequence[str]]


def run_with_workers(n: int, command: Command) -> int:
    """Start `n` local workers, and a program that uses them; both end with this function.

    Args:
        n: number of workers.
        command: gets the workers' endpoints, and gives the program and its arguments.

    Returns:
        the program's exit code.

    Raises:
        WorkerError: a worker did not start, or the program was ended by a signal; names the worker that died.
    """
    with RpcWorkers(n) as workers:
        # what a user can act on is our report, not a debugger's view of the process
        environment = {"GGML_NO_BACKTRACE": "1", **os.environ}
        child = processes.start(command(workers.endpoints), env=environment)
        try:
            code = child.wait()
        except KeyboardInterrupt:
            _let_finish(child)
            raise
        finally:
            processes.stop(child)
        if code < 0:
            workers.check(patience=2.0)
            raise WorkerError(
                f"the measurement was killed by signal {-code}; the workers are still running. See its output above."
            )
    return code


def _let_finish(child: subprocess.Popen[bytes]) -> None:
    """The measurement got the same Ctrl-C: it may print its own last line."""
    try:
        child.wait(2)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()
