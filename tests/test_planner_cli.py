"""`turboprefill plan` and `simulate` as a user runs them, on machines that are only described."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from turboprefill.cli import app


def run(*args: object) -> Result:
    return CliRunner().invoke(app, list(map(str, args)))


def planned(*args: object) -> dict:
    done = run("plan", *args, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_plan_needs_no_gpu(model_file, tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    done = run("plan", model_file("tiny"), "--devices", "3x80GB", "--out", picture)
    assert done.exit_code == 0, done.output
    words = " ".join(done.stdout.split())
    assert "-ts 2,3,4" in words  # the last layer is cheap
    assert "only ratios" in words
    assert "tok/s" not in words  # nothing was measured
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_known_card_gives_a_speed() -> None:
    done = run("plan", "llama70", "--devices", "4xH200", "--n-ctx", 16384)
    assert done.exit_code == 0, done.output
    words = " ".join(done.stdout.split())
    assert "predicted" in words
    assert "H200, measured" in words
    assert "estimated" in " ".join(run("plan", "llama70", "--devices", "4xRTX4090").stdout.split())


def test_a_table_of_devices(model_file, tmp_path: Path) -> None:
    table = tmp_path / "devices.json"
    rows = [{"name": "big", "memory_gb": 1}, {"memory_gb": 1, "speed": 0.5, "name": "slow"}, {"memory_gb": 1}]
    table.write_text(json.dumps({"devices": rows}))
    plan = planned(model_file("tiny"), "--devices", table)
    assert [stage["device"] for stage in plan["stages"]] == ["big", "slow", "GPU2"]
    assert [stage["n_layers"] for stage in plan["stages"]] == [3, 1, 4]
    assert plan["tensor_split"] == [3, 1, 5]
    assert [stage["n_layers"] for stage in plan["default"]["stages"]] == [3, 3, 2]
    assert not plan["timed"]


def test_auto_chooses_a_smaller_ubatch_for_a_shorter_prompt() -> None:
    long = planned("llama70", "--devices", "8xH200", "--n-ctx", 32768, "--n-ubatch", "auto")
    short = planned("llama70", "--devices", "8xH200", "--n-ctx", 32768, "--n-ubatch", "auto", "--prompt", 1024)
    assert short["n_ubatch"] < long["n_ubatch"] <= 512


def test_what_does_not_fit_says_by_how_much() -> None:
    done = run("plan", "llama70", "--devices", "2x12GB")
    assert done.exit_code == 1
    assert "bytes" in done.stderr
    assert "does not fit" in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ("8x", "8x80GB"),
        ("0x80GB", "expected 1 to 1024"),
        ("8x80GB@0", "a number above 0"),
        ("2xABC", "H200"),
        ("missing.json", "missing.json"),
        ("2xH200,1x80GB", "a relative speed"),
    ],
)
def test_devices_that_make_no_sense(devices: str, expected: str) -> None:
    done = run("plan", "tiny", "--devices", devices)
    assert done.exit_code == 1
    assert expected in done.stderr


@pytest.mark.parametrize(
    "row", [{"sped": 1}, {"card": "Voodoo2"}, {"tflops": 100}, {"memory_gb": "much"}, {"rates": {"per_byte": 1}}]
)
def test_rows_that_make_no_sense(tmp_path: Path, row: dict) -> None:
    table = tmp_path / "devices.json"
    table.write_text(json.dumps([row]))
    done = run("plan", "tiny", "--devices", table)
    assert done.exit_code == 1, done.output
    assert "Traceback" not in done.output


def test_the_devices_of_a_plan_can_be_used_again(tmp_path: Path) -> None:
    for devices in ("2xH200,1xRTX4090@0.5", "2x24GB,1x48GB@2"):
        first = run("plan", "demo", "--devices", devices, "--json").stdout
        again = tmp_path / "again.json"
        again.write_text(first)
        assert json.loads(run("plan", "demo", "--devices", again, "--json").stdout) == json.loads(first)


def test_a_prediction_needs_no_gpu(tmp_path: Path) -> None:
    done = run("simulate", "llama70", "--devices", "8xH200", "--link", "nvlink", "--json")
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert data["sources"] == ["H200, measured"]
    (point,) = data["points"]
    assert point["n_devices"] == 8
    assert point["tok_per_s"] == pytest.approx(16384 / point["seconds"])
    assert 0.5 < point["devices_busy"] < 1
    words = " ".join(run("simulate", "llama70", "--devices", "8xH200", "--link", "nvlink").stdout.split())
    assert "one more device like the last" in words


@pytest.mark.parametrize(
    ("sweep", "words"),
    [("gpus", "one more adds less"), ("prompt", "llama.cpp"), ("ubatch", "is the fastest for this prompt")],
)
def test_sweeps_are_drawn(tmp_path: Path, sweep: str, words: str) -> None:
    picture = tmp_path / "sweep.png"
    done = run("simulate", "llama8", "--devices", "2xH200", "--sweep", sweep, "--most", 6, "--out", picture)
    assert done.exit_code == 0, done.output
    assert words in " ".join(done.stdout.split())
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_devices_of_unknown_speed_are_only_compared(tmp_path: Path) -> None:
    done = run("simulate", "llama8", "--devices", "2x80GB", "--sweep", "gpus", "--most", 3)
    assert done.exit_code == 0, done.output
    assert "relative" in done.stdout
    assert "tok/s" not in done.stdout


def test_a_link_of_a_table(tmp_path: Path) -> None:
    table = tmp_path / "devices.json"
    rows = {"devices": [{"card": "H200", "count": 4}], "link": {"bandwidth_gbs": 3, "latency_us": 5}}
    table.write_text(json.dumps(rows))
    data = json.loads(run("simulate", "llama8", "--devices", table, "--json").stdout)
    assert data["link"] == {"bandwidth": 3e9, "latency": 5e-6, "staged": True}
    data = json.loads(run("simulate", "llama8", "--devices", table, "--link", "nvlink", "--json").stdout)
    assert data["link"]["bandwidth"] == 360e9


@pytest.mark.parametrize("options", [("--sweep", "layers"), ("--n-ubatch", "large"), ("--out", "x.png")])
def test_options_that_make_no_sense(options: tuple[str, ...]) -> None:
    done = run("simulate", "llama8", "--devices", "2xH200", *options)
    assert done.exit_code == 2, done.output


@pytest.mark.parametrize(("size", "code"), [("0", 2), ("-1", 2), ("1", 0), ("65536", 0), ("65537", 2), ("1.5", 2)])
@pytest.mark.parametrize("command", ["plan", "simulate"])
def test_ubatches_have_1_to_65536_tokens(command: str, size: str, code: int) -> None:
    assert run(command, "tiny", "--devices", "2xH200", "--n-ubatch", size).exit_code == code


@pytest.mark.parametrize("command", [("plan",), ("simulate", "--sweep", "gpus")], ids=lambda parts: parts[0])
def test_a_picture_without_matplotlib_is_refused_before_any_work(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run(command[0], "llama8", "--devices", "4xH200", *command[1:], "--out", tmp_path / "x.png")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "pip install 'turboprefill[plots]'" in done.stderr
