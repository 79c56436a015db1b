"""The two builds that are compared, and how their programs are run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nativebuild import compile_native
from turboprefill.tools.build import BuildOptions, build
from turboprefill.tools.errors import ToolError
from turboprefill.tools.patcher import install, status
from turboprefill.tools.progress import Progress
from turboprefill.tools.sources import checkout

TARGETS = (
    "llama-results",
    "llama-perplexity",
    "llama-completion",
    "llama-debug",
    "llama-imatrix",
    "test-llama-archs",
    "test-save-load-state",
    "test-recurrent-state-rollback",
    "test-thread-safety",
    "ggml-rpc-server",
)
SABOTAGE = {"PROBE_SKIP": "7", "TURBOPREFILL_TRANSPORT": "staged"}
_PATIENCE = 1200  # seconds for one program; the longest takes a few minutes on two cores


@dataclass
class Arm:
    """One build, and the environment that its programs get."""

    name: str
    llama: Path  # folder of llama.cpp's programs and libraries
    native: Path  # folder of what tests/native adds
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def probe(self) -> Path:
        return self.native / "libprobe.so"

    @property
    def virtual(self) -> Path:
        return self.native / "libturboprefill-virtual.so"


@dataclass(frozen=True)
class Ran:
    """How a program ended."""

    code: int
    output: str
    seconds: float

    def need_success(self) -> str:
        if self.code:
            tail = "\n".join(self.output.splitlines()[-6:])
            raise ToolError(f"exit code {self.code}: {tail}")
        return self.output


def run(arm: Arm, program: str, *arguments: str, cwd: Path, environment: Mapping[str, str]) -> Ran:
    """Run one of upstream's programs with the probe; its output is kept in `cwd` too."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("TURBOPREFILL", "LLAMA_"))}
    # a virtual machine may announce instructions that repacked weights need and that it does not have
    settings = {"LLAMA_ARG_REPACK": "0", "LLAMA_ARG_FIT": "off", "LD_PRELOAD": str(arm.probe)}
    settings["LD_LIBRARY_PATH"] = str(arm.llama)
    command = [str(arm.llama / program), *arguments]
    start = time.monotonic()
    with (cwd / "output.txt").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**inherited, **settings, **arm.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            code = -signal.SIGALRM
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    output = (cwd / "output.txt").read_text(encoding="utf-8", errors="replace")
    return Ran(code, output, time.monotonic() - start)


def make_arms(work: Path, *, source: str, jobs: int | None, cuda: bool, progress: Progress) -> tuple[Arm, Arm]:
    """Both trees, compiled: the unpatched one and the one with TurboPrefill.

    Raises:
        ToolError: a tree cannot be had, or does not compile.
    """
    # most files are the same in both trees: ccache, where it is installed, compiles those once
    os.environ.setdefault("CCACHE_BASEDIR", str(work))
    os.environ.setdefault("CCACHE_NOHASHDIR", "1")
    arms = []
    for name in ("unpatched", "patched"):
        tree = work / "trees" / name
        checkout(tree, source=source, progress=progress)
        if name == "patched":
            install(tree)
        elif status(tree).version is not None:
            raise ToolError(f"{tree} carries TurboPrefill: expected llama.cpp as it is. Remove the folder.")
        options = BuildOptions(
            cuda=cuda,
            targets=TARGETS,
            jobs=jobs,
            defines=("LLAMA_BUILD_TESTS=ON", "LLAMA_BUILD_EXAMPLES=ON", "BUILD_SHARED_LIBS=ON"),
        )
        progress.note(f"building the {name} tree")
        built = build(tree, options, base=status(tree).match.known, progress=progress)
        native = compile_native(
            work / "native" / name, tree=tree, llama=built.build_dir, targets=("probe", "turboprefill-virtual")
        )
        arms.append(Arm(name, built.build_dir / "bin", native))
    arms[1].environment["TURBOPREFILL"] = "1"
    return arms[0], arms[1]
