"""What the measurements ran on: asked of the system's own programs, which may be missing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

_ENVIRONMENT = re.compile(r"^(GGML|LLAMA|CUDA|NCCL|TURBOPREFILL)_")


def ask(*command: str | Path) -> str:
    """Output of a program, empty where it fails or is missing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def gpus() -> list[str]:
    """Names of the GPUs that the driver lists."""
    return ask("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()


def describe(repository: Path) -> dict[str, Any]:
    """GPUs, driver, links, CUDA, processor, and this repository's commit."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    nvcc = re.search(r"release (\S+),", ask("nvcc", "--version"))
    return {
        "gpu_info": ", ".join(gpus()),
        "cpu_info": cpu.group(1) if cpu else platform.machine(),
        "n_cores": os.cpu_count(),
        "kernel": platform.release(),
        "driver": ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0],
        "cuda": nvcc.group(1) if nvcc else "",
        "cmake": ask("cmake", "--version").partition("\n")[0],
        "compiler": ask(os.environ.get("CXX", "g++"), "--version").partition("\n")[0],
        "topology": ask("nvidia-smi", "topo", "-m").splitlines(),
        "clocks": ask("nvidia-smi", "--query-gpu=clocks.max.sm,power.limit", "--format=csv,noheader").splitlines(),
        "turboprefill_commit": ask("git", "-C", repository, "describe", "--always", "--dirty", "--abbrev=12"),
        "env": {name: value for name, value in os.environ.items() if _ENVIRONMENT.match(name)},
    }
