"""The builds: three trees without devices, one CUDA module for all of them, and the driver for each tree.

With GGML_BACKEND_DL the CUDA backend is a module that neither the overlay nor GGML_SCHED_MAX_COPIES touches, so it is
compiled once. Loaded into a process, it uses the libggml-base that is there already; the driver checks that.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import repository  # noqa: F401  (makes the package importable)
from turboprefill.tools.overlay import load_overlay
from turboprefill.tools.patcher import install

_HERE = Path(__file__).resolve().parent
_FOLDERS = ("app", "tests", "examples", "tools", "pocs")  # that a trimmed archive may lack
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_BACKEND_DL=ON",
    "-DGGML_NATIVE=OFF",
    "-DLLAMA_CURL=OFF",
    *(f"-DLLAMA_BUILD_{part}=OFF" for part in ("COMMON", "TESTS", "EXAMPLES", "TOOLS", "SERVER", "UI", "APP")),
)
TREES: dict[str, tuple[str, ...]] = {"plain": (), "copies16": ("-DGGML_SCHED_MAX_COPIES=16",), "turbo": ()}

Say = Callable[[str], None]


class BuildFailedError(Exception):
    """A command failed; the message ends with its last lines."""


@dataclass(frozen=True)
class Builds:
    """Where the results are. `modules` has the CUDA module with (True) and without (False) peer copies."""

    root: Path
    flags: dict[str, list[str]]
    modules: dict[bool, Path]

    def folder(self, tree: str) -> Path:
        """Folder of a tree's backends."""
        return self.root / "build" / tree / "bin"

    def driver(self, tree: str) -> Path:
        """The driver that is linked with a tree's libraries."""
        return self.root / "build" / tree / "driver"


@dataclass(frozen=True)
class Sources:
    """Unpacked trees: one for each name, which overlay `turbo` has, and which llama.cpp they are."""

    root: Path
    trees: dict[str, Path]
    overlay_version: str
    base: str


def unpack(archive: Path, root: Path) -> Sources:
    """Unpack and patch what is not there yet.

    Args:
        archive: a tar of llama.cpp, in one top folder.
        root: folder to work in.

    Raises:
        BuildFailedError: the archive cannot be read.
        turboprefill.errors.TurboPrefillError: the overlay does not fit.
    """
    trees = {name: root / "src" / name for name in ("plain", "turbo", "cuda")}
    fresh = _unpack(archive, trees["plain"])
    for copy in (trees["turbo"], trees["cuda"]):
        if fresh or not copy.exists():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(trees["plain"], copy)
    with (trees["cuda"] / "ggml" / "src" / "ggml-cuda" / "CMakeLists.txt").open("r+") as lists:
        line = f"include({_HERE / 'nopeer.cmake'})\n"
        if line not in lists.read():
            lists.write(line)
    return Sources(root, trees, *_patch(trees["turbo"]))


def build(sources: Sources, *, cuda: str | None, jobs: int, say: Say) -> Builds:
    """Build everything; a second call in the same folder only builds what changed.

    Args:
        sources: from `unpack`.
        cuda: CMAKE_CUDA_ARCHITECTURES; None: no CUDA, but the RPC backend.
        jobs: parallel jobs of each build.
        say: is told what is done.

    Raises:
        BuildFailedError: a command failed.
    """
    start, root = time.monotonic(), sources.root
    options = [*_OPTIONS, f"-DGGML_RPC={'OFF' if cuda else 'ON'}"]
    flags = {name: [*options, *extra] for name, extra in TREES.items()}
    targets = {name: ["llama"] for name in TREES}
    if cuda:
        flags["cuda"] = [
            *options,
            "-DGGML_CUDA=ON",
            "-DGGML_CUDA_NCCL=OFF",
            f"-DCMAKE_CUDA_ARCHITECTURES={cuda}",
        ]
        targets["cuda"] = ["ggml-cuda", "ggml-cuda-nopeer"]

    def make(name: str) -> None:
        began = time.monotonic()
        folder, source = root / "build" / name, sources.trees.get(name, sources.trees["plain"])
        _run(["cmake", "-S", source, "-B", folder, "-G", "Ninja", *flags[name]], folder)
        _run(["cmake", "--build", folder, "-j", jobs, "--target", *targets[name]], folder)
        if name in TREES:
            _link_driver(source, folder)
        say(f"built {name} in {time.monotonic() - began:.0f} s")

    # the long one first; the others fill the gaps that it leaves
    with ThreadPoolExecutor(len(flags) if jobs > 4 else 1) as pool:
        list(pool.map(make, reversed(list(flags))))
    say(f"all builds: {time.monotonic() - start:.0f} s")
    folder = root / "build" / "cuda" / "bin"
    modules = {peer: folder / f"libggml-cuda{'' if peer else '-nopeer'}.so" for peer in (True, False)} if cuda else {}
    return Builds(root, flags, modules)


def _unpack(archive: Path, folder: Path) -> bool:
    stamp = folder.with_name(folder.name + ".sha256")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _run(["tar", "-xf", archive, "-C", folder, "--strip-components=1"], folder.parent)
    for name in _FOLDERS:
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "CMakeLists.txt").touch()
    stamp.write_text(digest)
    return True


def _patch(tree: Path) -> tuple[str, str]:
    """Install the overlay; its version, and which llama.cpp this is."""
    overlay = load_overlay()
    found = install(tree, force=True, overlay=overlay).before
    return overlay.version, str(found.match.known or "unknown")


def _link_driver(tree: Path, folder: Path) -> None:
    libraries = folder / "bin"
    command: list[str | Path] = [os.environ.get("CXX", "g++"), "-O2", "-std=c++17", _HERE / "driver.cpp"]
    command += [f"-I{tree}/include", f"-I{tree}/ggml/include", f"-L{libraries}"]
    command += ["-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{libraries}", "-o", folder / "driver"]
    _run(command, folder)


def _run(command: Sequence[object], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    words = [str(word) for word in command]
    with log.open("ab") as out:
        if subprocess.run(words, stdout=out, stderr=subprocess.STDOUT, check=False).returncode == 0:
            return
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
    raise BuildFailedError(f"{' '.join(words)}\n{tail}")
