"""Building: options, progress, failures, and ending what was started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from processtree import running
from toytree import make_pins, make_tree
from turboprefill.tools import build as builder
from turboprefill.tools.build import BuildOptions, build, configure_command
from turboprefill.tools.errors import BuildError
from turboprefill.tools.hardware import Gpus
from turboprefill.tools.process import CommandFailedError, output_of, run
from turboprefill.tools.progress import Silent
from waiting import until

# Enough of CMake's two commands: remembers its arguments, makes progress, fails on demand.
FAKE_CMAKE = """#!{python}
import os, sys
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write(" ".join(sys.argv[1:]) + chr(10))
if "help" in sys.argv:
    print("... llama-bench: phony\\n... ggml-rpc-server: phony")
elif "--build" in sys.argv:
    print("[1/4] one\\n[2/4] two", flush=True)
    if os.environ.get("FAKE_FAIL"):
        print("x.cpp:7:1: error: expected ';'")
        for i in range(40):
            print("more output", i)
        sys.exit(1)
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose cmake is fake and that has no CUDA; the path of the file with cmake's calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    cmake = folder / "cmake"
    cmake.write_text(FAKE_CMAKE.format(python=sys.executable))
    cmake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "calls"))
    monkeypatch.setattr(builder, "find_nvcc", lambda: None)
    monkeypatch.setattr(builder, "find_gpus", Gpus)
    return tmp_path / "calls"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "llama.cpp")


class Steps(Silent):
    def __init__(self) -> None:
        self.seen: list[tuple[float, float | None]] = []

    def task(self, title: str, unit: str = ""):  # type: ignore[no-untyped-def]
        from contextlib import nullcontext

        return nullcontext(lambda done, total: self.seen.append((done, total)))


def test_a_build_reports_every_step(commands: Path, tree: Path) -> None:
    steps = Steps()
    build(tree, progress=steps)
    assert steps.seen == [(1, 4), (2, 4)]


def test_targets_that_the_tree_has_are_built_by_default(commands: Path, tree: Path) -> None:
    assert build(tree).targets == ("llama-bench", "ggml-rpc-server")


def test_without_rpc_its_server_is_not_built(commands: Path, tree: Path) -> None:
    assert build(tree, BuildOptions(rpc=False)).targets == ("llama-bench",)


def test_chosen_targets_and_jobs_reach_cmake(commands: Path, tree: Path) -> None:
    build(tree, BuildOptions(targets=("a", "b"), jobs=3))
    assert commands.read_text().splitlines()[-1].endswith("--parallel 3 --target a b")


@pytest.mark.parametrize(
    ("options", "cuda", "expected"),
    [
        (BuildOptions(), False, "-DGGML_NATIVE=OFF"),
        (BuildOptions(native=True), False, "-DGGML_NATIVE=ON"),
        (BuildOptions(), False, "-DGGML_RPC=ON"),
        (BuildOptions(rpc=False), False, "-DGGML_RPC=OFF"),
        (BuildOptions(), True, "-DGGML_CUDA=ON"),
        (BuildOptions(), False, "-DGGML_CUDA=OFF"),
        (BuildOptions(defines=("A=1",)), False, "-DA=1"),
    ],
)
def test_options_become_cmake_settings(tmp_path: Path, options: BuildOptions, cuda: bool, expected: str) -> None:
    assert expected in configure_command(tmp_path, tmp_path / "build", options, cuda=cuda)


def test_a_known_base_gives_the_programs_its_build_number(tmp_path: Path) -> None:
    command = configure_command(tmp_path, tmp_path / "b", BuildOptions(), cuda=False, base=make_pins().default)
    assert {"-DLLAMA_BUILD_NUMBER=1", "-DLLAMA_BUILD_COMMIT=111111111"} <= set(command)


def test_an_existing_build_folder_keeps_its_generator(tmp_path: Path) -> None:
    (tmp_path / "CMakeCache.txt").touch()
    assert "-G" not in configure_command(tmp_path, tmp_path, BuildOptions(), cuda=False)


def test_a_failing_compiler_is_quoted_with_the_log(commands: Path, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FAIL", "1")
    with pytest.raises(BuildError) as error:
        build(tree)
    text = str(error.value)
    assert "error: expected ';'" in text
    assert "more output 39" in text
    assert "more output 20" not in text
    assert f"full log: {tree / 'build/turboprefill-build.log'}" in text


def test_the_log_has_commands_and_output(commands: Path, tree: Path) -> None:
    log = build(tree).log.read_text()
    assert "$ cmake -S" in log
    assert "[2/4] two" in log


def test_cuda_without_its_compiler_is_named(commands: Path, tree: Path) -> None:
    with pytest.raises(BuildError, match="--cuda needs nvcc"):
        build(tree, BuildOptions(cuda=True))


def test_a_missing_cmake_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder.shutil, "which", lambda _name: None)
    monkeypatch.setattr(builder, "find_nvcc", lambda: None)
    with pytest.raises(BuildError, match="cmake was not found; install"):
        build(tree)


def test_a_command_that_cannot_start_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandFailedError, match="cannot start /nowhere/program: No such file") as error:
        run(["/nowhere/program"], log=tmp_path / "log")
    assert error.value.code is None


def test_an_interrupted_command_ends_with_its_children(tmp_path: Path) -> None:
    program = "import subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    children: list[int] = []

    def interrupt(line: str) -> None:
        children.append(int(line))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([sys.executable, "-c", program], log=tmp_path / "log", on_line=interrupt)
    until(lambda: not running({children[0]}), "the child of the command still runs")


def test_a_short_command_that_hangs_is_given_up() -> None:
    assert output_of("sleep", "60", timeout=0.1).code is None


def test_ctrl_c_during_a_build_ends_with_130(tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "cmake").write_text('#!/bin/sh\necho $$ > "$PID_FILE"\nexec sleep 60\n')
    (folder / "cmake").chmod(0o755)
    pid_file = tmp_path / "pid"
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PID_FILE": str(pid_file)}
    command = [sys.executable, "-m", "turboprefill", "build", str(tree), "--cpu"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), "cmake was not started")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert not running({int(pid_file.read_text())})


@pytest.mark.parametrize(
    ("memory", "cuda", "n"),
    [((64 << 30, 5 << 30), False, 5), ((64 << 30, 7 << 30), True, 2), ((1 << 30, 1 << 20), True, 1), (None, False, 4)],
)
def test_there_are_no_more_compilers_than_memory_for_them(
    monkeypatch: pytest.MonkeyPatch, memory: tuple[int, int] | None, cuda: bool, n: int
) -> None:
    monkeypatch.setattr(builder, "memory_bytes", lambda: memory)
    monkeypatch.setattr(builder.os, "sched_getaffinity", lambda _: set(range(96)))
    assert builder._jobs(cuda) == n
    monkeypatch.setattr(builder.os, "sched_getaffinity", lambda _: {0})
    assert builder._jobs(cuda) == 1
