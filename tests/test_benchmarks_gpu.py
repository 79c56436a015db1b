"""The GPU benchmark's own arithmetic: splits, plan, bound, checks, tables. None of it needs a GPU."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from turboprefill.planner.split import equal_shares, layers_per_device

_FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu"
_NAMES = ("arms", "plan", "results", "table", "chart")
_COMMITTED = sorted((_FOLDER.parent / "results").glob("20*xH200*.json"))


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    """The benchmark's modules, which are scripts beside each other and no package."""
    if not _FOLDER.is_dir():
        pytest.skip("the source tree's benchmarks are not here")
    sys.path.insert(0, str(_FOLDER))
    try:
        yield type("Modules", (), {name: importlib.import_module(name) for name in _NAMES})
    finally:
        sys.path.remove(str(_FOLDER))
        for name in _NAMES:
            sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("shares", "n_layer", "counts"), [((1,) * 8, 32, [5, 4, 4, 4, 4, 4, 4, 3]), ((3, 1), 7, [6, 1])]
)
def test_layers_are_counted_as_upstream_shares_them(shares, n_layer, counts) -> None:
    assert layers_per_device(shares, n_layer) == counts


def test_a_balanced_split_gives_every_device_the_same_number_of_layers() -> None:
    assert equal_shares(32, 8) == [4] * 7 + [5]
    assert equal_shares(36, 4) == [9, 9, 9, 10]
    for n_layer in range(1, 101):
        for n_device in range(1, min(n_layer, 16) + 1):
            counts = layers_per_device(equal_shares(n_layer, n_device), n_layer)
            assert max(counts) - min(counts) == (n_layer % n_device > 0)


def test_fewer_layers_than_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        equal_shares(3, 4)


def test_the_bound_is_one_stage_of_every_ubatch_and_the_filling_of_the_others(gpu) -> None:
    assert gpu.results.bound_ns([100, 120], 1) == 220
    assert gpu.results.bound_ns([100, 120], 4) == (220 + 3 * 120) / 4


def test_rounds_alternate_and_untimed_cases_run_once(gpu) -> None:
    cases = list(gpu.arms.cases({"correctness", "dense"}, {"dense": gpu.arms.MODELS["dense"]}))
    todo = gpu.plan.runs(cases, gpu.arms.ALL, 2)
    names = [[run.arm.name for run in todo if run.round == number] for number in (0, 1)]
    assert names[0] == list(gpu.arms.ALL)
    assert names[1] == [name for name in reversed(gpu.arms.ALL) if name != "single"]
    for run in todo:
        assert any(case.once for case in run.cases) == (run.round == 0 and run.arm.name in gpu.arms.SAME)


def test_a_process_that_took_long_before_no_longer_fits(gpu) -> None:
    cases = list(gpu.arms.cases({"dense"}, gpu.arms.MODELS))
    first, second = gpu.plan.runs(cases, ["upstream"], 2)
    budget = gpu.plan.Budget(100)
    assert budget.fits(budget.expect(first, 30), 0)
    budget.note(first, 60)
    assert not budget.fits(budget.expect(second, 30), 60)


def _measured(gpu: Any, *, logits: dict[str, str] | None = None) -> dict[str, Any]:
    records = gpu.results.Records({"gpu_info": "a GPU"})
    (case,) = [c for c in gpu.arms.cases({"moe"}, gpu.arms.MODELS) if c.n_ubatch == 512]
    header = {
        "model_type": "m",
        "model_size": 1,
        "model_n_params": 1,
        "n_layer": 12,
        "devices": ["a", "b"],
        "load_ns": 1,
    }
    times = {"single": [8_000_000_000], "upstream": [4_000_000_000, 4_400_000_000], "turbo": [2_500_000_000]}
    for arm, samples in times.items():
        job = {
            "samples_ns": samples,
            "logits": [(logits or {}).get(arm, "abc")],
            "states": [],
            "gen_tokens": [],
            "gen_ns": [],
            "steps_ns": [1_000_000_000] * 8 if arm == "single" else [],
            "free_before": [9, 9],
            "free_after": [5, 6],
        }
        run = gpu.plan.Run(0, gpu.arms.ARMS[arm], "moe", (case,))
        records.add(run, "-", {**header, "free_empty": [9, 9]}, [job])
    config = {"n_devices": 2, "device_name": "GPU", "devices": "cuda", "steps": ["moe", "memory"], "base": "b1 (123)"}
    config |= {"overlay_version": "1", "turboprefill_commit": ""}
    return {"config": config, "results": records.finished(), "notes": ["skipped for lack of time: something"]}


def test_the_table_has_speeds_ratios_and_the_share_of_the_bound(gpu, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(_measured(gpu)))
    text = gpu.table.render(gpu.table.load([str(file)]))
    (turbo,) = [line for line in text.splitlines() if "| turbo | 6,554" in line]
    # of upstream (median 4.2 s), of the bound ((8 + 1) / 2 s), of one GPU
    assert "| 1.68x | 180 % | 3.20x |" in turbo
    assert "logits identical in 3 arms" in text
    assert "skipped for lack of time" in text


def test_the_committed_results_are_there() -> None:
    assert len(_COMMITTED) >= 5


@pytest.mark.parametrize("path", _COMMITTED, ids=lambda path: path.name)
def test_the_table_of_a_committed_file_has_every_case_and_every_arm(gpu, path: Path) -> None:
    document = json.loads(path.read_text())
    overview = gpu.table.render(gpu.table.load([str(path)])).split("\n\n")[1].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in overview)
    assert sorted(head[1:]) == sorted({record["arm"] for record in document["results"]})
    cells = {
        (case.partition(" (")[0], arm): cell for case, *row in rows for arm, cell in zip(head[1:], row, strict=True)
    }
    assert len(cells) == len(rows) * (len(head) - 1)
    measured = {(record["case"], record["arm"]): record["median_ts"] for record in document["results"]}
    for key, cell in cells.items():
        assert bool(cell) == (key in measured), key
        if cell:
            assert float(cell.replace(",", "")) == pytest.approx(measured.pop(key), abs=0.5), key
    assert measured == {}


@pytest.mark.parametrize("path", _COMMITTED, ids=lambda path: path.name)
def test_all_arms_of_a_committed_file_gave_the_same_bytes(gpu, path: Path) -> None:
    verdicts = gpu.results.check(json.loads(path.read_text())["results"])
    assert verdicts
    assert [text for text, same in verdicts if not same] == []
    if any("pp2500" in text for text, _ in verdicts):
        assert any("logits and state identical" in text for text, _ in verdicts)


def test_records_have_the_field_names_of_llama_bench(gpu) -> None:
    record = _measured(gpu)["results"][0]
    names = "model_type model_size n_batch n_ubatch n_gpu_layers split_mode tensor_split flash_attn n_prompt n_gen"
    names += " n_depth test_time avg_ns stddev_ns avg_ts stddev_ts samples_ns samples_ts gpu_info"
    assert set(names.split()) <= record.keys()


def test_different_logits_are_reported_with_the_arms_that_have_them(gpu) -> None:
    ((text, same),) = gpu.results.check(_measured(gpu, logits={"turbo": "def"})["results"])
    assert not same
    assert "abc: single, upstream; def: turbo" in text


def test_the_chart_is_drawn(gpu, tmp_path: Path) -> None:
    path = tmp_path / "chart.png"
    gpu.chart.draw(_measured(gpu), path)
    assert path.read_bytes().startswith(b"\x89PNG")
