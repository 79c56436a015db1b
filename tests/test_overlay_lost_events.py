"""Events that a device never reports: what stands still, what does not, and that all ends well if they come after all.

Each case is a process of its own, with a limit: llama.cpp's interface knows no wait that can be given up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lostevents
from lostevents import UBATCH
from virtualdevices import N

PROGRAM = lostevents.__file__

pytestmark = [pytest.mark.timeout(150), pytest.mark.usefixtures("peer_copies"), pytest.mark.pipelined]


def run(model: Path, device: int, turboprefill: bool) -> list[dict[str, Any]]:
    command = [sys.executable, PROGRAM, str(model), str(device), str(int(turboprefill))]
    environment = {**os.environ, "TURBOPREFILL_WATCHDOG_S": "0.2"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(report: dict[str, Any]) -> None:
    assert report["stuck"]
    assert report["sibling_is_right"]
    assert report["stays_stuck"]  # closing waits too
    assert report["asked_while_stuck"] == 0  # the abort callback
    assert report["released"] == 1
    if not report["close"]:
        assert report["right"]
        assert report["works_afterwards"]


@pytest.mark.parametrize("device", [0, 1, N - 1], ids=["first", "middle", "last"])
def test_a_pipeline_stands_still_and_goes_on_when_the_event_comes(model_file, device: int) -> None:
    reports = run(model_file(), device, turboprefill=True)
    assert len(reports) >= 2  # that its inputs have arrived, and that its split is done; with an outbox more
    for report in reports:
        check(report)
        assert f"VIRT{device} has not finished what it was given" in report["health"]
        assert report["slots"] == 0 or max(report["graphs"]) <= UBATCH + report["slots"]
    # without its inputs nothing is computed, and no stage after this one is given what it would compute with
    assert reports[0]["graphs"][device + 1 :] == [UBATCH] * (N - 1 - device)
    assert reports[0]["graphs"][device] > UBATCH


@pytest.mark.unpipelined
def test_the_standard_path_does_the_same(model_file) -> None:
    (report,) = run(model_file(), 1, turboprefill=False)
    check(report)
