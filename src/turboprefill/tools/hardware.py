"""What this machine has: programs, GPUs, memory. Reads only; what cannot be found out is None or empty."""

from __future__ import annotations

import importlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from turboprefill.tools.process import output_of

__all__ = ["Gpu", "find_gpus", "find_nvcc", "memory_bytes", "peer_access", "run_quietly", "version_of"]

_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)*")


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, in the driver's order (CUDA_VISIBLE_DEVICES is not applied)."""

    index: int
    name: str
    memory: int  # bytes


def run_quietly(*command: str) -> str | None:
    """A command's stdout, or None if it is missing, fails or hangs."""
    done = output_of(*command)
    return done.stdout if done.code == 0 else None


def version_of(program: str) -> str | None:
    """The first version number that ``program --version`` prints."""
    answer = run_quietly(program, "--version")
    # nvcc starts with copyright years; its version follows "release".
    text = (answer or "").partition("release ")[2] or (answer or "")
    match = _VERSION.search(text)
    return match.group(0) if match else None


def find_nvcc() -> str | None:
    """Path of the CUDA compiler: $CUDACXX, PATH, $CUDA_HOME, or the usual place."""
    places = [os.environ.get("CUDACXX"), shutil.which("nvcc")]
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places += [str(Path(home) / "bin" / "nvcc") for home in homes if home]
    return next((place for place in places if place and shutil.which(place)), None)


def find_gpus() -> list[Gpu]:
    """All NVIDIA GPUs, from NVML where its binding is installed, else from nvidia-smi."""
    return _from_nvml() or _from_nvidia_smi()


def _from_nvml() -> list[Gpu]:
    try:
        nvml: Any = importlib.import_module("pynvml")  # the module of the package nvidia-ml-py; optional
    except ImportError:
        return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        return [
            Gpu(i, str(nvml.nvmlDeviceGetName(h)), int(nvml.nvmlDeviceGetMemoryInfo(h).total))
            for i, h in enumerate(handles)
        ]
    except nvml.NVMLError:
        return []
    finally:
        nvml.nvmlShutdown()


def _from_nvidia_smi() -> list[Gpu]:
    rows = run_quietly("nvidia-smi", "--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits") or ""
    gpus = []
    for row in rows.splitlines():
        parts = [part.strip() for part in row.split(",")]
        if len(parts) == 3 and parts[0].isdigit():
            mebibytes = int(parts[2]) if parts[2].isdigit() else 0
            gpus.append(Gpu(int(parts[0]), parts[1], mebibytes << 20))
    return gpus


def peer_access(n_gpus: int) -> bool | None:
    """Whether every GPU can read every other one's memory; None if that is not known.

    Args:
        n_gpus: how many rows the driver's matrix must have.
    """
    rows = run_quietly("nvidia-smi", "topo", "-p2p", "r") if n_gpus > 1 else None
    # Rows are "GPU0  X  OK  OK ..."; the heading has no X.
    cells = [row.split()[1 : n_gpus + 1] for row in (rows or "").splitlines() if re.match(r"\s*GPU\d+\s", row)]
    matrix = [row for row in cells if len(row) == n_gpus and "X" in row]
    if len(matrix) != n_gpus:
        return None
    return all(cell in ("X", "OK") for row in matrix for cell in row)


def memory_bytes() -> tuple[int, int] | None:
    """Total and available main memory in bytes, or None."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        values = {key: int(rest.split()[0]) << 10 for key, _, rest in (line.partition(":") for line in lines)}
        return values["MemTotal"], values["MemAvailable"]
    except (OSError, ValueError, KeyError, IndexError):
        return None
