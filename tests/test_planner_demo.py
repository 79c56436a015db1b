"""What the demo says about llama.cpp's own split beside a planned one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from turboprefill.demo import settings

pytestmark = pytest.mark.timeout(200)


def run(folder: Path, *args: object) -> tuple[dict, str]:
    command = [sys.executable, "-m", "turboprefill", "demo", *map(str, args), "--json", "out.json", "--no-picture"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=180, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "out.json").read_text()), " ".join(done.stdout.split())


@pytest.mark.skipif(len(settings.gpu_names()) >= 2, reason="the demo would take this machine's GPUs")
def test_the_demo_compares_a_planned_split_with_llama_cpps_own(model_file, tmp_path: Path) -> None:
    options = ("--model", model_file("tiny"), "--n-prompt", 300, "--ubatch", 64, "--repeats", 1)
    data, words = run(tmp_path, *options)
    assert data["tensor_split"] == [4.0, 5.0]
    assert len(data["default_split"]["tok_per_s"]) == 1
    ratio = data["turbo"]["tok_per_s"][0] / data["default_split"]["tok_per_s"][0]
    assert data["speedup_over_default_split"] == pytest.approx(ratio)
    assert "with a planned split reads this prompt" in words
    assert "-ts 4,5" in words
    assert data["logits_identical"] is data["state_identical"] is True
    # a split that was asked for is not compared with another one
    data, words = run(tmp_path, *options, "--tensor-split", "1,1")
    assert data["default_split"] is None
    assert "planned" not in words


def test_the_split_of_the_demo_is_the_planned_one(virtual_names: list[str], configure, model_file) -> None:
    configure("memory_gb=16")
    notes: list[str] = []
    split, differs = settings.planned_split(model_file("tiny"), virtual_names[:2], None, 512, 64, notes.append)
    assert split == [4.0, 5.0]
    assert differs  # llama.cpp's own gives 5 and 3 layers
    assert settings.planned_split(model_file("tiny"), virtual_names[:1], None, 512, 64, notes.append) == (None, False)
    assert not notes
    configure("memory_gb=0.001")
    assert settings.planned_split(model_file("tiny"), virtual_names, None, 512, 64, notes.append) == (None, False)
    assert "does not fit" in notes[0]


def test_an_uneven_machine_computes_the_same_bits(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[1] / "benchmarks" / "planner" / "uneven.py"
    command = [sys.executable, str(script), "--layers", "4", "--us", "50", "--prompt", "96", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--out", "ratios.json"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads((tmp_path / "ratios.json").read_text())
    assert data["identical"] is True
    assert set(data["ratios"]) == {
        f"{split} split, {path}" for split in ("default", "planned") for path in ("standard path", "TurboPrefill")
    }
