"""The shell scripts: what they say when something is missing or fails."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from processtree import running

ROOT = Path(__file__).resolve().parents[1]
BASH = shutil.which("bash") or "/bin/bash"


def lib(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BASH, "-c", f"set -euo pipefail; source {ROOT}/scripts/lib.sh; {code}"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    "name", ["scripts/demo", "scripts/test", "scripts/random_tests", "scripts/mutants", "scripts/lint", ".ci/run"]
)
def test_a_script_is_executable_strict_bash(name: str) -> None:
    path = ROOT / name
    assert os.access(path, os.X_OK)
    assert path.read_text().startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in path.read_text()
    subprocess.run([BASH, "-n", str(path)], check=True)


def test_this_machine_has_the_tools() -> None:
    done = lib("need_tools")
    assert (done.returncode, done.stderr) == (0, "")


def test_missing_tools_come_with_the_line_to_type(tmp_path: Path) -> None:
    done = lib("need_tools", PATH=str(tmp_path), CC="", CXX="")
    assert done.returncode == 1
    assert "apt-get install -y python3 python3-venv python3-dev g++ git" in done.stderr


def test_a_compiler_under_another_name_is_enough(tmp_path: Path) -> None:
    for name in ("clang", "clang++", "git", "python3"):
        (tmp_path / name).write_text(f"#!{BASH}\nexit 0\n")
        (tmp_path / name).chmod(0o755)
    assert lib("need_tools", PATH=str(tmp_path), CC="", CXX="").returncode == 0


def test_a_failed_step_shows_the_end_of_its_log(tmp_path: Path) -> None:
    done = lib(f"with_live_line {tmp_path}/log bash -c 'echo out of space; exit 7'; echo not reached")
    assert done.returncode == 1
    assert "| out of space" in done.stderr
    assert "exit code 7" in done.stderr
    assert "not reached" not in done.stdout


def test_the_live_line_shows_the_latest_step(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("[1/9] Building a.c\n[2/9] Building b.c\nnoise\n")
    assert lib(f"live_text {tmp_path}/log 65").stdout.strip() == "1:05  [2/9] Building b.c"
    assert lib(f"live_text {tmp_path}/missing 0").stdout.strip() == "0:00  starting"


def test_stopping_a_script_stops_what_it_waits_for(tmp_path: Path) -> None:
    code = f"source {ROOT}/scripts/lib.sh; with_live_line {tmp_path}/log bash -c 'echo $$; sleep 100'"
    script = subprocess.Popen([BASH, "-c", code], stderr=subprocess.DEVNULL)
    log = tmp_path / "log"
    while not (log.exists() and log.read_text().strip()):
        time.sleep(0.05)
    pid = int(log.read_text())
    script.send_signal(signal.SIGTERM)
    assert script.wait(20) == 130
    deadline = time.monotonic() + 10
    while running({pid}) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running({pid})


@pytest.mark.parametrize("program", ["sanitize", "upstream", "llamaserver"])
def test_a_suite_needs_no_native_module_in_the_source_tree(program: str, tmp_path: Path) -> None:
    """They run on the source tree; the native module is only in the installed package."""
    shutil.copytree(ROOT / "src/turboprefill", tmp_path / "turboprefill", ignore=shutil.ignore_patterns("*.so", "lib"))
    path = os.pathsep.join(map(str, (tmp_path, ROOT / "tests", ROOT / "tests/helpers", ROOT / "benchmarks/server")))
    done = subprocess.run(
        [sys.executable, "-m", program, "--help"],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
