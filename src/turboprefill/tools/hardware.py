"""What this machine has: programs, GPUs, memory. Reads only; what cannot be found out is None or empty."""

from __future__ import annotations

import importlib
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from turboprefill.tools.process import output_of

__all__ = ["Gpu", "Gpus", "find_gpus", "find_nvcc", "memory_bytes", "run_quietly", "version_of"]

_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)*")


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU.

    Attributes:
        index: in the driver's order (CUDA_VISIBLE_DEVICES is not applied).
        name: product name.
        memory: in bytes; 0 if the driver does not tell.
        compute_capability: as in "9.0", or None.
        pcie_width: lanes in use now, or None.
    """

    index: int
    name: str
    memory: int
    compute_capability: str | None = None
    pcie_width: int | None = None


@dataclass(frozen=True)
class Gpus:
    """The NVIDIA GPUs of a machine.

    Attributes:
        found: all of them.
        driver: version of the driver, or None.
        peer_access: whether every GPU can read every other one's memory; None if that is not known, or if there are
            fewer than two.
        reason: why none was found; empty if some were.
    """

    found: tuple[Gpu, ...] = ()
    driver: str | None = None
    peer_access: bool | None = None
    reason: str = ""


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


def find_gpus() -> Gpus:
    """All NVIDIA GPUs of this machine, from NVML, the driver's own library."""
    try:
        nvml: Any = importlib.import_module("pynvml")  # of the package nvidia-ml-py
    except ImportError:
        return Gpus(reason="the Python package nvidia-ml-py is missing: pip install nvidia-ml-py")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Gpus(reason=f"no NVIDIA driver ({error})")
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        found = tuple(_gpu(nvml, i, handle) for i, handle in enumerate(handles))
        driver = _answer(nvml, nvml.nvmlSystemGetDriverVersion)
        reason = "" if found else "the NVIDIA driver sees no GPU"
        return Gpus(found, driver and str(driver), _peer_access(nvml, handles), reason)
    except nvml.NVMLError as error:
        return Gpus(reason=f"the NVIDIA driver does not answer ({error})")
    finally:
        nvml.nvmlShutdown()


def _answer(nvml: Any, question: Callable[..., Any], *arguments: Any) -> Any:
    """What NVML answers, or None: not every GPU supports every question."""
    try:
        return question(*arguments)
    except nvml.NVMLError:
        return None


def _gpu(nvml: Any, index: int, handle: Any) -> Gpu:
    memory = _answer(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    capability = _answer(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
    return Gpu(
        index,
        str(nvml.nvmlDeviceGetName(handle)),
        int(memory.total) if memory else 0,
        ".".join(map(str, capability)) if capability else None,
        _answer(nvml, nvml.nvmlDeviceGetCurrPcieLinkWidth, handle),
    )


def _peer_access(nvml: Any, handles: Sequence[Any]) -> bool | None:
    pairs = [(one, other) for one in handles for other in handles if one is not other]
    answers = [_answer(nvml, nvml.nvmlDeviceGetP2PStatus, *pair, nvml.NVML_P2P_CAPS_INDEX_READ) for pair in pairs]
    if not answers or None in answers:
        return None
    return all(answer == nvml.NVML_P2P_STATUS_OK for answer in answers)


def memory_bytes() -> tuple[int, int] | None:
    """Total and available main memory in bytes, or None."""
    try:
        memory = psutil.virtual_memory()
    except (OSError, psutil.Error):  # a container without /proc
        return None
    return memory.total, memory.available
