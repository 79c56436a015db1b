"""Inputs that make no sense: refused with a type, or computed to the same nonsense on both paths."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

import turboprefill as tp
from pipelinecounts import assert_pipelined
from turboprefill import Context, DecodeError, Model
from turboprefill.state import pack_header
from virtualdevices import result, tokens

OPTIONS = {"n_ctx": 256, "n_batch": 64, "n_ubatch": 8, "n_seq_max": 2, "n_threads": 1, "n_threads_batch": 1}


@pytest.fixture(scope="module")
def model(model_file):
    with Model(model_file("tiny"), devices=[]) as model:
        yield model


@pytest.fixture
def context(model):
    with model.context(**OPTIONS) as context:
        yield context


def on_both_paths(model: Model, call) -> list[object]:
    """What the call, or its error, and a prompt after it gave: on the standard path and with TurboPrefill."""
    outcomes = []
    for turboprefill in (False, True):
        with model.context(**OPTIONS, turboprefill=turboprefill) as context:
            try:
                seen: object = call(context)
            except DecodeError as error:
                seen = type(error), error.n_decoded
            end = context.memory.seq_pos_max()
            context.memory.clear()
            context.decode_batch(tokens(30))
            if turboprefill:
                assert_pipelined(context, at_least=4)
            outcomes.append((seen, end, result(context)))
    return outcomes


@pytest.mark.pipelined
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e-45])
@pytest.mark.parametrize("preset", ["tiny", "gptoss-tiny", "jamba-tiny"])
def test_embeddings_that_are_no_numbers_are_computed_as_on_the_standard_path(
    model_file, virtual_names, preset, value
) -> None:
    def decode(context: Context) -> bytes:
        embeddings = np.random.default_rng(0).standard_normal((40, context.model.n_embd_inp), dtype=np.float32)
        embeddings[13] = value
        context.decode_batch(embeddings, logits="all")
        # of what is no number the bits depend on the order of operands that the compiler has chosen, not on us
        return np.nan_to_num(context.logits(), nan=7.0).tobytes()

    with Model(model_file(preset), devices=virtual_names) as model:
        standard, pipelined = on_both_paths(model, decode)
        assert standard == pipelined


POSITIONS = {
    "far away": np.arange(40) + 2**31 - 50,
    "a late start": np.arange(40) + 100,
    "backwards": np.arange(40)[::-1],
    "all the same": np.zeros(40, int),
    "with gaps": np.arange(40) * 3,
    "a gap after the first ubatches": np.r_[np.arange(20), np.arange(20) + 50],
    "twice": np.r_[np.arange(20), np.arange(20)],
}


@pytest.mark.pipelined
@pytest.mark.parametrize("pos", POSITIONS.values(), ids=POSITIONS)
@pytest.mark.parametrize("preset", ["tiny", "gemma3-tiny", "mamba-tiny"])
def test_positions_that_do_not_follow_each_other_end_as_on_the_standard_path(
    model_file, virtual_names, preset, pos
) -> None:
    def decode(context: Context) -> bytes:
        context.decode_batch(tokens(40), pos=pos)
        return context.logits().tobytes()

    with Model(model_file(preset), devices=virtual_names) as model:
        standard, pipelined = on_both_paths(model, decode)
        assert standard == pipelined


BAD_INPUTS = {
    "objects": ({"inputs": np.array([1, None], object)}, "tokens are object"),
    "complex": ({"inputs": [1 + 2j]}, "tokens are complex"),
    "dates": ({"inputs": np.array(["2026-01-01"], "datetime64[D]")}, "tokens are datetime"),
    "a number": ({"inputs": 7}, r"tokens have shape \(\)"),
    "nothing": ({"inputs": None}, "tokens are object"),
    "a generator": ({"inputs": (i for i in [1])}, "tokens are object"),
    "a dictionary": ({"inputs": {1: 2}}, "tokens are object"),
    "half embeddings": ({"inputs": np.zeros((2, 256), np.float16)}, "float16; expected float32"),
    "embeddings of the other byte order": ({"inputs": np.zeros((2, 256), ">f4")}, "expected float32"),
    "embeddings of three dimensions": ({"inputs": np.zeros((2, 256, 1), np.float32)}, r"shape \(2, 256, 1\)"),
    "a list of lists of floats": ({"inputs": [[0.0] * 256]}, "float64"),
    "more than an int64": ({"inputs": np.array([2**64 - 1], np.uint64)}, r"tokens\[0\] is 18446744073709551615"),
    "a generator of sequences": ({"seq_ids": (i for i in [0, 0, 0])}, "seq_ids"),
    "an array that is a number": ({"seq_ids": np.array(0)}, "seq_ids"),
    "float sequences": ({"seq_ids": [0.0, 0.0, 0.0]}, "seq_ids"),
    "sequences of nothing": ({"seq_ids": [[None], [0], [0]]}, "seq_ids"),
    "sequences three lists deep": ({"seq_ids": [[[0]], [[0]], [[0]]]}, "seq_ids"),
    "huge sequences": ({"seq_ids": [2**40, 0, 0]}, "1099511627776"),
    "text as sequences": ({"seq_ids": ["0", "0", "0"]}, "seq_ids"),
    "truth as a sequence": ({"seq_ids": True}, "seq_ids"),
    "a position that is nothing": ({"pos": [None, 1, 2]}, "pos"),
    "huge positions": ({"pos": [2**40, 1, 2]}, "1099511627776"),
    "text as positions": ({"pos": "012"}, "pos"),
    "no selection": ({"logits": None}, "logits"),
    "a selection of masks": ({"logits": [[True, True, True]]}, "mask"),
    "a number as selection": ({"logits": 1}, "logits"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_nonsense_is_refused_with_its_name(context, arguments, message) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        context.decode_batch(**{"inputs": [1, 2, 3], **arguments})
    assert context.memory.seq_pos_max() == -1


def test_arrays_of_every_layout_are_read_right(model) -> None:
    values = np.array(tokens(20))
    embeddings = np.random.default_rng(1).standard_normal((20, model.n_embd_inp), dtype=np.float32)
    frozen = values.astype(np.int16)
    frozen.flags.writeable = False
    same = [
        [values, frozen, values.astype(">i8"), np.repeat(values, 3)[::3], values[::-1].copy()[::-1], values.tolist()],
        [embeddings, np.asfortranarray(embeddings), np.repeat(embeddings, 2, axis=0)[::2]],
    ]
    for group in same:
        results = set()
        for inputs in group:
            with model.context(**OPTIONS) as context:
                context.decode_batch(inputs)
                results.add(result(context))
        assert len(results) == 1


@pytest.mark.pipelined
def test_a_prompt_that_is_much_too_long_keeps_what_fitted(model_file, virtual_names) -> None:
    def decode(context: Context) -> None:
        context.decode_batch(tokens(5000), logits="none")

    with Model(model_file("tiny"), devices=virtual_names) as model:
        standard, pipelined = on_both_paths(model, decode)
    assert standard == pipelined
    assert standard[0][0] is tp.NoKVSlotError


HEADERS = {"no JSON": b"{", "no object": b"[]", "not even text": b"\xff\xfe"}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_state_with_a_strange_header_and_a_right_checksum_is_refused(context, header) -> None:
    prefix = pack_header({})[:8] + struct.pack("<I", len(header)) + header
    for body in (prefix, pack_header({})[:8] + struct.pack("<I", 2**32 - 1) + header):
        with pytest.raises(tp.StateError):
            context.load_state(body + struct.pack("=I", zlib.crc32(body)))


def test_a_state_of_another_format_with_a_right_checksum_is_refused(context) -> None:
    context.decode_batch([1, 2, 3])
    body = b"TPSTATE2" + context.state()[8:-4]
    with pytest.raises(tp.StateError, match=rf"these {len(body) + 4} bytes are not a saved state"):
        context.load_state(body + struct.pack("=I", zlib.crc32(body)))
    assert context.memory.seq_pos_max() == 2
