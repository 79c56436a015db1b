"""Predictions against closed formulas, against enumeration, and against measurements."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turboprefill.planner import Cost, PlanError, choose_ubatch
from turboprefill.planner.cost import Rates, flow_seconds, layer_cost, pipeline_seconds, prompt_seconds, total
from turboprefill.planner.descriptions import from_table, from_text
from turboprefill.planner.fit import Sample, fit_rates, non_negative
from turboprefill.planner.links import link_from
from turboprefill.planner.predict import predict
from turboprefill.planner.presets import preset_facts
from turboprefill.planner.simulate import Host, Link, Machine, Standard, simulate
from turboprefill.planner.sweeps import pays_until, sweep_devices
from turboprefill.planner.ubatch import SIZES, ubatch_seconds

ROOT = Path(__file__).resolve().parents[1]
COEFFICIENT = st.floats(0, 1e-3)
COST = st.builds(
    Cost,
    a=st.floats(1e-6, 1e-1),
    b=COEFFICIENT,
    d=st.floats(0, 1e-7),
    windows=st.lists(st.tuples(st.integers(1, 4096), st.floats(0, 1e-7)), max_size=2, unique_by=lambda w: w[0]).map(
        tuple
    ),
)


@settings(max_examples=100, deadline=None)
@given(COST, st.integers(1, 9), st.integers(1, 40), st.sampled_from([32, 128]))
def test_equal_stages_take_what_the_formula_says(cost: Cost, n_stages: int, n_ubatches: int, size: int) -> None:
    n_tokens = n_ubatches * size
    machine = Machine([cost] * n_stages, n_slots=n_ubatches + 1, n_copies=n_ubatches + 1)
    outcome = simulate(machine, n_tokens, size)
    times = prompt_seconds(cost, n_tokens, size)  # they grow with the prefix, so the last is the longest
    assert outcome.seconds == pytest.approx(pipeline_seconds(times, n_stages))
    assert outcome.busy == pytest.approx([times.sum()] * n_stages)


@settings(max_examples=100, deadline=None)
@given(st.lists(COST, min_size=1, max_size=5), st.integers(1, 1000), st.sampled_from([32, 64, 512]))
def test_unequal_stages_flow_as_they_are_simulated(costs: list[Cost], n_tokens: int, size: int) -> None:
    machine = Machine(costs, n_slots=1000, n_copies=1000)
    times = [prompt_seconds(cost, n_tokens, size) for cost in costs]
    assert simulate(machine, n_tokens, size).seconds == pytest.approx(flow_seconds(times))
    assert flow_seconds(times) >= max(float(t.sum()) for t in times) * (1 - 1e-9)


def test_what_slows_a_pipeline_down() -> None:
    """Each limit alone: four stages of 1 s for each ubatch, 32 ubatches; 35 s without any."""
    stages, n = [Cost(a=1.0)] * 4, 32 * 16

    def seconds(standard: Standard | None = None, **options) -> float:
        machine = Machine(stages, **{"links": [Link()] * 3, "n_slots": 99, "n_copies": 99, **options})
        return simulate(machine, n, 16, standard).seconds

    assert seconds() == pytest.approx(35)
    assert seconds(n_slots=1) == pytest.approx(32 * 4)
    assert seconds(host=Host(per_ubatch=2.0)) == pytest.approx(32 * 2 + 4)
    slow = {"links": [Link(latency=1.0)] * 3, "outbox": False}
    assert seconds(**slow) == pytest.approx(32 * 2 + 5)  # a copy keeps its source from computing
    staged = {"links": [Link(latency=0.5, staged=True)] * 3}
    assert seconds(**staged, outbox=False) == pytest.approx(35 + 31 * 0.5 + 3 * 2 * 0.5)  # the first step alone does
    # boundaries that are put aside first leave while the device goes on, if there is time enough
    assert seconds(links=[Link(latency=1.0)] * 3) == pytest.approx(35 + 3)
    assert seconds(**staged) == pytest.approx(35 + 3)
    assert seconds(links=[Link(latency=2.0)] * 3) > 32 * 2
    # llama.cpp's own path: enough copies overlap; few cap what is in flight; reuse and blocking copies wait
    assert seconds(Standard(copies=16, reuse=False)) == pytest.approx(35)
    assert 35 < seconds(Standard(copies=1, reuse=False)) < 32 * 4
    assert seconds(Standard(reuse_always=True)) == pytest.approx(32 * 4)
    assert seconds(Standard(blocking=True)) == pytest.approx(32 * 3 + 1)


def test_a_graph_is_reused_while_the_padded_cache_stays_the_same() -> None:
    stages, n = [Cost(a=1.0)] * 2, 8 * 128
    cells_change_each_time = simulate(Machine(stages), 8 * 256, 256, Standard()).seconds
    assert cells_change_each_time == pytest.approx(9)
    assert simulate(Machine(stages), n, 128, Standard()).seconds == pytest.approx(2 + 3 * 3 + 2)  # in pairs


@settings(max_examples=60, deadline=None)
@given(st.lists(COST, min_size=1, max_size=3), st.integers(1, 5000), st.integers(1, 16), st.integers(1, 2048))
def test_the_ubatch_is_the_best_of_all(costs: list[Cost], n_tokens: int, n_stages: int, most: int) -> None:
    chosen = choose_ubatch(costs, n_tokens, n_stages, most)
    allowed = [size for size in SIZES if size < most] + [most]
    assert chosen in allowed

    def slowly(size: int) -> float:
        """The formula, ubatch by ubatch."""
        out = []
        for cost in costs:
            times = [cost.seconds(min(size, n_tokens - p), p) for p in range(0, n_tokens, size)]
            out.append(sum(times) + (n_stages - 1) * max(times))
        return max(out)

    assert ubatch_seconds(costs, n_tokens, n_stages, chosen) == pytest.approx(slowly(chosen))
    assert slowly(chosen) <= min(slowly(size) for size in allowed) * (1 + 1e-9)


@pytest.mark.parametrize("most", [20, 100, 512])
def test_of_ubatches_that_are_equally_fast_the_largest_is_chosen(most: int) -> None:
    assert choose_ubatch([Cost()], 5000, 4, most) == most


@pytest.mark.parametrize(("n_tokens", "n_stages", "most"), [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_a_ubatch_for_nothing_is_refused(n_tokens: int, n_stages: int, most: int) -> None:
    with pytest.raises(PlanError):
        choose_ubatch([Cost(a=1)], n_tokens, n_stages, most)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_fit_is_never_negative_and_no_other_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, values = rng.normal(size=(12, 3)), rng.normal(size=12)
    x = non_negative(rows, values)
    assert (x >= 0).all()
    slope = rows.T @ (rows @ x - values)
    assert (slope >= -1e-9).all()  # nothing is gained by a larger number
    assert np.abs(slope[x > 0]).max(initial=0) < 1e-9  # nor by a smaller one


def times_of(preset: str, rates: Rates) -> list[Sample]:
    layers = preset_facts(preset).layers
    cost = total(layer_cost(layer, rates) for layer in layers)
    return [Sample(layers, c, p, cost.seconds(c, p)) for c in (32, 256) for p in range(0, 2048, 256)]


def test_rates_are_found_again() -> None:
    rates = replace(from_text("1xRTX4090")[0].rates, per_layer=0.0)
    found = fit_rates(times_of("gemma3-tiny", rates), rates)
    assert asdict(found) == pytest.approx(asdict(rates), rel=1e-6, abs=0)


def test_several_models_tell_all_rates_apart() -> None:
    rates = from_text("1xRTX4090")[0].rates
    models = ("llama8", "gemma3-12b", "granite-h-micro", "gptoss20")
    samples = [sample for model in models for sample in times_of(model, rates)]
    found = fit_rates(samples, names=list(asdict(rates)))
    assert asdict(found) == pytest.approx(asdict(rates), rel=1e-6, abs=0)


def test_starting_kernels_takes_no_longer_on_a_slower_card() -> None:
    fast, slow = from_text("1xH200")[0].rates, from_text("1xRTX3090")[0].rates
    assert slow.per_layer == fast.per_layer > 0
    assert slow.per_flop > 10 * fast.per_flop
    assert from_text("1xH200@0.5")[0].rates.per_layer == 2 * fast.per_layer
    assert from_text("1x80GB")[0].rates.per_layer == 0


@pytest.mark.parametrize(
    ("text", "memory"), [("80GB", 80 * 10**9), ("80GiB", 80 * 2**30), ("512mb", 512 * 10**6), ("1.5 MiB", 3 * 2**19)]
)
def test_memory_is_described_in_units_of_both_kinds(text: str, memory: int) -> None:
    assert [spec.memory for spec in from_text(f"2x{text}")] == [memory] * 2


def test_a_device_at_half_the_speed_takes_twice_as_long() -> None:
    usual, half = from_text("1x80GB,1x80GB@0.5")
    assert half.rates == usual.rates.slower(2)
    assert half.rates.per_flop == 2 * usual.rates.per_flop


def test_rates_without_the_newer_numbers_can_be_read() -> None:
    rates = {"per_byte": 1e-12, "per_flop": 5e-15, "per_key_flop": 4e-15, "expert": 2.0, "expert_byte": 2.5}
    (spec,) = from_table([{"memory_gb": 80, "rates": rates}])
    assert spec.rates == Rates(**rates)
    assert (spec.rates.per_layer, spec.rates.scan) == (0, 0)


def test_more_devices_help_until_they_do_not() -> None:
    facts, specs = preset_facts("llama8"), from_text("1xH200")
    points = sweep_devices(facts, specs, link_from("nvlink"), 4096, 36, n_ubatch=256)
    assert [point.n_devices for point in points] == list(range(1, 37))
    until = pays_until(points)
    assert until is not None
    assert 4 <= until <= 32
    best = max(points, key=lambda point: point.speed)
    assert best.speed > 4 * points[0].speed
    assert points[-1].speed <= points[31].speed * 1.001  # there are 32 layers


def test_what_does_not_fit_lacks_bytes() -> None:
    point = predict(preset_facts("llama70"), from_text("2x12GB"), Link(), 4096)
    assert point.seconds is None
    assert point.missing > 10**9


@pytest.mark.parametrize(
    ("text", "bandwidth", "staged"),
    [
        ("nvlink", 360e9, False),
        ("PCIe 4 x4", 0.8 * 4 * 1.969e9, True),
        ("pcie5.0x16", 0.8 * 16 * 3.938e9, True),
        ("100Gbit", 10e9, True),
        ("25 GB/s", 25e9, True),
    ],
)
def test_links_by_name(text: str, bandwidth: float, staged: bool) -> None:
    link = link_from(text)
    assert link.bandwidth == pytest.approx(bandwidth)
    assert link.staged is staged


@pytest.mark.parametrize("text", ["", "pcie6x16", "pcie4x3", "0GB/s", "fast"])
def test_links_that_make_no_sense(text: str) -> None:
    with pytest.raises(PlanError, match="link"):
        link_from(text)


@pytest.fixture(scope="module")
def validation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("validate", ROOT / "benchmarks" / "planner" / "validate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["validate"] = module
    spec.loader.exec_module(module)
    return module


def test_the_numbers_in_use_are_those_of_the_fit(validation: ModuleType) -> None:
    lines = validation.show_fit(list(validation.rows())).splitlines()
    assert len(lines) == 10
    for line in lines:
        fit, used = map(float, re.search(r"fit (\S+)  used (\S+)", line).groups())
        assert used == pytest.approx(fit, rel=0.01), line


def test_predictions_agree_with_measurements(validation: ModuleType) -> None:
    text = validation.tables(list(validation.rows()))
    medians = [float(x) for x in re.findall(r"median error ([\d.]+) %", text)]
    assert len(medians) == 8
    assert max(medians) <= 7


def test_the_page_has_the_table_that_the_script_makes(validation: ModuleType) -> None:
    page = validation.DOCUMENT.read_text(encoding="utf-8")
    _, _, rest = page.partition(validation.BEGIN)
    table = rest.partition(validation.END)[0]
    assert table == validation.tables(list(validation.rows())), "run benchmarks/planner/validate.py --update"


def test_the_planner_s_page_has_the_errors_of_that_table(validation: ModuleType) -> None:
    found = re.search(r"median error (\S+) %, largest (\S+) %, (\d+) rows", validation.tables(list(validation.rows())))
    median, largest, n_rows = found.groups()
    page = (ROOT / "docs" / "planner.md").read_text(encoding="utf-8")
    assert f"Over {n_rows} prompts measured" in page
    assert f"is {median} %, the largest {largest} %." in page
