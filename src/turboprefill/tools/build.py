"""Compiling a llama.cpp tree with CMake and Ninja."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from turboprefill.tools.errors import BuildError
from turboprefill.tools.hardware import find_gpus, find_nvcc, memory_bytes, run_quietly
from turboprefill.tools.pins import Base
from turboprefill.tools.process import CommandFailedError, run
from turboprefill.tools.progress import Progress, Silent
from turboprefill.tools.tree import Tree

__all__ = ["BuildOptions", "Built", "build"]

# Those that exist in the tree are built when no target is asked for.
_USEFUL = ("llama-server", "llama-cli", "llama-bench", "llama-perplexity")
_RPC_SERVERS = ("ggml-rpc-server", "rpc-server")  # new and old name
_STEP = re.compile(r"^\[\s*(?:(\d+)/(\d+)|(\d+)%)\]")
_BYTES_PER_JOB = {False: 1 << 30, True: 3 << 30}  # CUDA's compiler needs more


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        cuda: with CUDA; None: if there is a CUDA compiler and a GPU.
        rpc: with the RPC backend and its server.
        targets: CMake targets; none: the usual programs.
        jobs: parallel compilers; None: what processors and memory allow.
        build_dir: None: ``build`` inside the tree.
        native: use every instruction of this processor; the result may not run on another one.
        defines: further ``NAME=VALUE`` for CMake.
    """

    cuda: bool | None = None
    rpc: bool = True
    targets: tuple[str, ...] = ()
    jobs: int | None = None
    build_dir: Path | None = None
    native: bool = False
    defines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Built:
    """A finished build.

    Attributes:
        build_dir: programs are in its ``bin``.
        log: everything CMake and the compilers wrote.
        cuda: whether it is with CUDA.
        targets: what was built.
        seconds: how long it took.
    """

    build_dir: Path
    log: Path
    cuda: bool
    targets: tuple[str, ...]
    seconds: float


def build(
    root: Path, options: BuildOptions | None = None, *, base: Base | None = None, progress: Progress | None = None
) -> Built:
    """Configure and compile.

    Args:
        root: a llama.cpp tree.
        options: how.
        base: the version it is, for the build number that the programs report.
        progress: told every step.

    Raises:
        RefusedError: not a llama.cpp tree.
        BuildError: a tool is missing, or CMake or a compiler failed; names the log and quotes its end.
    """
    options, progress = options or BuildOptions(), progress or Silent()
    tree = Tree(root)
    start = time.monotonic()
    cuda = _with_cuda(options, progress)
    if not shutil.which("cmake"):
        raise BuildError("cmake was not found; install CMake 3.20 or newer, for example with: pip install cmake ninja")
    build_dir = (options.build_dir or tree.root / "build").absolute()
    log = build_dir / "turboprefill-build.log"
    try:
        build_dir.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
    except OSError as error:
        raise BuildError(
            f"cannot write to {build_dir}: {error.strerror}. Choose another directory with --build-dir."
        ) from error
    progress.note(f"log: {log}")
    configure = configure_command(tree.root, build_dir, options, cuda=cuda, base=base)
    _step(configure, log, "configuring", progress)
    targets = options.targets or _default_targets(build_dir, options)
    jobs = options.jobs or _jobs(cuda)
    compile_ = ["cmake", "--build", str(build_dir), "--parallel", str(jobs), "--target", *targets]
    _step(compile_, log, f"compiling with {jobs} jobs", progress)
    return Built(build_dir, log, cuda, targets, time.monotonic() - start)


def configure_command(
    root: Path, build_dir: Path, options: BuildOptions, *, cuda: bool, base: Base | None = None
) -> list[str]:
    """The CMake call that configures a tree with these options."""
    switches = {
        "CMAKE_BUILD_TYPE": "Release",
        # Off: instructions that a virtual machine announces but does not really have (AMX) crash otherwise.
        "GGML_NATIVE": _on(options.native),
        "GGML_CUDA": _on(cuda),
        "GGML_RPC": _on(options.rpc),
        "LLAMA_CURL": "OFF",
        "LLAMA_BUILD_TESTS": "OFF",
        "LLAMA_BUILD_EXAMPLES": "OFF",
        "LLAMA_BUILD_TOOLS": "ON",
        "LLAMA_BUILD_SERVER": "ON",
        "LLAMA_BUILD_UI": "OFF",
        "LLAMA_USE_PREBUILT_UI": "OFF",  # it would be downloaded
    }
    if cuda:
        switches["CMAKE_CUDA_COMPILER"] = find_nvcc() or "nvcc"
        if find_gpus().found:
            switches["CMAKE_CUDA_ARCHITECTURES"] = "native"  # else all of them are built, which takes hours
    if base:
        switches["LLAMA_BUILD_NUMBER"] = base.name.removeprefix("b")
        switches["LLAMA_BUILD_COMMIT"] = base.commit[:9]
    if shutil.which("ccache"):
        switches["GGML_CCACHE"] = "OFF"  # it sets up the same in another way, and warns
        languages = ("C", "CXX", "CUDA") if cuda else ("C", "CXX")
        switches.update({f"CMAKE_{language}_COMPILER_LAUNCHER": "ccache" for language in languages})
    command = ["cmake", "-S", str(root), "-B", str(build_dir)]
    # An existing build folder keeps its generator; CMake refuses to change it.
    if shutil.which("ninja") and not (build_dir / "CMakeCache.txt").exists():
        command += ["-G", "Ninja"]
    return command + [f"-D{key}={value}" for key, value in switches.items()] + [f"-D{each}" for each in options.defines]


def _with_cuda(options: BuildOptions, progress: Progress) -> bool:
    nvcc = find_nvcc()
    if options.cuda:
        if nvcc is None:
            msg = "--cuda needs nvcc, which is neither on PATH nor in $CUDA_HOME/bin; install CUDA, or use --cpu"
            raise BuildError(msg)
        return True
    if options.cuda is None and nvcc and find_gpus().found:
        progress.note(f"building with CUDA ({nvcc}); use --cpu to build without it")
        return True
    return False


def _default_targets(build_dir: Path, options: BuildOptions) -> tuple[str, ...]:
    known = set(re.findall(r"[\w.-]+", run_quietly("cmake", "--build", str(build_dir), "--target", "help") or ""))
    rpc = [name for name in _RPC_SERVERS if name in known][:1] if options.rpc else []
    return tuple([name for name in _USEFUL if name in known] + rpc) or ("all",)


def _jobs(cuda: bool) -> int:
    memory = memory_bytes()
    by_memory = memory[1] // _BYTES_PER_JOB[cuda] if memory else 4
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(processors, by_memory))


def _step(command: Sequence[str], log: Path, title: str, progress: Progress) -> None:
    with progress.task(title) as advance:
        try:
            run(command, log=log, environment={"NINJA_STATUS": "[%f/%t] "}, on_line=_watch(advance))
        except CommandFailedError as error:
            quoted = "\n".join(f"  | {line}" for line in _relevant(log, error.tail))
            raise BuildError(f"{title} failed: {error}\n{quoted}\nfull log: {log}") from error


def _watch(advance: Callable[[float, float | None], None]) -> Callable[[str], None]:
    def on_line(line: str) -> None:
        match = _STEP.match(line)
        if match and match.group(3):
            advance(float(match.group(3)), 100.0)
        elif match:
            advance(float(match.group(1)), float(match.group(2)))

    return on_line


def _relevant(log: Path, tail: Sequence[str]) -> list[str]:
    """The end of the output, led by the first error when that is further up (compilers run side by side)."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    first = next((i for i, line in enumerate(lines) if re.search(r"(^CMake Error|\berror:|^FAILED:)", line)), None)
    if first is None or any(line in tail for line in lines[first : first + 1]):
        return list(tail)
    return [*lines[first : first + 6], "...", *list(tail)[-8:]]


def _on(value: bool) -> str:
    return "ON" if value else "OFF"
