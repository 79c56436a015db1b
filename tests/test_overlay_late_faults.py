"""What is asked after a decode has returned and before its fault is known; and signals while it computes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from pipelinecounts import assert_pipelined, pipeline_once
from turboprefill import FatalDecodeError, InUseError, Model, devices, virtual
from virtualdevices import OPTIONS, configure, only, result, tokens

N_UBATCH = 8
N_UBATCHES = 6  # fewer than there are slots: decode_batch returns before they are computed
PROMPT = tokens(N_UBATCHES * N_UBATCH)
SETTINGS = {**OPTIONS, "n_ubatch": N_UBATCH, "turboprefill": True}

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("repaired"), pytest.mark.pipelined]


@pytest.fixture
def repaired(virtual_names: list[str]) -> Iterator[None]:
    yield
    configure()


@pytest.fixture
def model(model_file, virtual_names: list[str]) -> Iterator[Model]:
    with Model(model_file("tiny"), devices=virtual_names) as model:
        yield model


def fail(ubatch: int) -> None:
    """A device will fail at this ubatch, counted from 1, long after the decode has returned."""
    configure("split_us=20000", f"fail_graph={only(2, ubatch)}")


def test_a_state_is_not_shorter_than_what_was_decoded(model: Model) -> None:
    with model.context(**SETTINGS) as context:
        pipeline_once(context, PROMPT, N_UBATCHES)
        fail(3)
        context.decode_batch(PROMPT, logits="none")
        assert_pipelined(context, N_UBATCHES, standard=0)
        with pytest.raises(FatalDecodeError):
            context.state()
        assert context.memory.seq_pos_max(0) == 2 * N_UBATCH - 1
        assert context.stats().n_faults == 1
        state = context.state()  # it was told: this is what is left
        context.memory.clear()
        context.load_state(state)
        assert context.memory.seq_pos_max(0) == 2 * N_UBATCH - 1


def test_results_before_a_fault_stay(model: Model) -> None:
    """The row that was asked for was computed by the first ubatch."""
    wanted = [i == 0 for i in range(len(PROMPT))]
    with model.context(**SETTINGS) as context:
        context.decode_batch(PROMPT, logits=wanted)
        want = context.logits()
        assert_pipelined(context, N_UBATCHES, standard=0)
        context.memory.clear()
        fail(4)
        context.decode_batch(PROMPT, logits=wanted)
        assert_pipelined(context, 2 * N_UBATCHES, standard=0)
        assert np.array_equal(context.logits(), want)
        with pytest.raises(FatalDecodeError):
            context.synchronize()


@pytest.mark.parametrize("wait", ["synchronize", "state", "logits"])
def test_nothing_is_left_of_the_outputs_when_a_fault_is_known(model: Model, wait: str) -> None:
    with model.context(**SETTINGS) as context:
        pipeline_once(context, PROMPT, N_UBATCHES)
        fail(N_UBATCHES)
        context.decode_batch(PROMPT)
        with pytest.raises(FatalDecodeError):
            getattr(context, wait)()
        assert context.logits().shape == (0, model.n_vocab)
        assert context.stats().n_ubatches_pipelined > 0


def test_ctrl_c_is_answered_between_ubatches(model: Model) -> None:
    prompt = tokens(30 * N_UBATCH)
    with model.context(**{**SETTINGS, "turboprefill": False}) as context:
        context.decode_batch(prompt)
        want = result(context)
    for turboprefill in (True, False):
        with model.context(**{**SETTINGS, "turboprefill": turboprefill}) as context:
            configure("split_us=30000")
            timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                context.decode_batch(prompt)
            timer.join()
            there = context.memory.seq_pos_max(0) + 1
            if turboprefill:
                assert_pipelined(context, at_least=there // N_UBATCH, standard=0)
            assert 0 < there < len(prompt)
            assert there % N_UBATCH == 0
            configure()
            context.decode_batch(prompt[there:])
            assert result(context) == want


@pytest.mark.unpipelined  # it sets the variable that pipelineoff sets
@pytest.mark.parametrize(("given", "reason"), [("any", ""), ("cuda,virt", ""), ("cuda,rpc", "this backend")])
def test_backends_that_nobody_has_tried_take_the_standard_path(
    model: Model, monkeypatch: pytest.MonkeyPatch, given: str, reason: str
) -> None:
    monkeypatch.setenv("TURBOPREFILL_BACKENDS", given)
    with model.context(**SETTINGS) as context:
        context.decode_batch(PROMPT)
        assert context.stats().reason.startswith(reason)
        assert (context.stats().n_ubatches_pipelined == 0) == bool(reason)


def test_boundaries_are_pinned_by_whoever_can(
    model_file, virtual_names: list[str], rpc_workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An RPC server comes first, and has no pinned memory: the devices behind it use their own."""
    monkeypatch.setenv("TURBOPREFILL_SLOTS", "20")
    buffers = {}
    endpoints = rpc_workers(1)
    Model(model_file("tiny"), rpc_servers=endpoints).close()  # now it has a name
    (remote,) = [device.name for device in devices() if endpoints[0] in device.name + device.description]
    with Model(model_file("tiny"), rpc_servers=endpoints, devices=[remote, *virtual_names]) as model:
        for turboprefill in (False, True):
            with model.context(**{**SETTINGS, "turboprefill": turboprefill}) as context:
                context.decode_batch(PROMPT)
                context.synchronize()
                buffers[turboprefill] = virtual.counters()["buffers"]
                stats = context.stats()
                if turboprefill:
                    assert_pipelined(context, N_UBATCHES, standard=0)
        assert [stage.device for stage in stats.stages if "CPU" not in stage.device] == [remote, *virtual_names]
    assert buffers[True] - buffers[False] >= stats.n_slots == 20
    # each slot has a graph of its own, with room for the largest one, beside its inputs
    assert stats.mem_host >= stats.n_slots * 1024 * 300


def test_a_signal_handler_cannot_use_the_context_that_decodes(model: Model) -> None:
    """It would wait for the call that it interrupts."""
    found: list[BaseException] = []

    def handler(*_: object) -> None:
        try:
            context.stats()
        except InUseError as error:
            found.append(error)

    with model.context(**SETTINGS) as context:
        before = signal.signal(signal.SIGALRM, handler)
        try:
            configure("split_us=20000")
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            context.decode_batch(tokens(20 * N_UBATCH))
        finally:
            signal.signal(signal.SIGALRM, before)
        assert_pipelined(context, 20, standard=0)
        assert len(found) == 1
        assert context.memory.seq_pos_max(0) == 20 * N_UBATCH - 1
