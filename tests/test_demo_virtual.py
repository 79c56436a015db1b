"""The demo on virtual devices, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(200)


def run(folder: Path, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "turboprefill", "demo", *map(str, args)]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=180, stdin=subprocess.DEVNULL, check=False
    )


@pytest.mark.pipelined
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("3", "peer=refused"),
        ("2,peer=refused,us_per_token=20", "do not queue"),
        ("4,us_per_token=20", "may overlap"),
    ],
)
def test_the_demo_shows_virtual_devices(
    model_file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, words: str
) -> None:
    monkeypatch.setenv("TURBOPREFILL_UBATCH", "auto:1")  # would halve the ubatches of one path
    done = run(
        tmp_path, "--virtual", spec, "--model", model_file(), "--n-prompt", 300, "--ubatch", 64,
        "--repeats", 1, "--json", "out.json",
    )  # fmt: skip
    assert (tmp_path / "out.json").exists(), done.stdout + done.stderr
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["turbo"]["pipelined_ubatches"] == 5, done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    assert data["devices"] == [f"VIRT{i}" for i in range(int(spec[0]))]
    assert data["logits_identical"]
    assert data["state_identical"]
    assert data["turbo"]["standard_ubatches"] == 0
    assert words in " ".join(done.stdout.split())
    assert (tmp_path / "turboprefill-demo.png").stat().st_size > 0


def test_a_prompt_of_one_ubatch_is_no_success(model_file, tmp_path: Path) -> None:
    done = run(
        tmp_path, "--virtual", "2", "--model", model_file(), "--n-prompt", 40, "--ubatch", 64, "--repeats", 1,
        "--no-picture", "--json", "out.json",
    )  # fmt: skip
    said = " ".join(done.stdout.split())
    assert done.returncode == 1, done.stdout + done.stderr
    assert "NOTHING WAS PIPELINED: 1 of 1 ubatches took the standard path: the batch is a single ubatch" in said
    assert "times as fast" not in said
    assert json.loads((tmp_path / "out.json").read_text())["turbo"]["pipelined_ubatches"] == 0


@pytest.mark.parametrize(("options", "name"), [([], "turboprefill-demo.html"), (["--png", "x.html"], "x.html")])
def test_without_matplotlib_the_demo_draws_html(model_file, tmp_path: Path, options: list[str], name: str) -> None:
    program = "import sys; sys.modules['matplotlib'] = None; from turboprefill.cli import main; main()"
    arguments = [
        "demo",
        "--virtual",
        "2",
        "--model",
        str(model_file()),
        "--n-prompt",
        "200",
        "--repeats",
        "1",
        *options,
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=180, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert "VIRT1, ubatch 0" in (tmp_path / name).read_text()


@pytest.mark.parametrize("spec", ["0", "x", "2,speed=1"])
def test_a_wrong_specification_is_an_error(tmp_path: Path, spec: str) -> None:
    done = run(tmp_path, "--virtual", spec)
    assert done.returncode == 1
    assert "virtual devices" in done.stderr
    assert "Traceback" not in done.stderr


def test_virtual_devices_and_others_do_not_mix(tmp_path: Path) -> None:
    done = run(tmp_path, "--virtual", "2", "--devices", "CUDA0")
    assert done.returncode == 2
    assert "--virtual" in done.stderr
