"""The run without a pipeline: what it selects, and that its verdict can be a bad one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HELPERS = Path(__file__).parent / "helpers"
CONFIG = "[pytest]\nmarkers =\n  pipelined\n  unpipelined\n  slow\nfilterwarnings = error\n"
BEGIN = "import os, pytest\nn_pipelined = 0 if os.environ.get('TURBOPREFILL_BACKENDS') else 1\n"
COUNTS = "@pytest.mark.pipelined\ndef test_counts():\n    assert n_pipelined == 1\n"


def run(folder: Path, *tests: str, name: str = "test_x.py", options: tuple[str, ...] = ()) -> tuple[int, str]:
    """The exit code of a run with these tests alone, and the lines about them."""
    (folder / "pytest.ini").write_text(CONFIG)
    (folder / name).write_text("\n\n".join([BEGIN, *tests]))
    environment = {name: value for name, value in os.environ.items() if name != "TURBOPREFILL_BACKENDS"}
    done = subprocess.run(
        [sys.executable, "-m", "pipelineoff", "--rootdir", str(folder), str(folder), *options],
        cwd=folder, env={**environment, "PYTHONPATH": str(HELPERS)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_a_test_that_counts_notices(tmp_path: Path) -> None:
    code, text = run(tmp_path, COUNTS)
    assert code == 0, text
    assert "\n1 of 1 tests noticed that the pipeline is off, 0 were skipped\n" in text


@pytest.mark.parametrize(
    ("test", "problem"),
    [
        ("@pytest.mark.pipelined\ndef test_blind():\n    pass\n", "test_blind: passes without a pipeline"),
        (
            "@pytest.mark.pipelined\ndef test_crash():\n    raise OSError('broken')\n",
            "test_crash: fails, but not because of a count: OSError: broken",
        ),
        (
            "@pytest.mark.pipelined\ndef test_other():\n    assert 'a' == 'b'\n",
            "test_other: fails, but not because of a count: AssertionError: assert 'a' == 'b'",
        ),
    ],
    ids=["passes", "crashes", "fails otherwise"],
)
def test_one_that_does_not_notice_is_listed(tmp_path: Path, test: str, problem: str) -> None:
    code, text = run(tmp_path, COUNTS, test)
    assert code == 1
    assert f"test_x.py::{problem}\n" in text
    assert "\n1 of 2 tests noticed" in text


def test_only_marked_tests_run_and_the_closest_marker_counts(tmp_path: Path) -> None:
    module = "pytestmark = pytest.mark.pipelined\n"
    unpipelined = "@pytest.mark.unpipelined\ndef test_standard():\n    pass\n"
    code, text = run(tmp_path, module, unpipelined, COUNTS)
    assert code == 0, text
    assert "1 failed, 1 deselected" in text


def test_a_test_of_the_engine_has_to_be_marked(tmp_path: Path) -> None:
    code, text = run(tmp_path, COUNTS, "def test_unmarked():\n    pass\n", name="test_overlay_x.py")
    assert code == 1
    assert "test_overlay_x.py::test_unmarked: is marked neither pipelined nor unpipelined\n" in text


def test_a_run_of_nothing_is_no_success(tmp_path: Path) -> None:
    code, text = run(tmp_path, "def test_unmarked():\n    pass\n")
    assert code == 1
    assert "no test noticed that the pipeline is off" in text


def test_the_quick_selection_has_each_test_once(tmp_path: Path) -> None:
    many = COUNTS.replace("def test_counts()", "@pytest.mark.parametrize('i', range(5))\ndef test_many(i)")
    slow = COUNTS.replace("def test_counts()", "@pytest.mark.slow\ndef test_slow()")
    code, text = run(tmp_path, COUNTS, many, slow, options=("--quick",))
    assert code == 0, text
    assert "\n2 of 2 tests noticed" in text
    assert "\n7 of 7 tests noticed" in run(tmp_path, COUNTS, many, slow)[1]
