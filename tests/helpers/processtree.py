"""Which processes descend from another one, and which of them still run."""

from __future__ import annotations

import psutil

__all__ = ["children", "running"]


def children(pid: int) -> set[int]:
    """All that descend from a process and still run."""
    try:
        return running({child.pid for child in psutil.Process(pid).children(recursive=True)})
    except psutil.NoSuchProcess:
        return set()


def running(pids: set[int]) -> set[int]:
    """Those that have not ended."""

    def runs(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return {pid for pid in pids if runs(pid)}
