"""What doctor finds, on machines made up for the purpose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from toytree import make_overlay, make_pins, make_tree
from turboprefill.cli import app
from turboprefill.tools import doctor, hardware, patcher, treestate
from turboprefill.tools.hardware import Gpu
from turboprefill.tools.process import CommandOutput

OK_MATRIX = " \tGPU0\tGPU1\t\n GPU0\tX\tOK\t\n GPU1\tOK\tX\t\n\nLegend:\n\n  X    = Self\n  OK   = Status Ok\n"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[Gpu]:
    """The GPUs of the machine; two, until the test changes it."""
    found = [Gpu(i, "H200", 141 << 30) for i in range(2)]
    monkeypatch.setattr(hardware, "find_gpus", lambda: found)
    monkeypatch.setattr(hardware, "peer_access", lambda n: n > 1)
    monkeypatch.setattr(hardware, "find_nvcc", lambda: "/usr/bin/env")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("TURBOPREFILL", "1")
    return found


def gate(report: doctor.Report, name: str) -> doctor.Gate:
    return next(each for each in report.gates if each.name == name)


def test_with_two_gpus_and_the_switch_on_prompts_can_be_pipelined(gpus: list[Gpu]) -> None:
    assert doctor.examine().can_pipeline


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_gpus_close_a_gate_with_a_remedy(gpus: list[Gpu], n: int) -> None:
    del gpus[n:]
    report = doctor.examine()
    assert not report.can_pipeline
    assert "RPC" in gate(report, "devices").remedy


@pytest.mark.parametrize(
    ("value", "n"), [("0", 1), ("", 0), ("-1", 0), ("1,0", 2), ("0,7,1", 1), ("0,-1,1", 1), ("GPU-ab,GPU-cd", 2)]
)
def test_hidden_gpus_do_not_count(gpus: list[Gpu], monkeypatch: pytest.MonkeyPatch, value: str, n: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    report = doctor.examine()
    assert report.visible_gpus == n
    assert ("unset CUDA_VISIBLE_DEVICES" in gate(report, "devices").remedy) == (n < 2)


@pytest.mark.parametrize(
    ("value", "is_open"), [(None, False), ("0", False), ("OFF", False), ("false", False), ("1", True)]
)
def test_the_switch_is_a_gate(
    gpus: list[Gpu], monkeypatch: pytest.MonkeyPatch, value: str | None, is_open: bool
) -> None:
    if value is None:
        monkeypatch.delenv("TURBOPREFILL")
    else:
        monkeypatch.setenv("TURBOPREFILL", value)
    assert gate(doctor.examine(), "switched on").open is is_open


def test_a_tree_without_turboprefill_is_a_gate_with_the_command(
    gpus: list[Gpu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_overlay(tmp_path / "overlay")
    monkeypatch.setattr("turboprefill.tools.overlay.overlay_dir", lambda: tmp_path / "overlay")
    for module in (patcher, treestate):
        monkeypatch.setattr(module, "load_pins", make_pins)
    tree = make_tree(tmp_path / "llama.cpp")
    assert gate(doctor.examine(tree), "tree").remedy == f"turboprefill install {tree}"
    patcher.install(tree)
    assert gate(doctor.examine(tree), "tree").open


@pytest.mark.parametrize("collectives", [True, False])
def test_a_server_that_listens_everywhere_is_a_warning(gpus: list[Gpu], tmp_path: Path, collectives: bool) -> None:
    source = tmp_path / "ggml/src/ggml-rpc/ggml-rpc.cpp"
    source.parent.mkdir(parents=True)
    source.write_text("enum rpc_cmd { RPC_CMD_COMM_INIT };" if collectives else "enum rpc_cmd {};")
    gates = [each for each in doctor.examine(tmp_path).gates if each.name == "RPC server"]
    assert [each.open for each in gates] == [None] * collectives


def test_something_that_is_no_tree_does_not_stop_the_doctor(gpus: list[Gpu], tmp_path: Path) -> None:
    assert "not a llama.cpp tree" in gate(doctor.examine(tmp_path), "tree").found


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (OK_MATRIX, True),
        (OK_MATRIX.replace("\tOK", "\tCNS"), False),
        ("garbage", None),
        ("", None),
        (OK_MATRIX.replace("GPU1\tOK\tX", ""), None),
    ],
    ids=["all", "none", "garbage", "nothing", "short"],
)
def test_peer_access_is_read_from_the_drivers_matrix(
    monkeypatch: pytest.MonkeyPatch, matrix: str, expected: bool | None
) -> None:
    monkeypatch.setattr(hardware, "output_of", lambda *_arguments: CommandOutput(0, matrix, ""))
    assert hardware.peer_access(2) is expected


def test_gpus_are_read_from_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "0, NVIDIA H200, 143771\n1, NVIDIA H200, [N/A]\nNo devices\n"
    monkeypatch.setattr(hardware, "_from_nvml", list)
    monkeypatch.setattr(hardware, "output_of", lambda *_arguments: CommandOutput(0, rows, ""))
    assert hardware.find_gpus() == [Gpu(0, "NVIDIA H200", 143771 << 20), Gpu(1, "NVIDIA H200", 0)]


def test_versions_skip_copyright_years(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Copyright (c) 2005-2026\nCuda compilation tools, release 13.0, V13.0.88\n"
    monkeypatch.setattr(hardware, "output_of", lambda *_arguments: CommandOutput(0, text, ""))
    assert hardware.version_of("nvcc") == "13.0"


def test_the_report_as_json_has_exactly_these_keys(gpus: list[Gpu]) -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    report = json.loads(result.stdout)
    assert set(report) == {
        "schema", "tools", "gpus", "visible_gpus", "peer_access", "memory", "package", "tree", "can_pipeline", "gates",
    }  # fmt: skip
    assert set(report["package"]) == {"version", "overlay_version", "native_module", "native_module_error"}
    assert all(set(each) == {"name", "open", "found", "remedy"} for each in report["gates"])


def test_every_closed_gate_is_shown_and_the_exit_code_is_0(gpus: list[Gpu]) -> None:
    gpus.clear()
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert "closed devices: 0 GPUs" in result.output
