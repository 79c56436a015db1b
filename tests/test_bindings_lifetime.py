"""Closing, freeing, sharing between threads: whatever the order, nothing dangles."""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

import turboprefill as tp

PROMPT = list(range(10, 110))


@pytest.fixture
def model(model_file):
    with tp.Model(model_file("tiny")) as model:
        yield model


def context_of(model, **options):
    return model.context(**({"n_ctx": 512, "n_batch": 128, "n_ubatch": 32, "n_threads": 1} | options))


@pytest.mark.parametrize("order", list(itertools.permutations(["model", "context", "view", "row"])))
def test_every_order_of_freeing_is_safe(model_file, order):
    things = {"model": tp.Model(model_file("tiny"))}
    things["context"] = context_of(things["model"])
    things["context"].decode_batch(PROMPT, logits="all")
    things["view"] = things["context"].logits(copy=False)
    things["row"] = things["view"][3]
    expected = things["context"].logits()[3].copy()
    for name in order:
        if "row" in things:
            np.testing.assert_array_equal(things["row"], expected)
        del things[name]
        gc.collect()


def test_a_view_outlives_close_unchanged(model):
    context = context_of(model)
    context.decode_batch(PROMPT, logits="all")
    view = context.logits(copy=False)
    expected = view.copy()
    model.close()
    assert context.closed
    with context_of(tp.Model(model.path)) as other:  # new allocations would land in freed memory
        other.decode_batch(PROMPT[::-1], logits="all")
        np.testing.assert_array_equal(view, expected)


def test_views_are_zero_copy_and_copies_are_not(model):
    context = context_of(model)
    context.decode_batch(PROMPT, logits="all")
    views = [context.logits(copy=False), context.logits(copy=False)]
    assert np.shares_memory(*views)
    copy = context.logits()
    assert not np.shares_memory(copy, views[0])
    assert context.logits() is copy
    for array in (*views, copy):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1


def test_decoding_over_a_live_view_is_refused(model):
    context = context_of(model)
    context.decode_batch(PROMPT)
    row = context.logits(copy=False)[0]
    with pytest.raises(tp.InUseError, match="view"):
        context.decode_batch([1])
    del row
    context.decode_batch([1])
    assert context.memory.seq_pos_max() == len(PROMPT)


def test_copies_do_not_change_with_the_next_decode(model):
    context = context_of(model)
    context.decode_batch(PROMPT)
    first = context.logits()
    expected = first.copy()
    context.decode_batch([1], logits="all")
    assert not np.array_equal(context.logits(), expected)
    np.testing.assert_array_equal(first, expected)


def test_everything_raises_closed_error_after_close(model):
    context = context_of(model)
    context.decode_batch(PROMPT)
    state = context.state()
    context.close()
    context.close()
    assert context.closed
    calls = [
        lambda: context.decode_batch([1]),
        lambda: context.decode_batch([1], pos=[0]),
        lambda: context.logits(),
        lambda: context.logits(copy=False),
        lambda: context.synchronize(),
        lambda: context.state(),
        lambda: context.load_state(state),
        lambda: context.memory.clear(),
        lambda: context.memory.seq_pos_max(),
        lambda: context.stats(),
        lambda: context.perf(),
        lambda: context.turboprefill,
        lambda: context.trace().__enter__(),
        lambda: context.set_abort_callback(None),
        lambda: next(context.generate([1], 1)),
    ]
    for call in calls:
        with pytest.raises(tp.ClosedError):
            call()


def test_closing_a_model_closes_its_contexts(model):
    contexts = [context_of(model) for _ in range(2)]
    model.close()
    model.close()
    assert all(context.closed for context in contexts)
    for call in (lambda: model.tokenize("x"), lambda: model.context(), lambda: model.metadata()):
        with pytest.raises(tp.ClosedError):
            call()


def test_contexts_are_freed_without_close(model):
    context = context_of(model)
    context.set_abort_callback(lambda: False)
    context.decode_batch(PROMPT)
    gone = weakref.ref(context)
    del context
    gc.collect()
    assert gone() is None


def test_a_context_keeps_its_model(model_file):
    context = context_of(tp.Model(model_file("tiny")))
    gc.collect()
    context.decode_batch(PROMPT)
    assert context.logits().shape[0] == 1


def test_a_context_can_be_used_again_and_again(model):
    context = context_of(model)
    results = []
    for _ in range(3):
        context.memory.clear()
        results.append(list(context.generate(PROMPT, 4)))
    assert results[0] == results[1] == results[2]


def test_other_threads_run_during_a_decode(model):
    context = context_of(model, n_ctx=2048, n_batch=2048)
    running, counts = threading.Event(), [0]

    def count():
        while not running.is_set():
            counts[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        before = counts[0]
        context._native.decode(**long_batch(1024))  # one native call: Python cannot switch threads within it
        context.synchronize()
        after = counts[0]
    finally:
        running.set()
        thread.join()
    assert after - before > 100


def long_batch(n):
    return {
        "tokens": np.ones(n, np.int32),
        "embd": None,
        "pos": np.arange(n, dtype=np.int32),
        "n_seq_id": np.ones(n, np.int32),
        "seq_id": np.zeros(n, np.int32),
        "output": np.zeros(n, np.int8),
    }


def test_close_waits_for_a_decode_in_another_thread(model):
    """The abort callback holds the decode until close() has been called, and had time to return if it does not wait."""
    context = context_of(model)
    begun, go_on, closed = threading.Event(), threading.Event(), threading.Event()
    questions, seen = [], []

    def hold():
        questions.append(None)
        if len(questions) == 2:  # the first comes from decode_batch, before llama.cpp has the batch
            begun.set()
            assert go_on.wait(60)
        return False

    def decode():
        context.decode_batch(PROMPT)
        seen.append("decoded")
        assert closed.wait(60)
        try:
            context.decode_batch([1])
        except tp.ClosedError as error:
            seen.append(error)

    def close():
        context.close()
        closed.set()

    context.set_abort_callback(hold, interval_s=0)
    threads = [threading.Thread(target=decode), threading.Thread(target=close)]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    assert not closed.wait(0.5)
    assert not context.closed
    assert seen == []
    go_on.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert context.closed
    assert seen[:1] == ["decoded"]
    assert [type(error) for error in seen[1:]] == [tp.ClosedError]


def test_threads_share_a_context_without_harm(model):
    """Each sees outputs of whoever decoded last: whole ones, and none of a mixture."""
    n_threads, n_rounds, n_tokens = 4, 10, 40
    context = context_of(model, n_seq_max=n_threads, n_ctx=2048)
    alone = []
    for seq_id in range(n_threads):
        context.decode_batch([seq_id + 1] * n_tokens, seq_ids=seq_id, logits="all")
        alone.append(context.logits().tobytes())
        assert context.memory.seq_rm(seq_id)
    assert len(set(alone)) == n_threads
    errors, seen, ends = [], [], []

    def work(seq_id):
        try:
            for _ in range(n_rounds):
                context.decode_batch([seq_id + 1] * n_tokens, seq_ids=seq_id, logits="all")
                seen.append(context.logits().tobytes())
                context.stats()
                ends.append(context.memory.seq_pos_max(seq_id))
                assert context.memory.seq_rm(seq_id)
        except Exception as error:  # noqa: BLE001 - reported by the main thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert ends == [n_tokens - 1] * (n_threads * n_rounds)
    assert len(seen) == n_threads * n_rounds
    assert set(seen) <= {*alone, b""}  # no rows while another thread's decode has begun and not ended
    assert set(seen) & set(alone)
    for seq_id in range(n_threads):
        assert context.memory.seq_pos_max(seq_id) == -1
        context.decode_batch([seq_id + 1] * n_tokens, seq_ids=seq_id, logits="all")
        assert context.logits().tobytes() == alone[seq_id]


def test_objects_alive_at_exit_do_no_harm(model_file):
    code = f"""
import logging, threading
logging.basicConfig(level=logging.DEBUG)
import turboprefill as tp
model = tp.Model({str(model_file("tiny"))!r})
context = model.context(n_ctx=512, n_threads=1)
context.set_abort_callback(lambda: False)
context.decode_batch([1] * 300, logits="all")
view = context.logits(copy=False)
thread = threading.Thread(target=lambda: context.synchronize(), daemon=True)
thread.start()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_import_is_silent_and_the_native_module_waits_until_it_is_needed():
    code = "import sys, turboprefill, turboprefill.cli; assert 'turboprefill._core' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_exported_name_exists():
    for name in tp.__all__:
        assert getattr(tp, name) is not None
    assert set(tp.__all__) <= set(dir(tp))
    with pytest.raises(AttributeError, match="nothing"):
        _ = tp.nothing
