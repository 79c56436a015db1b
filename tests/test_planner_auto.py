"""``tensor_split="auto"`` and ``n_ubatch="auto"``, and what a calibration changes about them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest

from turboprefill import Context, InvalidInputError, Model
from turboprefill.calibration import calibrate
from turboprefill.planner import DoesNotFitError, PlanError, from_text, read_facts
from turboprefill.planner.auto import auto_ubatch
from turboprefill.planner.cost import layer_cost, total
from turboprefill.planner.fit import Sample, fit_devices
from turboprefill.planner.live import live_devices
from turboprefill.planner.presets import preset_facts
from turboprefill.planner.speeds import MEASURED, with_stored_speeds

pytestmark = pytest.mark.timeout(120)

SMALL = ((16, 2), (48, 2))  # quickly read


def layers_used(model: Model) -> dict[str, int]:
    """Graphs cannot be asked for layers, but the state can: bytes that each device's cache has."""
    before = {device.name: device.memory_free for device in live_devices(model._device_names)}
    with model.context(n_ctx=4096, n_ubatch=32, n_threads=1, type_k="f32", type_v="f32"):
        after = {device.name: device.memory_free for device in live_devices(model._device_names)}
    layer = 4096 * 2 * 128 * 4  # cells, keys and values, of 128 values, as float32
    return {name: (before[name] - after[name]) // layer for name in before}


def test_auto_gives_equal_devices_equal_layers(virtual_names, model_file) -> None:
    with Model(model_file("tiny"), devices=virtual_names[:2], tensor_split="auto") as model:
        assert model._tensor_split == [4.0, 5.0]
        assert layers_used(model) == {virtual_names[0]: 4, virtual_names[1]: 4}
    with Model(model_file("tiny"), devices=virtual_names[:2]) as model:
        assert layers_used(model) == {virtual_names[0]: 5, virtual_names[1]: 3}  # llama.cpp's own


def test_auto_plans_for_rpc_servers(rpc_workers, model_file) -> None:
    options = {"n_ctx": 512, "n_ubatch": "auto", "n_threads": 1}
    with Model(model_file("tiny"), rpc_servers=rpc_workers(2), tensor_split="auto") as model:
        assert model._tensor_split == [4.0, 5.0]
        with model.context(**options, prompt_tokens=256) as context:
            context.decode_batch(list(range(300, 500)))
            assert context.n_ubatch < 256
            assert len([stage for stage in context.stats().stages if stage.device != "CPU"]) == 2


def test_auto_minds_memory(virtual_names, configure, model_file) -> None:
    configure("memory_gb=0.032/16/16/16")
    with Model(model_file("tiny"), devices=virtual_names[:2], tensor_split="auto") as model:
        assert 0 < model._tensor_split[0] < 4
    configure("memory_gb=0.001")
    with pytest.raises(DoesNotFitError) as caught:
        Model(model_file("tiny"), devices=virtual_names[:2], tensor_split="auto")
    assert caught.value.missing > 0
    assert {name for name, _ in caught.value.lacking} <= set(virtual_names[:2])


def test_a_single_device_and_none_need_no_split(virtual_names, model_file) -> None:
    for devices in (virtual_names[:1], [], None):
        options = {"n_ctx": 256, "n_ubatch": "auto", "n_threads": 1}
        with Model(model_file("tiny"), devices=devices, tensor_split="auto") as model, model.context(**options) as ctx:
            assert ctx.n_ubatch == 256


@pytest.mark.parametrize("options", [{"tensor_split": "even"}, {"split_mode": "row"}, {"n_gpu_layers": 3}])
def test_what_cannot_be_planned_is_refused(virtual_names, model_file, options: dict) -> None:
    with pytest.raises(InvalidInputError):
        Model(model_file("tiny"), devices=virtual_names, **{"tensor_split": "auto", **options})


def test_a_slow_device_gets_fewer_layers(virtual_names, model_file, tmp_path, monkeypatch) -> None:
    """What a calibration sees decides; the times are invented, because this machine's are not to be relied upon."""
    path, devices = model_file("tiny"), live_devices(virtual_names[:3])
    slow = dict(zip(virtual_names, (1, 4, 1), strict=False))

    def measure(context: Context, model: Model, size: int, count: int) -> Iterator[tuple[str, int, float]]:
        for name, factor in slow.items():
            for u in range(count):
                yield name, u * size, factor * (2e-3 + 1e-4 * size)

    monkeypatch.setenv("TURBOPREFILL_CACHE", str(tmp_path))
    monkeypatch.setattr("turboprefill.calibration._measure", measure)
    assert with_stored_speeds(path, devices)[0].source != MEASURED
    specs = calibrate(path, read_facts(path), devices, n_threads=1)
    assert specs == with_stored_speeds(path, devices)
    assert [spec.source for spec in specs] == [MEASURED] * 3
    with Model(path, devices=virtual_names[:3], tensor_split="auto") as model:
        first, second, last = model._tensor_split
        assert second < first
        assert second <= last - 1  # the last unit is the output
        # what a ubatch costs beside its tokens makes small ones slow; filling the pipeline makes large ones slow
        with model.context(n_ctx=2048, n_ubatch="auto", prompt_tokens=600, n_threads=1) as context:
            assert 32 <= context.n_ubatch < 512
        tokens = np.random.default_rng(0).integers(300, 1000, 100).tolist()
        with model.context(n_ctx=256, n_ubatch=32, n_threads=1) as context:
            context.decode_batch(tokens, logits="all")
            planned = context.logits().tobytes()
    with Model(path, devices=virtual_names[:3]) as model, model.context(n_ctx=256, n_ubatch=32, n_threads=1) as context:
        context.turboprefill = False
        context.decode_batch(tokens, logits="all")
        assert context.logits().tobytes() == planned


def test_devices_that_are_about_equally_fast_are_equal() -> None:
    facts, rng = preset_facts("llama8"), np.random.default_rng(0)
    rates = from_text("1xH200")[0].rates
    cost = total(layer_cost(layer, rates) for layer in facts.layers)
    samples = {
        name: [
            Sample(facts.layers, c, p, slow * cost.seconds(c, p) * rng.uniform(0.99, 1.01))
            for c in (128, 512)
            for p in range(0, 4096, 512)
        ]
        for name, slow in {"a": 1.0, "b": 2.0, "c": 1.02, "d": 2.01}.items()
    }
    found = fit_devices(samples, facts.layers, rates)
    assert found["a"] == found["c"]
    assert found["b"] == found["d"]
    assert found["b"].per_flop == pytest.approx(2 * found["a"].per_flop, rel=0.05)


def test_a_changed_file_has_no_calibration(virtual_names, configure, model_file, tmp_path, monkeypatch) -> None:
    configure("split_us=3000")  # long enough to be seen
    monkeypatch.setenv("TURBOPREFILL_CACHE", str(tmp_path))
    path = tmp_path / "model.gguf"
    path.write_bytes(model_file("tiny").read_bytes())
    devices = live_devices(virtual_names[:2])
    calibrate(path, read_facts(path), devices, sizes=SMALL, n_threads=1)
    assert with_stored_speeds(path, devices)[0].source == MEASURED
    os.utime(path, (1, 1))
    assert with_stored_speeds(path, devices)[0].source != MEASURED


def test_no_ubatch_is_larger_than_what_is_allowed(virtual_names, model_file) -> None:
    devices = live_devices(virtual_names[:2])
    sizes = [auto_ubatch(model_file("tiny"), devices, [1, 1], 100_000, most) for most in (16, 64, 512)]
    assert sizes[0] == 16
    assert sizes[1] <= 64 < sizes[2] <= 512
    assert auto_ubatch(model_file("tiny"), [], [], 100_000, 48) == 48


def test_a_device_that_is_not_there_is_named(virtual_names) -> None:
    with pytest.raises(PlanError, match=rf"there is no device 'VIRT99': expected one of .*{virtual_names[0]}"):
        live_devices([virtual_names[0], "VIRT99"])


def test_options_of_auto_are_checked(virtual_names, model_file) -> None:
    with Model(model_file("tiny"), devices=virtual_names[:2]) as model:
        with pytest.raises(InvalidInputError, match="n_ubatch"):
            model.context(n_ubatch="large")
        with pytest.raises(InvalidInputError, match="prompt_tokens"):
            model.context(n_ubatch="auto", prompt_tokens=0)
        with model.context(n_ctx=512, n_ubatch="auto", n_batch=64, n_threads=1) as context:
            assert context.n_ubatch <= 64
