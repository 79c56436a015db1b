"""What doctor finds, on machines made up for the purpose."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fakenvml import FakeNvml
from toytree import make_overlay, make_pins, make_tree
from turboprefill.cli import app
from turboprefill.tools import doctor, hardware, patcher, treestate
from turboprefill.tools.hardware import Gpu, Gpus, find_gpus
from turboprefill.tools.process import CommandOutput

OWN_SOURCE = "src/turboprefill.cpp"


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """The binding of a machine with two GPUs, until the test changes it."""
    module = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[Gpu]:
    """The GPUs of the machine; two, until the test changes it."""
    found = [Gpu(i, "H200", 141 << 30) for i in range(2)]
    monkeypatch.setattr(hardware, "find_gpus", lambda: Gpus(tuple(found), "580", len(found) > 1 or None, "none here"))
    monkeypatch.setattr(hardware, "find_nvcc", lambda: "/usr/bin/env")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("TURBOPREFILL", "1")
    return found


def requirement(report: doctor.Report, name: str) -> doctor.Requirement:
    return next(each for each in report.requirements if each.name == name)


def test_with_two_gpus_and_the_switch_on_prompts_can_be_pipelined(gpus: list[Gpu]) -> None:
    assert doctor.examine().can_pipeline


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_gpus_are_a_missing_requirement_with_a_remedy(gpus: list[Gpu], n: int) -> None:
    del gpus[n:]
    report = doctor.examine()
    assert not report.can_pipeline
    assert "RPC" in requirement(report, "devices").remedy


@pytest.mark.parametrize(
    ("value", "n"), [("0", 1), ("", 0), ("-1", 0), ("1,0", 2), ("0,7,1", 1), ("0,-1,1", 1), ("GPU-ab,GPU-cd", 2)]
)
def test_hidden_gpus_do_not_count(gpus: list[Gpu], monkeypatch: pytest.MonkeyPatch, value: str, n: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    report = doctor.examine()
    assert report.visible_gpus == n
    assert ("unset CUDA_VISIBLE_DEVICES" in requirement(report, "devices").remedy) == (n < 2)


@pytest.mark.parametrize(
    ("value", "is_met"), [(None, False), ("0", False), ("OFF", False), ("false", False), ("1", True)]
)
def test_the_switch_is_a_requirement(
    gpus: list[Gpu], monkeypatch: pytest.MonkeyPatch, value: str | None, is_met: bool
) -> None:
    if value is None:
        monkeypatch.delenv("TURBOPREFILL")
    else:
        monkeypatch.setenv("TURBOPREFILL", value)
    assert requirement(doctor.examine(), "switched on").met is is_met


def test_a_tree_without_turboprefill_is_a_requirement_with_the_command(
    gpus: list[Gpu], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_overlay(tmp_path / "overlay")
    monkeypatch.setattr("turboprefill.tools.overlay.overlay_dir", lambda: tmp_path / "overlay")
    for module in (patcher, treestate):
        monkeypatch.setattr(module, "load_pins", make_pins)
    tree = make_tree(tmp_path / "llama.cpp")
    assert requirement(doctor.examine(tree), "tree").remedy == f"turboprefill install {tree}"
    patcher.install(tree)
    assert requirement(doctor.examine(tree), "tree").met
    (tree / OWN_SOURCE).unlink()
    found = requirement(doctor.examine(tree), "tree")
    assert (found.met, found.found, found.remedy) == (
        False,
        f"{tree}: partial 1.0.0",
        f"turboprefill install {tree}",
    )


@pytest.mark.parametrize("collectives", [True, False])
def test_a_server_that_listens_everywhere_is_a_warning(gpus: list[Gpu], tmp_path: Path, collectives: bool) -> None:
    source = tmp_path / "ggml/src/ggml-rpc/ggml-rpc.cpp"
    source.parent.mkdir(parents=True)
    source.write_text("enum rpc_cmd { RPC_CMD_COMM_INIT };" if collectives else "enum rpc_cmd {};")
    requirements = [each for each in doctor.examine(tmp_path).requirements if each.name == "RPC server"]
    assert [each.met for each in requirements] == [None] * collectives


def test_something_that_is_no_tree_does_not_stop_the_doctor(gpus: list[Gpu], tmp_path: Path) -> None:
    assert "not a llama.cpp tree" in requirement(doctor.examine(tmp_path), "tree").found


def test_what_is_not_known_does_not_count_as_missing(gpus: list[Gpu], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "find_gpus", lambda: Gpus(tuple(gpus), "580", None))
    monkeypatch.setattr(doctor, "output_of", lambda *_arguments, **_options: CommandOutput(1, "", "no module"))
    report = doctor.examine()
    assert [requirement(report, name).met for name in ("peer access", "Python module")] == [None, None]
    assert (report.n_unmet, report.can_pipeline) == (0, True)


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """A machine that has every program but these."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None if name in missing else f"/usr/bin/{name}")
    monkeypatch.setattr(hardware, "version_of", lambda _path: "1.2")


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        (("git", "ninja", "ccache"), ""),  # no build needs them
        (("cmake",), "missing: cmake"),
        (("c++", "g++"), ""),  # there is clang++
        (("c++", "g++", "clang++", "cmake"), "missing: c++, cmake"),
    ],
)
def test_only_a_compiler_and_cmake_are_build_tools(
    gpus: list[Gpu], monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], named: str
) -> None:
    without(monkeypatch, *missing)
    report = doctor.examine()
    assert requirement(report, "build tools").met is not bool(named)
    assert requirement(report, "build tools").found == (named or "C++ compiler and CMake")
    assert bool(requirement(report, "build tools").remedy) == bool(named)
    assert report.can_pipeline is not bool(named)


def test_gpus_without_a_cuda_compiler_close_a_gate_with_a_remedy(
    gpus: list[Gpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert requirement(doctor.examine(), "CUDA toolkit").met is True
    monkeypatch.setattr(hardware, "find_nvcc", lambda: None)
    without(monkeypatch, "nvcc")
    report = doctor.examine()
    assert requirement(report, "CUDA toolkit").met is False
    assert (requirement(report, "CUDA toolkit").found, report.n_unmet) == ("no nvcc", 1)
    assert "install the CUDA toolkit" in requirement(report, "CUDA toolkit").remedy
    gpus.clear()
    assert not [each for each in doctor.examine().requirements if each.name == "CUDA toolkit"]


def test_peer_access_is_between_all_gpus_or_not(nvml: FakeNvml) -> None:
    assert find_gpus().peer_access is True
    nvml.p2p = dict.fromkeys([(0, 1), (1, 0)], nvml.NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED)
    assert find_gpus().peer_access is False
    nvml.p2p = {(1, 0): nvml.NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED}
    assert find_gpus().peer_access is False


@pytest.mark.parametrize("broken", ["p2p", ("p2p", 1, 0)], ids=["all", "one"])
def test_peer_access_is_not_known_where_the_driver_does_not_tell(nvml: FakeNvml, broken: object) -> None:
    nvml.broken = (broken,)
    assert find_gpus().peer_access is None


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_gpus_have_no_peers(nvml: FakeNvml, n: int) -> None:
    nvml.n = n
    assert find_gpus().peer_access is None


def test_gpus_are_read_from_nvml(nvml: FakeNvml) -> None:
    nvml.broken = (("memory", 1),)
    h200 = Gpu(0, "NVIDIA H200", 143771 << 20, "9.0", 16)
    assert find_gpus() == Gpus((h200, replace(h200, index=1, memory=0)), "580.65.06", True, "")
    assert nvml.sessions == 0


def test_what_a_gpu_does_not_support_is_not_known(nvml: FakeNvml) -> None:
    nvml.broken = ("driver", "capability", "width")
    assert find_gpus().found[0] == Gpu(0, "NVIDIA H200", 143771 << 20, None, None)
    assert find_gpus().driver is None


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("init", "no NVIDIA driver (it does not work)"),
        ("count", "the NVIDIA driver does not answer (it does not work)"),
    ],
)
def test_without_a_driver_there_are_no_gpus_and_a_reason(nvml: FakeNvml, broken: str, reason: str) -> None:
    nvml.broken = (broken,)
    assert find_gpus() == Gpus(reason=reason)
    assert nvml.sessions == 0


def test_a_driver_without_gpus_is_named(nvml: FakeNvml) -> None:
    nvml.n = 0
    assert find_gpus() == Gpus((), "580.65.06", None, "the NVIDIA driver sees no GPU")


def test_without_the_binding_there_are_no_gpus_and_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_gpus() == Gpus(reason="the Python package nvidia-ml-py is missing: pip install nvidia-ml-py")


def test_versions_skip_copyright_years(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Copyright (c) 2005-2026\nCuda compilation tools, release 13.0, V13.0.88\n"
    monkeypatch.setattr(hardware, "output_of", lambda *_arguments: CommandOutput(0, text, ""))
    assert hardware.version_of("nvcc") == "13.0"


def test_the_report_as_json_has_exactly_these_keys(gpus: list[Gpu]) -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    report = json.loads(result.stdout)
    assert set(report) == {
        "schema", "tools", "gpus", "no_gpus_because", "driver", "visible_gpus", "peer_access", "memory", "package",
        "tree", "can_pipeline", "requirements",
    }  # fmt: skip
    assert set(report["package"]) == {"version", "overlay_version", "native_module", "native_module_error"}
    assert all(set(each) == {"name", "met", "found", "remedy"} for each in report["requirements"])


def test_every_missing_requirement_is_shown_and_the_exit_code_is_0(gpus: list[Gpu]) -> None:
    gpus.clear()
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert "missing devices: 0 GPUs" in result.output
    assert "no NVIDIA GPU found: none here" in result.output
