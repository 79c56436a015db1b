"""The comparison of virtual devices with real ones, in short: its arithmetic and its files, not its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "virtual" / "fidelity.py"

pytestmark = pytest.mark.timeout(150)


def test_a_short_run_measures_every_arm_and_their_results_agree(tmp_path: Path) -> None:
    if not SCRIPT.is_file():
        pytest.skip("the source tree's benchmarks are not here")
    out = tmp_path / "out.json"
    command = [sys.executable, SCRIPT, "--devices", "4", "--stage-ms", "1", "--ubatches", "2", "--repeats", "1"]
    done = subprocess.run(
        [*map(str, command), "--json", str(out)], capture_output=True, text=True, timeout=140, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (machine,) = json.loads(out.read_text())["machines"]
    assert machine["logits_identical"]
    assert all(len(arm["stage_times_per_ubatch"]) == 1 for arm in machine["arms"])
    for ratio in machine["ratios"]:
        assert ratio["deviation_percent"] == pytest.approx(100 * (ratio["virtual"] / ratio["measured"] - 1), abs=0.2)
    # README's own table
    measured = {ratio["name"]: ratio["measured"] for ratio in machine["ratios"]}
    assert measured["without peer copies: TurboPrefill against as shipped, ubatch 512"] == pytest.approx(2.99, abs=0.01)
    assert measured["TurboPrefill against as shipped, ubatch 128"] == pytest.approx(7745 / 3503, abs=0.01)


def test_the_table_of_the_documentation_is_that_of_the_raw_file() -> None:
    (path,) = (ROOT / "benchmarks" / "results").glob("*-virtual.json")
    text = (ROOT / "docs" / "virtual.md").read_text()
    assert path.name in text
    for machine in json.loads(path.read_text())["machines"]:
        assert machine["logits_identical"]
        for ratio in machine["ratios"]:
            figures = f"{ratio['measured']:.2f} | {ratio['virtual']:.2f} | {ratio['deviation_percent']:+.0f} %"
            assert f"| {ratio['name']} | {figures} |" in text
