"""Virtual devices: results, ways of copying, and that nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import virtualdevices
from turboprefill import Context, ContextCreationError, InvalidInputError, Model, ModelLoadError, virtual
from virtualdevices import ALIVE, N, alive, only, tokens

OPTIONS = {**virtualdevices.OPTIONS, "n_ubatch": 16}

pytestmark = pytest.mark.timeout(120)


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


def test_devices_are_listed_but_not_used_unasked(virtual_names: list[str], model_file) -> None:
    assert virtual_names == [f"VIRT{i}" for i in range(N)]
    assert virtual.loaded() == virtual_names
    before = virtual.counters()["graphs"]
    with Model(model_file()) as model:
        run(model)
    assert virtual.counters()["graphs"] == before


@pytest.mark.parametrize("n_devices", [2, 3, 4])
@pytest.mark.parametrize("preset", ["tiny", "gptoss-tiny", "jamba-tiny"])
def test_results_are_those_of_rpc_workers(virtual_names, model_file, rpc_workers, preset: str, n_devices: int) -> None:
    with Model(model_file(preset), rpc_servers=rpc_workers(n_devices)) as model:
        expected = run(model, turboprefill=False)
    with Model(model_file(preset), devices=virtual_names[:n_devices]) as model:
        assert run(model, turboprefill=False) == expected
        assert run(model, turboprefill=True) == expected


def test_results_are_those_of_the_cpu(virtual_names, model_file) -> None:
    with Model(model_file(), n_gpu_layers=0) as model:
        expected = run(model, op_offload=False)
    with Model(model_file(), devices=virtual_names) as model:
        assert run(model) == expected


@pytest.mark.parametrize(
    "text",
    [
        "peer=async",
        "peer=blocking",
        "peer=refused",
        "events=off",
        "events=off,peer=refused",
        "split_us=2000,us_per_token=20,slow=1/2/0.5/1,launch_us=500",
        "bandwidth_gbs=1,latency_us=100,peer=async",
        "bandwidth_gbs=1,latency_us=100,peer=blocking",
        "stall_graph=2/0/3/0,stall_ms=100",
    ],
)
@pytest.mark.parametrize("transport", ["staged", "peer"])
def test_properties_change_no_result(
    configure, virtual_names, model_file, monkeypatch, text: str, transport: str
) -> None:
    with Model(model_file(), devices=virtual_names) as model:
        configure("")
        expected = run(model, turboprefill=False)
        monkeypatch.setenv("TURBOPREFILL_TRANSPORT", transport)
        configure(text)
        assert run(model, turboprefill=False) == expected
        with model.context(**OPTIONS, turboprefill=True) as context:
            assert outcome(context) == expected
            assert context.stats().n_ubatches_pipelined == 7 + 4


@pytest.mark.parametrize(
    ("asked", "text", "transport"),
    [
        ("", "peer=async", "staged"),
        ("staged", "peer=async", "staged"),
        ("peer", "peer=async", "peer"),
        ("peer", "peer=blocking", "peer"),
        ("peer", "peer=refused", "staged"),
        ("peer", "events=off", "staged"),
        ("fast", "peer=async", "staged"),
    ],
)
def test_transport_is_what_was_asked_for_if_the_devices_can(
    configure, virtual_names, model_file, monkeypatch, asked: str, text: str, transport: str
) -> None:
    configure(text)
    monkeypatch.setenv("TURBOPREFILL_TRANSPORT", asked)
    with Model(model_file(), devices=virtual_names) as model, model.context(**OPTIONS, turboprefill=True) as context:
        before = virtual.counters()["copies"]
        context.decode_batch(tokens(100))
        context.synchronize()
        stages = [stage for stage in context.stats().stages if stage.device in virtual_names]
        assert [stage.transport for stage in stages[1:]] == [transport] * (N - 1)
        assert (virtual.counters()["copies"] > before) == (transport == "peer")


def test_a_timeline_covers_all_devices(virtual_names, model_file) -> None:
    with Model(model_file(), devices=virtual_names) as model, model.context(**OPTIONS, turboprefill=True) as context:
        with context.trace() as trace:
            context.decode_batch(tokens(100))
        assert {span.device for span in trace.spans} >= set(virtual_names)


def test_nothing_is_left_after_close(virtual_names, model_file) -> None:
    before, graphs = alive(), virtual.counters()["graphs"]
    with Model(model_file(), devices=virtual_names) as model:
        for turbo in (False, True):
            run(model, turboprefill=turbo)
        with model.context(**OPTIONS, turboprefill=True) as context:
            context.decode_batch(tokens(200), logits="none")  # closed with work in flight
            during = alive()
    assert all(during[name] > 0 for name in ALIVE)
    assert alive() == before == dict.fromkeys(ALIVE, 0)
    assert virtual.counters()["graphs"] > graphs


def test_memory_is_reported_and_enforced(configure, virtual_names, model_file) -> None:
    from turboprefill import devices

    configure("memory_gb=1/2/1/1")
    total = {device.name: device.memory_total for device in devices()}
    assert [total[name] for name in virtual_names] == [1 << 30, 2 << 30, 1 << 30, 1 << 30]
    configure("memory_gb=0.0001")
    with pytest.raises(ModelLoadError):
        Model(model_file(), devices=virtual_names)


def test_a_buffer_that_is_not_given_fails_the_model_or_the_context(configure, virtual_names, model_file) -> None:
    configure("fail_buffer=0/1/0/0")
    with pytest.raises(ModelLoadError):
        Model(model_file(), devices=virtual_names)
    with Model(model_file(), devices=virtual_names) as model:
        configure("fail_buffer=0/1/0/0")
        with pytest.raises(ContextCreationError):
            model.context(**OPTIONS)
        run(model)
    assert virtual.counters()["buffers"] == 0


@pytest.mark.parametrize("device", range(N))
@pytest.mark.parametrize("number", range(1, 9))
def test_a_buffer_that_is_not_given_later(configure, virtual_names, model_file, device: int, number: int) -> None:
    """Caches and graphs, or landing regions of the pipeline: without those the standard path is taken."""
    with Model(model_file(), devices=virtual_names) as model:
        expected = run(model, turboprefill=False)
        configure(f"events=off,fail_buffer={only(device, number)}")
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
        ("4,fail_as=broken", ["fail_as", "'broken'", "failed, memory or aborted"]),
        ("5", ["has 4", "5"]),
        ("@/nowhere/x.json", ["cannot read", "/nowhere/x.json"]),
    ],
)
def test_a_wrong_specification_says_what_is_wrong(virtual_names, text: str, parts: list[str]) -> None:
    with pytest.raises(InvalidInputError) as error:
        virtual.load(text)
    assert all(part in str(error.value) for part in parts), str(error.value)
    assert len(virtual.loaded()) == N


def test_a_file_describes_each_device(configure, virtual_names, tmp_path: Path) -> None:
    from turboprefill import devices

    path = tmp_path / "devices.json"
    entries = [{}, {"memory_gb": 3}, {}, {"slow": 0.5}]
    path.write_text(json.dumps({"devices": entries, "memory_gb": 2, "peer": "refused", "slow": [1, 2, 1, 1]}))
    virtual.load(f"@{path}")
    assert [d.memory_total >> 30 for d in devices() if d.name in virtual_names] == [2, 3, 2, 2]

    for content in ("[]", "{}", "no json", '{"devices": 4, "speed": 1}', '{"devices": [1, 2, 3, 4]}'):
        path.write_text(content)
        with pytest.raises(InvalidInputError):
            virtual.load(f"@{path}")


def test_devices_are_counted_one_by_one(configure, virtual_names, model_file) -> None:
    with (
        Model(model_file(), devices=virtual_names[:2]) as model,
        model.context(**OPTIONS, turboprefill=True) as context,
    ):
        configure()
        context.decode_batch(tokens(100))
        context.synchronize()
        assert [numbers["graphs"] for numbers in virtual.numbers()] == [7, 7, 0, 0]
        assert [numbers["copies"] > 0 for numbers in virtual.numbers()] == [True, True, False, False]
        assert [numbers["downloads"] for numbers in virtual.numbers()][1:] == [1, 0, 0]  # the logits
        configure()
        assert virtual.numbers() == [dict.fromkeys(virtual.NUMBERS, 0)] * N
    library = virtual._library()
    assert library.turboprefill_virtual_number(N, b"graphs") == -1
    assert library.turboprefill_virtual_number(0, b"speed") == -1
    assert virtual.release() == 0
