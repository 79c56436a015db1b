"""Child processes that cannot outlive us, whatever ends us."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["start", "stop"]

# Runs in the child before it becomes the program: ask the kernel for SIGKILL when the parent goes (prctl 1 is
# PR_SET_PDEATHSIG), and stop if the parent went before that. A preexec_fn would do the same, but may deadlock in a
# process with threads, and llama.cpp has threads.
_GUARD = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)\n"
    "os.getppid() == int(sys.argv[1]) or sys.exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start `command` (an absolute program path first) as `subprocess.Popen` does; the kernel ends it with us.

    The kernel watches the thread that calls this, so call it from one that lives as long as the child should.
    """
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), *command], **options)


def stop(process: subprocess.Popen[bytes], patience: float = 3.0) -> None:
    """End `process` if it still runs, gently first; at most `patience` seconds pass before it is killed."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
