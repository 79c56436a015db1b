"""Virtual devices: results, ways of copying, and that nothing is left behind."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

import virtualdevices
from pipelinecounts import assert_pipelined
from turboprefill import Context, ContextCreationError, InvalidInputError, Model, ModelLoadError, virtual
from virtualdevices import ALIVE, N, alive, configure, only, tokens

OPTIONS = {**virtualdevices.OPTIONS, "n_ubatch": 16}

pytestmark = pytest.mark.timeout(120)


def outcome(context: Context) -> tuple[bytes, bytes]:
    """Everything that can be seen after a prompt, a token, and another prompt."""
    context.decode_batch(tokens(100), logits="all")
    first = context.logits().tobytes()
    context.decode_batch(tokens(1, 1))
    context.decode_batch(tokens(50, 2))
    return first + context.logits().tobytes(), context.state()


N_UBATCHES = 7 + 4  # of outcome()'s prompts; the token between them takes the standard path


def run(model: Model, **options) -> tuple[bytes, bytes]:
    with model.context(**{**OPTIONS, **options}) as context:
        return outcome(context)


def run_pipelined(model: Model) -> tuple[bytes, bytes]:
    with model.context(**OPTIONS, turboprefill=True) as context:
        seen = outcome(context)
        assert_pipelined(context, N_UBATCHES, standard=1)
        return seen


def test_devices_are_listed_but_not_used_unasked(virtual_names: list[str], model_file) -> None:
    assert virtual_names == [f"VIRT{i}" for i in range(N)]
    assert virtual.loaded() == virtual_names
    before = virtual.counters()["graphs"]
    with Model(model_file()) as model:
        run(model)
    assert virtual.counters()["graphs"] == before


@pytest.mark.pipelined
@pytest.mark.parametrize("n_devices", [2, 3, 4])
@pytest.mark.parametrize("preset", ["tiny", "gptoss-tiny", "jamba-tiny"])
def test_results_are_those_of_rpc_workers(virtual_names, model_file, rpc_workers, preset: str, n_devices: int) -> None:
    with Model(model_file(preset), rpc_servers=rpc_workers(n_devices)) as model:
        expected = run(model, turboprefill=False)
    with Model(model_file(preset), devices=virtual_names[:n_devices]) as model:
        assert run(model, turboprefill=False) == expected
        assert run_pipelined(model) == expected


@pytest.mark.pipelined
def test_results_are_those_of_the_cpu(virtual_names, model_file) -> None:
    with Model(model_file(), n_gpu_layers=0) as model:
        expected = run(model, op_offload=False)
    with Model(model_file(), devices=virtual_names) as model:
        assert run_pipelined(model) == expected


@pytest.mark.pipelined
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


@pytest.mark.pipelined
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
        assert_pipelined(context, 7, standard=0)
        stages = [stage for stage in context.stats().stages if stage.device in virtual_names]
        assert [stage.transport for stage in stages[1:]] == [transport] * (N - 1)
        assert (virtual.counters()["copies"] > before) == (transport == "peer")


@pytest.mark.pipelined
def test_a_timeline_covers_all_devices(virtual_names, model_file) -> None:
    with Model(model_file(), devices=virtual_names) as model, model.context(**OPTIONS, turboprefill=True) as context:
        with context.trace() as trace:
            context.decode_batch(tokens(100))
        assert {span.device for span in trace.spans} >= set(virtual_names)
        n_pipelined = len({span.ubatch for span in trace.spans if span.pipelined})
        assert n_pipelined == 7
        assert all(span.pipelined for span in trace.spans)


@pytest.mark.pipelined
def test_nothing_is_left_after_close(virtual_names, model_file) -> None:
    before, graphs = alive(), virtual.counters()["graphs"]
    with Model(model_file(), devices=virtual_names) as model:
        run(model, turboprefill=False)
        run_pipelined(model)
        with model.context(**OPTIONS, turboprefill=True) as context:
            context.decode_batch(tokens(200), logits="none")  # closed with work in flight
            assert_pipelined(context, 13, standard=0)
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


# Each device is asked for five buffers by a context without events between devices: the cache, the graphs, the graphs
# once more when the pipeline is enabled, and two regions where boundaries land. Without the first two there is no
# context, without the third the pipeline stays disabled, and without one of the last two the standard path is taken.
N_BUFFERS = 5
NOT_ENABLED = "not enough memory to enable TurboPrefill"
NO_ENGINE = "not enough memory or threads for the pipeline"


@pytest.fixture
def model(virtual_names, model_file) -> Iterator[Model]:
    """On all virtual devices; nothing of it is left afterwards."""
    with Model(model_file(), devices=virtual_names) as model:
        yield model
    assert virtual.counters()["buffers"] == 0


def refuse(device: int, number: int) -> None:
    """The device will not give the buffer of this number, counted from 1. No other one is refused."""
    configure("events=off", f"fail_buffer={only(device, number)}")


@pytest.fixture
def repaired(virtual_names) -> Iterator[None]:
    yield
    configure()


@pytest.mark.pipelined
def test_a_context_asks_each_device_for_so_many_buffers(configure, model) -> None:
    configure("events=off")
    run_pipelined(model)
    assert [numbers["buffers"] for numbers in virtual.numbers()] == [N_BUFFERS] * N


@pytest.mark.pipelined
@pytest.mark.usefixtures("repaired")
@pytest.mark.parametrize("device", range(N))
@pytest.mark.parametrize("number", [1, 2])
def test_without_memory_for_cache_or_graphs_there_is_no_context(model, device: int, number: int) -> None:
    expected, before = run(model, turboprefill=False), virtual.counters()["faults"]
    refuse(device, number)
    with pytest.raises(ContextCreationError, match=f"VIRT{device}: fault of buffer {number}"):
        model.context(**OPTIONS, turboprefill=True)
    assert virtual.counters()["faults"] == before + 1
    assert run_pipelined(model) == expected


@pytest.mark.pipelined
@pytest.mark.usefixtures("repaired")
@pytest.mark.parametrize("device", range(N))
def test_without_memory_to_enable_the_pipeline_a_context_says_so_and_can_later(model, caplog, device: int) -> None:
    expected, before = run(model, turboprefill=False), virtual.counters()["faults"]
    refuse(device, 3)
    with caplog.at_level(logging.WARNING, "turboprefill.context"):
        context = model.context(**OPTIONS, turboprefill=True)
    warnings = [record.getMessage() for record in caplog.records if record.name == "turboprefill.context"]
    assert len(warnings) == 1
    assert "could not be enabled and stays disabled in this context: " in warnings[0]
    assert f"VIRT{device}: fault of buffer 3" in warnings[0]
    with context:
        assert virtual.counters()["faults"] == before + 1
        assert not context.turboprefill
        assert outcome(context) == expected
        stats = context.stats()
        assert (stats.enabled, stats.n_ubatches_pipelined, stats.reason) == (False, 0, NOT_ENABLED)
        context.memory.clear()
        context.turboprefill = True
        assert outcome(context) == expected
        assert_pipelined(context, N_UBATCHES, standard=1)
        assert context.stats().reason != NOT_ENABLED


@pytest.mark.pipelined
@pytest.mark.usefixtures("repaired")
@pytest.mark.parametrize("device", range(N))
@pytest.mark.parametrize("number", [4, 5])
def test_without_memory_for_landing_regions_the_standard_path_is_taken(model, device: int, number: int) -> None:
    expected = run_pipelined(model)
    before = virtual.counters()["faults"]
    refuse(device, number)
    with model.context(**OPTIONS, turboprefill=True) as context:
        assert virtual.counters()["faults"] == before + 1
        assert context.turboprefill
        assert outcome(context) == expected
        stats = context.stats()
        assert (stats.n_ubatches_pipelined, stats.n_ubatches_standard) == (0, N_UBATCHES + 1)
        assert stats.reason == NO_ENGINE


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


@pytest.mark.pipelined
def test_devices_are_counted_one_by_one(configure, virtual_names, model_file) -> None:
    with (
        Model(model_file(), devices=virtual_names[:2]) as model,
        model.context(**OPTIONS, turboprefill=True) as context,
    ):
        configure()
        context.decode_batch(tokens(100))
        context.synchronize()
        assert_pipelined(context, 7, standard=0)
        assert [numbers["graphs"] for numbers in virtual.numbers()] == [7, 7, 0, 0]
        assert [numbers["copies"] > 0 for numbers in virtual.numbers()] == [True, True, False, False]
        assert [numbers["downloads"] for numbers in virtual.numbers()][1:] == [1, 0, 0]  # the logits
        configure()
        assert virtual.numbers() == [dict.fromkeys(virtual.NUMBERS, 0)] * N
    library = virtual._library()
    assert library.turboprefill_virtual_number(N, b"graphs") == -1
    assert library.turboprefill_virtual_number(0, b"speed") == -1
    assert virtual.release() == 0
