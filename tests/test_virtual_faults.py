"""A device that fails in the middle of a prompt: what is reported, what is kept, and that the prompt can go on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest

from turboprefill import Context, FatalDecodeError, Model, virtual

N = 4  # a process has one number of virtual devices
N_UBATCH = 8
N_PROMPT = 96
FIRST, MIDDLE, LAST = 1, N_PROMPT // N_UBATCH // 2, N_PROMPT // N_UBATCH
OPTIONS = {"n_ctx": 256, "n_ubatch": N_UBATCH, "n_threads": 1, "n_threads_batch": 1}

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def names() -> list[str]:
    known = virtual.loaded()
    if known and len(known) != N:
        pytest.skip(f"this process has {len(known)} virtual devices already")
    return virtual.load(str(N))


@pytest.fixture
def fault(names: list[str]) -> Iterator[object]:
    """`fault(device, graph, more)`: from now on, that graph of that device fails."""

    def set_fault(device: int, graph: int, more: str = "") -> None:
        numbers = "/".join(str(graph if i == device else 0) for i in range(N))
        virtual.load(f"{N},fail_graph={numbers}{more}")

    yield set_fault
    virtual.load(str(N))


def tokens(n: int = N_PROMPT, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(300, 1000, n).tolist()


def result(context: Context) -> tuple[bytes, bytes]:
    return context.logits().tobytes(), context.state()


def expected(model: Model, prompt: list[int], **options) -> tuple[bytes, bytes]:
    """What an undisturbed run ends with."""
    with model.context(**{**OPTIONS, **options}, turboprefill=False) as context:
        context.decode_batch(prompt)
        return result(context)


def fail(context: Context, prompt: list[int], logits: str = "last") -> None:
    """Decode until the failure is reported: by this call, or by the next one if this one had returned before it."""

    def decode() -> None:
        context.decode_batch(prompt, logits=logits)
        context.synchronize()
        context.decode_batch(tokens(1, 9))

    with pytest.raises(FatalDecodeError) as error:
        decode()
    assert error.value.code == -3


def go_on(context: Context, prompt: list[int]) -> int:
    """Decode what is missing of the prompt; the number of tokens that were there."""
    n = context.memory.seq_pos_max() + 1
    context.decode_batch(prompt[n:])
    return n


@pytest.mark.parametrize("graph", [FIRST, MIDDLE, LAST])
@pytest.mark.parametrize("device", range(N))
@pytest.mark.parametrize("text", ["", ",peer=refused", ",events=off", ",split_us=3000", ",split_us=3000,peer=blocking"])
def test_whole_ubatches_are_kept_and_the_prompt_goes_on(fault, names, model_file, device, graph, text) -> None:
    prompt = tokens()
    with Model(model_file(), devices=names) as model:
        want = expected(model, prompt)
        fault(device, 0, text)
        with model.context(**OPTIONS, turboprefill=True) as context:
            fault(device, graph, text)
            fail(context, prompt)
            assert go_on(context, prompt) == (graph - 1) * N_UBATCH
            assert result(context) == want
            assert context.stats().n_ubatches_pipelined > 0
    assert virtual.counters()["threads"] == 0


@pytest.mark.parametrize("graph", [FIRST, MIDDLE, LAST])
@pytest.mark.parametrize("device", [0, N - 1])
@pytest.mark.parametrize("n_batch", [8, 24])
def test_a_prompt_in_several_calls(fault, names, model_file, device, graph, n_batch) -> None:
    prompt = tokens()
    with Model(model_file(), devices=names) as model:
        want = expected(model, prompt, n_batch=n_batch)
        with model.context(**OPTIONS, n_batch=n_batch, turboprefill=True) as context:
            fault(device, graph, ",split_us=3000")
            fail(context, prompt, logits="none")
            n = go_on(context, prompt)
            assert n == (graph - 1) * N_UBATCH
            assert result(context) == want


@pytest.mark.parametrize("graph", [FIRST, MIDDLE, LAST])
@pytest.mark.parametrize("preset", ["mamba-tiny", "jamba-tiny", "gemma3-tiny", "gptoss-tiny"])
def test_memory_that_cannot_go_back_is_left_consistent(fault, names, model_file, preset, graph) -> None:
    """The state of a recurrent model cannot be cut: then the whole sequence is gone, and the prompt starts again."""
    prompt = tokens()
    with Model(model_file(preset), devices=names) as model:
        want = expected(model, prompt)
        with model.context(**OPTIONS, turboprefill=True) as context:
            fault(1, graph)
            fail(context, prompt)
            n = go_on(context, prompt)
            assert n in (0, (graph - 1) * N_UBATCH)
            assert result(context) == want
            assert context.memory.seq_pos_max() == N_PROMPT - 1


def test_two_devices_fail_and_the_earlier_ubatch_counts(fault, names, model_file) -> None:
    prompt = tokens()
    with Model(model_file(), devices=names) as model:
        want = expected(model, prompt)
        with model.context(**OPTIONS, turboprefill=True) as context:
            virtual.load(f"{N},fail_graph=7/0/0/5,split_us=2000")
            fail(context, prompt)
            assert go_on(context, prompt) == 4 * N_UBATCH
            assert result(context) == want


def test_one_failure_after_another(fault, names, model_file) -> None:
    prompt = tokens()
    with Model(model_file(), devices=names) as model:
        want = expected(model, prompt)
        with model.context(**OPTIONS, turboprefill=True) as context:
            for device in range(N):
                fault(device, 3)
                n = context.memory.seq_pos_max() + 1
                fail(context, prompt[n:])
                assert context.memory.seq_pos_max() + 1 == n + 2 * N_UBATCH
            virtual.load(str(N))
            assert go_on(context, prompt) == 2 * N * N_UBATCH
            assert result(context) == want


def test_other_sequences_keep_what_they_have(fault, names, model_file) -> None:
    prompt = tokens()
    with Model(model_file(), devices=names) as model:
        options = {**OPTIONS, "n_seq_max": 2}
        with model.context(**options, turboprefill=False) as standard, model.context(**options) as context:
            for one in (standard, context):
                one.decode_batch(prompt, seq_ids=1)
                one.synchronize()
            fault(2, MIDDLE)
            fail(context, prompt)
            assert context.memory.seq_pos_max(1) == N_PROMPT - 1
            n = go_on(context, prompt)
            assert n == (MIDDLE - 1) * N_UBATCH
            standard.decode_batch(prompt)
            assert result(context) == result(standard)


@pytest.mark.parametrize("device", range(N))
def test_close_after_a_failure_that_nobody_asked_about(fault, names, model_file, device) -> None:
    before = virtual.counters()["faults"]
    with Model(model_file(), devices=names) as model, model.context(**OPTIONS, turboprefill=True) as context:
        fault(device, MIDDLE, ",split_us=3000")
        with contextlib.suppress(FatalDecodeError):  # it may come early enough
            context.decode_batch(tokens(), logits="none")
    counters = virtual.counters()
    assert counters["faults"] > before
    assert [counters[name] for name in ("events", "buffers", "bytes", "streams", "threads")] == [0] * 5


@pytest.mark.parametrize("device", range(N))
def test_the_standard_path_reports_it_from_the_same_call(fault, names, model_file, device) -> None:
    prompt = tokens()
    with Model(model_file(), devices=names) as model:
        want = expected(model, prompt)
        with model.context(**OPTIONS, turboprefill=False) as context:
            fault(device, MIDDLE)
            with pytest.raises(FatalDecodeError):
                context.decode_batch(prompt)
            assert go_on(context, prompt) == (MIDDLE - 1) * N_UBATCH
            assert result(context) == want


def test_a_stall_delays_and_changes_nothing(fault, names, model_file) -> None:
    prompt = tokens()
    with Model(model_file(), devices=names) as model:
        want = expected(model, prompt)
        with model.context(**OPTIONS, turboprefill=True) as context:
            virtual.load(f"{N},stall_graph=1/{MIDDLE}/0/{LAST},stall_ms=200")
            context.decode_batch(prompt)
            assert result(context) == want
