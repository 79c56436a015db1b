"""Calls from llama.cpp back into Python: the abort callback and the log."""

from __future__ import annotations

import logging
import threading

import pytest

import turboprefill as tp
from turboprefill import log
from turboprefill.native import core

PROMPT = [1] * 400


@pytest.fixture(scope="module")
def model(model_file):
    with tp.Model(model_file("tiny")) as model:
        yield model


@pytest.fixture
def context(model):
    with model.context(n_ctx=512, n_batch=512, n_ubatch=32, n_threads=2) as context:
        yield context


def stop_after(n):
    calls = iter(range(n))
    return lambda: next(calls, None) is None


def test_the_abort_callback_stops_a_decode_midway(context):
    context.set_abort_callback(stop_after(50), interval_s=0)
    with pytest.raises(tp.AbortedError) as caught:
        context.decode_batch(PROMPT)
    assert caught.value.code == 2
    end = context.memory.seq_pos_max()
    assert end < len(PROMPT) - 1
    context.set_abort_callback(None)
    context.decode_batch([1] * 10)
    assert context.memory.seq_pos_max() == end + 10


def test_a_callback_that_is_true_at_once_stops_before_anything_is_computed(context):
    context.set_abort_callback(lambda: True)
    with pytest.raises(tp.AbortedError):
        context.decode_batch(PROMPT)
    assert context.memory.seq_pos_max() == -1


@pytest.mark.parametrize("n_calls", [0, 50])
def test_what_the_abort_callback_raises_stops_the_decode_and_is_raised(context, n_calls):
    stop = stop_after(n_calls)

    def callback():
        if stop():
            raise KeyboardInterrupt("enough")
        return False

    context.set_abort_callback(callback, interval_s=0)
    with pytest.raises(KeyboardInterrupt, match="enough"):
        context.decode_batch(PROMPT)
    assert context.memory.seq_pos_max() < len(PROMPT) - 1
    context.set_abort_callback(None)
    context.decode_batch([1])


def test_using_the_context_in_its_abort_callback_is_refused(context):
    seen = []

    def callback():
        if threading.active_count() and len(seen) < 2:
            try:
                seen.append(context.memory.seq_pos_max())
            except tp.InUseError as error:
                seen.append(error)
        return False

    context.set_abort_callback(callback, interval_s=0)
    context.decode_batch(PROMPT)
    context.synchronize()
    assert seen[0] == -1  # asked before the decode, when nothing is in use
    assert isinstance(seen[1], tp.InUseError)


def test_the_abort_callback_must_be_callable(context):
    with pytest.raises(TypeError, match="7"):
        context.set_abort_callback(7)


def test_the_log_goes_to_python_logging(model_file, caplog):
    with caplog.at_level(logging.DEBUG, "turboprefill.llama"), tp.Model(model_file("tiny")) as model:
        model.context(n_ctx=256).close()
    text = caplog.text
    assert "loaded meta data" in text
    assert "constructing llama_context" in text
    assert {record.name for record in caplog.records} == {"turboprefill.llama"}


def test_pieces_of_a_line_are_joined_and_levels_kept(caplog):
    log.flush()
    caplog.clear()
    with caplog.at_level(logging.DEBUG, "turboprefill.llama"):
        core.log_message(3, "one ")
        core.log_message(5, "line\nand ")
        core.log_message(5, "another\n")
        core.log_message(4, "bad\n")
        log.flush()
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.WARNING, "one line"),
        (logging.WARNING, "and another"),
        (logging.ERROR, "bad"),
    ]


def test_logging_from_many_threads_neither_blocks_nor_loses_lines(caplog):
    log.flush()
    caplog.clear()

    def write(i):
        for j in range(200):
            core.log_message(2, f"thread {i} line {j}\n")

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    with caplog.at_level(logging.INFO, "turboprefill.llama"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        log.flush()
    assert len(caplog.records) == 1600


def test_the_log_is_bounded_and_says_what_was_lost(caplog):
    log.flush()
    caplog.clear()
    for _ in range(10000):
        core.log_message(2, "x\n")
    with caplog.at_level(logging.WARNING, "turboprefill.llama"):
        log.flush()
    assert "1808 older lines" in caplog.text


def test_a_handler_that_fails_does_not_break_collecting():
    class Failing(logging.Handler):
        def emit(self, record):
            raise RuntimeError("handler")

    handler = Failing()
    log.logger.addHandler(handler)
    try:
        core.log_message(4, "first\n")
        with pytest.raises(RuntimeError, match="handler"):
            log.flush()
    finally:
        log.logger.removeHandler(handler)
    assert log._collecting == []
