"""The builds that count lines: llama.cpp with llama-server, the sanitizers' driver, and the Python package."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from nativebuild import ROOT, compile_native, patched_tree
from turboprefill.tools.build import BuildOptions, build
from turboprefill.tools.errors import ToolError
from turboprefill.tools.progress import Progress

__all__ = ["Builds", "make_builds"]

LAUNCH = Path(__file__).resolve().parent / "launch"
_DEFINES = (
    f"CMAKE_C_COMPILER_LAUNCHER={LAUNCH}",
    f"CMAKE_CXX_COMPILER_LAUNCHER={LAUNCH}",
    "CMAKE_SHARED_LINKER_FLAGS=--coverage",
    "CMAKE_EXE_LINKER_FLAGS=--coverage",
)


@dataclass(frozen=True)
class Builds:
    """Where things are.

    Attributes:
        tree: the patched source tree.
        llama: build folder of llama.cpp.
        native: folder of the driver and the virtual devices.
        package: folder to put first on PYTHONPATH.
        objects: folders with the counters.
    """

    tree: Path
    llama: Path
    native: Path
    package: Path
    objects: tuple[Path, ...]


def make_builds(work: Path, given: Path | None, source: str, jobs: int | None, progress: Progress) -> Builds:
    """Build everything; minutes the first time.

    Raises:
        ToolError: something does not compile.
    """
    tree = patched_tree(given, work, source, progress)
    defines = ("BUILD_SHARED_LIBS=ON", "LLAMA_BUILD_SERVER=ON", "LLAMA_CURL=OFF", "GGML_NATIVE=OFF", "GGML_OPENMP=OFF")
    options = BuildOptions(
        cuda=False,
        targets=("llama", "llama-server", "ggml-rpc-server"),
        jobs=jobs,
        build_dir=work / "llama",
        defines=(*defines, *_DEFINES),
    )
    llama = build(tree, options, progress=progress).build_dir
    with progress.task("compiling the driver"):
        native = compile_native(work / "native", tree=tree, llama=llama, jobs=jobs)
    with progress.task("building the package"):
        package = _package(work, tree)
    return Builds(tree, llama, native, package, (work / "llama", work / "package"))


def _package(work: Path, tree: Path) -> Path:
    """The package, installed into a folder of its own."""
    site = work / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--upgrade",
    ]
    command += ["--target", str(site), "-C", f"build-dir={work / 'package'}", str(ROOT)]
    environment = {
        **os.environ,
        "CMAKE_ARGS": " ".join(f"-D{define}" for define in _DEFINES),
        "TURBOPREFILL_LLAMA_DIR": str(tree),
        "TURBOPREFILL_CUDA": "OFF",
    }
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ToolError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return site
