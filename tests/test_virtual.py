"""Virtual devices: results, ways of copying, and that nothing is left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from turboprefill import Context, ContextCreationError, InvalidInputError, Model, ModelLoadError, virtual

N = 4  # a process has one number of virtual devices
N_CTX = 256
OPTIONS = {"n_ctx": N_CTX, "n_ubatch": 16, "n_threads": 1, "n_threads_batch": 1}

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def names() -> list[str]:
    known = virtual.loaded()
    if known and len(known) != N:
        pytest.skip(f"this process has {len(known)} virtual devices already")
    return virtual.load(str(N))


@pytest.fixture
def spec(names: list[str]) -> Iterator[object]:
    """`spec("peer=refused")`: give the devices these properties for one test."""
    yield lambda text: virtual.load(",".join(filter(None, [str(N), text])))
    virtual.load(str(N))


def tokens(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(300, 1000, n).tolist()


def outcome(context: Context) -> tuple[bytes, bytes]:
    """Everything that can be seen after a prompt, a token, and another prompt."""
    context.decode_batch(tokens(100), logits="all")
    first = context.logits().tobytes()
    context.decode_batch(tokens(1, 1))
    context.decode_batch(tokens(50, 2))
    return first + context.logits().tobytes(), context.state()


def run(model: Model, **options) -> tuple[bytes, bytes]:
    with model.context(**{**OPTIONS, **options}) as context:
        return outcome(context)


def test_devices_are_listed_but_not_used_unasked(names: list[str], model_file) -> None:
    assert names == [f"VIRT{i}" for i in range(N)]
    assert virtual.loaded() == names
    before = virtual.counters()["graphs"]
    with Model(model_file()) as model:
        run(model)
    assert virtual.counters()["graphs"] == before


@pytest.mark.parametrize("n_devices", [2, 3, 4])
@pytest.mark.parametrize("preset", ["tiny", "gptoss-tiny", "jamba-tiny"])
def test_results_are_those_of_rpc_workers(names, model_file, rpc_workers, preset: str, n_devices: int) -> None:
    with Model(model_file(preset), rpc_servers=rpc_workers(n_devices)) as model:
        expected = run(model, turboprefill=False)
    with Model(model_file(preset), devices=names[:n_devices]) as model:
        assert run(model, turboprefill=False) == expected
        assert run(model, turboprefill=True) == expected


def test_results_are_those_of_the_cpu(names, model_file) -> None:
    with Model(model_file(), n_gpu_layers=0) as model:
        expected = run(model, op_offload=False)
    with Model(model_file(), devices=names) as model:
        assert run(model) == expected


@pytest.mark.parametrize(
    "text",
    [
        "peer=async",
        "peer=blocking",
        "peer=refused",
        "events=off",
        "events=off,peer=refused",
        "split_us=2000,us_per_token=20,slow=1/2/0.5/1",
        "bandwidth_gbs=1,latency_us=100,peer=async",
        "bandwidth_gbs=1,latency_us=100,peer=blocking",
        "stall_graph=2/0/3/0,stall_ms=100",
    ],
)
@pytest.mark.parametrize("transport", ["auto", "peer", "staged"])
def test_properties_change_no_result(spec, names, model_file, monkeypatch, text: str, transport: str) -> None:
    with Model(model_file(), devices=names) as model:
        spec("")
        expected = run(model, turboprefill=False)
        monkeypatch.setenv("TURBOPREFILL_TRANSPORT", transport)
        spec(text)
        assert run(model, turboprefill=False) == expected
        with model.context(**OPTIONS, turboprefill=True) as context:
            assert outcome(context) == expected
            assert context.stats().n_ubatches_pipelined == 7 + 4


@pytest.mark.parametrize(
    ("text", "transport"), [("peer=async", "peer"), ("peer=refused", "staged"), ("events=off", "staged")]
)
def test_transport_is_that_of_the_devices(spec, names, model_file, text: str, transport: str) -> None:
    spec(text)
    with Model(model_file(), devices=names) as model, model.context(**OPTIONS, turboprefill=True) as context:
        before = virtual.counters()["copies"]
        context.decode_batch(tokens(100))
        context.synchronize()
        stages = [stage for stage in context.stats().stages if stage.device in names]
        assert [stage.transport for stage in stages[1:]] == [transport] * (N - 1)
        assert (virtual.counters()["copies"] > before) == (transport == "peer")


def test_a_timeline_covers_all_devices(names, model_file) -> None:
    with Model(model_file(), devices=names) as model, model.context(**OPTIONS, turboprefill=True) as context:
        with context.trace() as trace:
            context.decode_batch(tokens(100))
        assert {span.device for span in trace.spans} >= set(names)


def test_nothing_is_left_after_close(names, model_file) -> None:
    alive = ("events", "buffers", "bytes", "streams", "threads")
    before = virtual.counters()
    with Model(model_file(), devices=names) as model:
        for turbo in (False, True):
            run(model, turboprefill=turbo)
        with model.context(**OPTIONS, turboprefill=True) as context:
            context.decode_batch(tokens(200), logits="none")  # closed with work in flight
            during = virtual.counters()
    after = virtual.counters()
    assert all(during[name] > before[name] for name in alive)
    assert [after[name] for name in alive] == [before[name] for name in alive] == [0] * len(alive)
    assert after["graphs"] > before["graphs"]


def test_memory_is_reported_and_enforced(spec, names, model_file) -> None:
    from turboprefill import devices

    spec("memory_gb=1/2/1/1")
    total = {device.name: device.memory_total for device in devices()}
    assert [total[name] for name in names] == [1 << 30, 2 << 30, 1 << 30, 1 << 30]
    spec("memory_gb=0.0001")
    with pytest.raises(ModelLoadError):
        Model(model_file(), devices=names)


def test_a_buffer_that_is_not_given_fails_the_model_or_the_context(spec, names, model_file) -> None:
    spec("fail_buffer=0/1/0/0")
    with pytest.raises(ModelLoadError):
        Model(model_file(), devices=names)
    with Model(model_file(), devices=names) as model:
        spec("fail_buffer=0/1/0/0")
        with pytest.raises(ContextCreationError):
            model.context(**OPTIONS)
        run(model)
    assert virtual.counters()["buffers"] == 0


@pytest.mark.parametrize("device", range(N))
@pytest.mark.parametrize("number", range(1, 9))
def test_a_buffer_that_is_not_given_later(spec, names, model_file, device: int, number: int) -> None:
    """Caches and graphs, or landing regions of the pipeline: without those the standard path is taken."""
    with Model(model_file(), devices=names) as model:
        expected = run(model, turboprefill=False)
        spec("events=off,fail_buffer=" + "/".join(str(number if i == device else 0) for i in range(N)))
        before = virtual.counters()["faults"]
        try:
            context = model.context(**OPTIONS, turboprefill=True)
        except ContextCreationError:
            assert virtual.counters()["faults"] > before
            context = model.context(**OPTIONS, turboprefill=True)
        with context:
            assert outcome(context) == expected
            if context.stats().n_ubatches_pipelined == 0:
                assert virtual.counters()["faults"] > before
                assert context.stats().reason
    assert virtual.counters()["buffers"] == 0


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["number of devices", "''"]),
        ("0", ["number of devices", "'0'"]),
        ("x", ["number of devices", "'x'"]),
        ("16", ["number of devices", "15"]),
        ("2.5", ["number of devices", "whole"]),
        ("4,", ["key=value"]),
        ("4,split", ["'split'", "key=value"]),
        ("4,speed=1", ["'speed'", "split_us", "peer", "memory_gb"]),
        ("4,peer=fast", ["peer", "'fast'", "async, blocking or refused"]),
        ("4,events=maybe", ["events", "on or off"]),
        ("4,split_us=-1", ["split_us", "'-1'"]),
        ("4,split_us=nan", ["split_us", "'nan'"]),
        ("4,split_us=", ["split_us", "''"]),
        ("4,slow=1/2", ["slow", "each of the 4 devices"]),
        ("4,fail_graph=1.5", ["fail_graph", "whole"]),
        ("5", ["has 4", "5"]),
        ("@/nowhere/x.json", ["cannot read", "/nowhere/x.json"]),
    ],
)
def test_a_wrong_specification_says_what_is_wrong(names, text: str, parts: list[str]) -> None:
    with pytest.raises(InvalidInputError) as error:
        virtual.load(text)
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert len(virtual.loaded()) == N


def test_a_file_describes_each_device(spec, names, tmp_path: Path) -> None:
    from turboprefill import devices

    path = tmp_path / "devices.json"
    entries = [{}, {"memory_gb": 3}, {}, {"slow": 0.5}]
    path.write_text(json.dumps({"devices": entries, "memory_gb": 2, "peer": "refused", "slow": [1, 2, 1, 1]}))
    virtual.load(f"@{path}")
    assert [d.memory_total >> 30 for d in devices() if d.name in names] == [2, 3, 2, 2]

    for content in ("[]", "{}", "no json", '{"devices": 4, "speed": 1}', '{"devices": [1, 2, 3, 4]}'):
        path.write_text(content)
        with pytest.raises(InvalidInputError):
            virtual.load(f"@{path}")
