"""What tests/native adds to a finished build of llama.cpp, compiled: virtual devices, a probe, a driver."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from turboprefill.tools.errors import ToolError
from turboprefill.tools.patcher import install
from turboprefill.tools.progress import Progress
from turboprefill.tools.sources import checkout

ROOT = Path(__file__).resolve().parents[2]

# options that the commands share
TreeOption = Annotated[
    Path | None, typer.Option(help="A tree that carries TurboPrefill, taken as it is. Default: one is made.")
]
SourceOption = Annotated[str, typer.Option("--from", metavar="auto|git|pypi|PATH", help="Where llama.cpp comes from.")]
JobsOption = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="Parallel compilers.")]


def patched_tree(given: Path | None, work: Path, source: str, progress: Progress) -> Path:
    """The tree that was given, or one in `work` with TurboPrefill installed."""
    if given:
        return given.absolute()
    tree = work / "tree"
    checkout(tree, source=source, progress=progress)
    install(tree)
    return tree


def compile_native(
    folder: Path,
    *,
    tree: Path,
    llama: Path,
    targets: Sequence[str] = (),
    build_type: str = "Release",
    flags: str = "",
    jobs: int | None = None,
) -> Path:
    """Compile for the libraries of the build folder `llama` of `tree`; the folder with what was made.

    Raises:
        ToolError: it does not compile.
    """
    configure = ["cmake", "-S", str(ROOT / "tests/native"), "-B", str(folder), f"-DCMAKE_BUILD_TYPE={build_type}"]
    configure += [f"-DLLAMA_TREE={tree}", f"-DLLAMA_BUILD={llama}"]
    configure += [f"-DCMAKE_CXX_FLAGS={flags}", f"-DCMAKE_C_FLAGS={flags}"]
    compile_ = ["cmake", "--build", str(folder), "--parallel", str(jobs or os.cpu_count() or 1)]
    for name in targets:
        compile_ += ["--target", name]
    for command in (configure, compile_):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ToolError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return folder / "bin"
