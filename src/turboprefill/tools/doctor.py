"""What this machine, this installation and a tree offer, and what prevents prompts from being pipelined."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from turboprefill.errors import TurboPrefillError
from turboprefill.tools import hardware
from turboprefill.tools.overlay import load_overlay
from turboprefill.tools.patcher import status
from turboprefill.tools.process import output_of

__all__ = ["Report", "Requirement", "Tool", "examine"]


@dataclass(frozen=True)
class Tool:
    """A program that checking out or building uses.

    Attributes:
        name: of the program.
        path: None if it was not found.
        version: None if it is not known.
        purpose: what it is needed for.
    """

    name: str
    path: str | None
    version: str | None
    purpose: str


@dataclass(frozen=True)
class Requirement:
    """A condition for pipelined prompts.

    Attributes:
        name: short.
        met: whether it holds; None: it could not be found out, or does not matter here.
        found: what was seen.
        remedy: what to do if it is not met; empty if it is.
    """

    name: str
    met: bool | None
    found: str
    remedy: str


@dataclass(frozen=True)
class Report:
    """Everything :func:`examine` found; sizes in bytes."""

    tools: tuple[Tool, ...]
    gpus: hardware.Gpus
    visible_gpus: int
    memory: tuple[int, int] | None  # total, available
    package: Mapping[str, Any]
    tree: Mapping[str, Any] | None
    requirements: tuple[Requirement, ...]

    @property
    def can_pipeline(self) -> bool:
        """Whether a patched program on this machine, with these variables, would pipeline prompts over its GPUs."""
        return self.n_unmet == 0

    @property
    def n_unmet(self) -> int:
        """How many requirements are not met."""
        return sum(requirement.met is False for requirement in self.requirements)

    def as_json(self) -> dict[str, Any]:
        """For ``doctor --json``; the keys are an interface."""
        return {
            "schema": 2,
            "tools": [asdict(tool) for tool in self.tools],
            "gpus": [asdict(gpu) for gpu in self.gpus.found],
            "no_gpus_because": self.gpus.reason or None,
            "driver": self.gpus.driver,
            "visible_gpus": self.visible_gpus,
            "peer_access": self.gpus.peer_access,
            "memory": self.memory and {"total": self.memory[0], "available": self.memory[1]},
            "package": dict(self.package),
            "tree": self.tree,
            "can_pipeline": self.can_pipeline,
            "requirements": [asdict(requirement) for requirement in self.requirements],
        }


def examine(root: Path | None = None) -> Report:
    """Examine everything; changes nothing, and raises nothing for what is missing.

    Args:
        root: a llama.cpp tree to examine as well.
    """
    tools = _tools()
    gpus = hardware.find_gpus()
    visible = _visible(len(gpus.found))
    package = _package()
    tree = _tree(root) if root else None
    requirements = (
        *_build_requirements(tools, bool(gpus.found)),
        *_device_requirements(visible, len(gpus.found), gpus.peer_access),
        *_software_requirements(package, root, tree),
    )
    return Report(tools, gpus, visible, hardware.memory_bytes(), package, tree, requirements)


def _tools() -> tuple[Tool, ...]:
    def tool(name: str, purpose: str, path: str | None = None) -> Tool:
        path = path or shutil.which(name)
        return Tool(name, path, hardware.version_of(path) if path else None, purpose)

    compiler = next((c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c and shutil.which(c)), "c++")
    return (
        tool("git", "checkout from github.com or local repositories"),
        tool(compiler, "compiling"),
        tool("cmake", "compiling"),
        tool("ninja", "faster builds than with make"),
        tool("ccache", "faster rebuilds, optional"),
        tool("nvcc", "compiling for NVIDIA GPUs", hardware.find_nvcc()),
    )


def _visible(n_gpus: int) -> int:
    """How many GPUs CUDA programs see: it ends its list at the first entry that is not valid."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return n_gpus
    count = 0
    for entry in (part.strip() for part in chosen.split(",")):
        if not entry or entry.startswith("-") or (entry.isdigit() and int(entry) >= n_gpus):
            break
        count += 1
    return min(count, n_gpus)


def _package() -> dict[str, Any]:
    from turboprefill import __version__

    # Another process: a native module that does not load must not take this one with it.
    found = output_of(sys.executable, "-c", "import turboprefill._core as core; print(core.__file__)", timeout=60)
    try:
        overlay: str | None = load_overlay().version
    except TurboPrefillError:
        overlay = None
    reason = (found.stderr.strip().splitlines() or [f"return code {found.code}"])[-1]
    return {
        "version": __version__,
        "overlay_version": overlay,
        "native_module": found.stdout.strip() if found.code == 0 else None,
        "native_module_error": None if found.code == 0 else reason,
    }


def _tree(root: Path) -> dict[str, Any]:
    try:
        overlay = load_overlay()
        return status(root, overlay=overlay).as_json(overlay)
    except TurboPrefillError as error:
        return {"tree": str(root), "error": str(error)}


def _build_requirements(tools: tuple[Tool, ...], gpus: bool) -> list[Requirement]:
    missing = [tool.name for tool in tools[1:3] if not tool.path]
    requirements = [
        Requirement(
            "build tools",
            not missing,
            f"missing: {', '.join(missing)}" if missing else "C++ compiler and CMake",
            "install g++ or clang++, and CMake (pip install cmake ninja)" if missing else "",
        )
    ]
    if gpus:
        nvcc = tools[-1]
        remedy = "" if nvcc.path else "install the CUDA toolkit, or put its bin folder on PATH"
        requirements.append(Requirement("CUDA toolkit", bool(nvcc.path), nvcc.version or "no nvcc", remedy))
    return requirements


def _device_requirements(visible: int, present: int, peer: bool | None) -> list[Requirement]:
    enough = visible >= 2
    if present > visible:
        found = f"{visible} of {present} GPUs (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')})"
        remedy = "make at least two visible: unset CUDA_VISIBLE_DEVICES"
    else:
        found = f"{visible} GPU{'' if visible == 1 else 's'}"
        remedy = (
            "a pipeline needs at least two devices: add GPUs, or devices on other machines over RPC "
            "(--rpc HOST:PORT). To see it work on this machine's CPU: turboprefill demo"
        )
    requirements = [Requirement("devices", enough, found, "" if enough else remedy)]
    if present > 1:
        words = {
            True: "between every pair of GPUs",
            False: "not between all GPUs; data is staged through host memory, which still overlaps with compute",
            None: "unknown",
        }
        requirements.append(Requirement("peer access", True if peer else None, words[peer], ""))
    return requirements


def _software_requirements(
    package: Mapping[str, Any], root: Path | None, tree: Mapping[str, Any] | None
) -> list[Requirement]:
    requirements = []
    if root and tree:
        requirements.append(_tree_requirement(root, tree))
        if (requirement := _rpc_requirement(root)) is not None:
            requirements.append(requirement)
    module = package["native_module"]
    requirements.append(
        Requirement(
            "Python module",
            True if module else None,  # patched programs work without it
            module or str(package["native_module_error"]),
            ""
            if module
            else "needed for the Python API and the demo: run `pip install .` in turboprefill's source tree",
        )
    )
    value = os.environ.get("TURBOPREFILL")
    off = (value or "0").lower() in ("0", "false", "off")
    requirements.append(
        Requirement(
            "switched on",
            not off,
            f"TURBOPREFILL={value}" if value is not None else "TURBOPREFILL is not set",
            "for llama.cpp's programs: export TURBOPREFILL=1 (the Python API has its own switch)" if off else "",
        )
    )
    return requirements


def _rpc_requirement(root: Path) -> Requirement | None:
    """A warning where the RPC server of this tree can be told to listen on more than the address it was given."""
    sources = (root / "ggml/src/ggml-rpc").glob("*.cpp")
    if not any(b"COMM_INIT" in path.read_bytes() for path in sources if path.is_file()):
        return None
    found = (
        "its ggml-rpc-server opens another port, on all of the machine's addresses, if a client requests collectives"
    )
    return Requirement(
        "RPC server", None, found, "allow only the client through the firewall; TurboPrefill itself never requests them"
    )


def _tree_requirement(root: Path, tree: Mapping[str, Any]) -> Requirement:
    if "error" in tree:
        return Requirement("tree", False, str(tree["error"]), "")
    found = f"{root}: {tree['state']}" + (f" {tree['version']}" if tree["version"] else "")
    if tree["up_to_date"]:
        return Requirement("tree", True, found, "")
    command = "install --dry-run" if tree["anchors_failed"] else "install"
    return Requirement("tree", False, found, f"turboprefill {command} {root}")
