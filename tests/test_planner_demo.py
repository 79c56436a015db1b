"""What the demo reports about stock llama.cpp beside what was planned."""

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
def test_the_demo_compares_a_plan_with_stock_llama_cpp(model_file, tmp_path: Path) -> None:
    options = ("--model", model_file("tiny"), "--n-prompt", 600, "--repeats", 1)
    data, words = run(tmp_path, *options)
    assert (data["tensor_split"], data["n_ubatch"]) == ([4.0, 5.0], 128)
    assert data["as_shipped"]["n_ubatch"] == 512
    assert len(data["as_shipped"]["tok_per_s"]) == 1
    ratio = data["turbo"]["tok_per_s"][0] / data["as_shipped"]["tok_per_s"][0]
    assert data["speedup_over_as_shipped"] == pytest.approx(ratio)
    assert "stock llama.cpp (its own split, ubatches of 512)" in words
    assert "-ts 4,5" in words
    assert data["logits_identical"] is data["state_identical"] is True
    # a size that was asked for is everybody's
    data, words = run(tmp_path, *options, "--ubatch", 64)
    assert (data["n_ubatch"], data["as_shipped"]["n_ubatch"]) == (64, 64)
    # a split that was asked for is not compared with another one
    data, words = run(tmp_path, *options, "--tensor-split", "1,1")
    assert data["as_shipped"] is None
    assert "planned" not in words


def test_the_split_of_the_demo_is_the_planned_one(virtual_names: list[str], configure, model_file) -> None:
    configure("memory_gb=16")
    notes: list[str] = []
    choice = settings.planned(model_file("tiny"), virtual_names[:2], None, 512, notes.append)
    assert choice is not None
    assert choice.split == [4.0, 5.0]
    assert choice.differs  # llama.cpp's own gives 5 and 3 layers
    assert choice.n_ubatch < 512  # so that a prompt of 512 tokens is more than one
    assert settings.planned(model_file("tiny"), virtual_names[:1], None, 512, notes.append) is None
    assert not notes
    configure("memory_gb=0.001")
    assert settings.planned(model_file("tiny"), virtual_names, None, 512, notes.append) is None
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
