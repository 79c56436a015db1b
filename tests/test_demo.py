"""The demo as a user runs it, with small models on two local CPU workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from processtree import children, running
from turboprefill.demo.settings import gpu_names
from waiting import until

pytestmark = pytest.mark.skipif(len(gpu_names()) >= 2, reason="the demo would take this machine's GPUs")


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "turboprefill", "demo", *map(str, args)]


def run(folder: Path, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*args), cwd=folder, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
    )


@pytest.mark.pipelined
@pytest.mark.parametrize("preset", ["tiny", "gptoss-tiny", "mamba-tiny"])
def test_the_demo_finds_both_paths_identical(model_file, tmp_path: Path, preset: str) -> None:
    done = run(
        tmp_path, "--model", model_file(preset), "--n-prompt", 500, "--ubatch", 64, "--n-batch", 256,
        "--repeats", 2, "--json", "out.json",
    )  # fmt: skip
    assert (tmp_path / "out.json").exists(), done.stdout + done.stderr
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["turbo"]["pipelined_ubatches"] > 0, done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    assert data["prompt_tokens"] == 500
    assert data["n_ubatch"] == 64
    assert len(data["devices"]) == 2
    assert len(data["standard"]["tok_per_s"]) == len(data["turbo"]["tok_per_s"]) == 2
    assert data["turbo"]["pipelined_ubatches"] + data["turbo"]["standard_ubatches"] == 8
    assert data["logits_identical"] is data["state_identical"] is True
    assert (tmp_path / "turboprefill-demo.png").stat().st_size > 10_000
    assert "byte-identical" in done.stdout


def test_a_prompt_longer_than_the_text_repeats_it(model_file, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("A short text that is read over and over again.")
    done = run(
        tmp_path, "--model", model_file("tiny"), "--prompt-file", "prompt.txt", "--n-prompt", 300, "--ubatch", 64,
        "--repeats", 1, "--no-picture", "--json", "out.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["prompt_tokens"] == 300
    assert data["text_tokens"] < 50
    assert list(tmp_path.glob("*.png")) == []


def test_a_missing_model_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    done = run(tmp_path, "--model", tmp_path / "missing.gguf")
    assert done.returncode == 1
    assert "missing.gguf" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_prompt_file_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    done = run(tmp_path, "--prompt-file", "missing.txt")
    assert done.returncode == 1
    assert "cannot read the prompt" in done.stderr
    assert "workers" not in done.stderr


def program_of(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:
        return ""


def wait_for_workers(demo: subprocess.Popen[bytes]) -> list[int]:
    """Their process ids, as soon as the measurement has been started, too."""
    servers: list[int] = []

    def started() -> bool:
        assert demo.poll() is None, "the demo has ended"
        servers[:] = [pid for pid in children(demo.pid) if "rpc-server" in program_of(pid)]
        return len(servers) == 2 and len(children(demo.pid)) == 3

    until(started, "the demo did not start two workers and a measurement")
    return servers


@pytest.fixture
def long_demo(model_file, tmp_path: Path):
    args = ("--model", model_file("tiny"), "--n-prompt", 3000, "--repeats", 200, "--no-picture")
    with (tmp_path / "log").open("wb") as log:
        demo = subprocess.Popen(command(*args), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            yield demo
        finally:
            demo.kill()
            demo.wait()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_nothing_is_left_when_the_demo_is_stopped(long_demo, sign: signal.Signals) -> None:
    wait_for_workers(long_demo)
    family = children(long_demo.pid)
    os.kill(long_demo.pid, sign)
    code = long_demo.wait(60)
    until(lambda: not running(family), "a process of the demo still runs")
    assert code == (-signal.SIGKILL if sign is signal.SIGKILL else 130)


def test_a_killed_worker_is_named(long_demo, tmp_path: Path) -> None:
    servers, log = wait_for_workers(long_demo), tmp_path / "log"
    until(lambda: "run 1 of 200: TurboPrefill" in log.read_text(), "no prompt was timed")
    os.kill(servers[0], signal.SIGKILL)
    assert long_demo.wait(60) == 1
    assert "was killed by signal 9. Its last lines:" in log.read_text()
