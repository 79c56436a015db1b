"""What goes into a context and comes out: values, shapes, positions, splitting."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

import turboprefill as tp
from turboprefill import synth
from turboprefill.inputs import Limits, make_batch
from turboprefill.synth import archs
from turboprefill.synth.vocab import add_tokenizer

PROMPT = list(range(10, 210))


@pytest.fixture(scope="module")
def model(model_file):
    with tp.Model(model_file("tiny")) as model:
        yield model


@pytest.fixture
def make(model):
    contexts = []

    def context(**options):
        options = {"n_ctx": 512, "n_batch": 256, "n_ubatch": 64, "n_threads": 1, "turboprefill": False} | options
        contexts.append(model.context(**options))
        return contexts[-1]

    yield context
    for context in contexts:
        context.close()


@pytest.fixture
def reference(make):
    context = make()
    context.decode_batch(PROMPT, logits="all")
    return context.logits()


def test_logits_have_one_row_per_token_asked_for(make, model):
    context = make()
    mask = np.zeros(len(PROMPT), bool)
    mask[[3, 64, 199]] = True
    shapes = []
    for logits in ("last", "all", "none", mask):
        context.memory.clear()
        context.decode_batch(PROMPT, logits=logits)
        shapes.append(context.logits().shape)
    assert shapes == [(1, model.n_vocab), (200, model.n_vocab), (0, model.n_vocab), (3, model.n_vocab)]


@pytest.mark.parametrize("copy", [True, False])
def test_rows_are_in_the_order_of_the_tokens(make, reference, copy):
    context = make()
    mask = [i in (0, 7, 199) for i in range(len(PROMPT))]
    context.decode_batch(PROMPT, logits=mask)
    np.testing.assert_array_equal(context.logits(copy=copy), reference[[0, 7, 199]])


@pytest.mark.parametrize("logits", ["last", "all", "none", "mask"])
@pytest.mark.parametrize("n_batch", [64, 128])
def test_inputs_longer_than_n_batch_are_split(make, reference, n_batch, logits):
    context = make(n_batch=n_batch)
    mask = np.zeros(len(PROMPT), bool)
    mask[[0, 63, 64, 150]] = True
    context.decode_batch(PROMPT, logits=mask if logits == "mask" else logits)
    expected = {"last": reference[-1:], "all": reference, "none": reference[:0], "mask": reference[mask]}[logits]
    np.testing.assert_array_equal(context.logits(), expected)
    assert context.memory.seq_pos_max() == 199


def test_rows_of_an_early_part_alone_are_kept(make, reference):
    context = make(n_batch=64)
    context.decode_batch(PROMPT, logits=[i == 5 for i in range(len(PROMPT))])
    np.testing.assert_array_equal(context.logits(copy=False), reference[[5]])


def test_positions_continue_where_the_sequence_ends(make, reference):
    context = make()
    context.decode_batch(PROMPT[:64], logits="none")
    context.decode_batch(PROMPT[64:128], logits="none")
    context.decode_batch(PROMPT[128:])
    np.testing.assert_array_equal(context.logits(), reference[-1:])


def test_interleaved_sequences_continue_from_their_own_ends(make):
    single = make()
    single.decode_batch(PROMPT[:3], logits="none")
    single.decode_batch(PROMPT[50:52])

    context = make(n_seq_max=2)
    context.decode_batch(PROMPT[:3], seq_ids=1, logits="none")
    context.decode_batch([PROMPT[100], PROMPT[50], PROMPT[101], PROMPT[51]], seq_ids=[0, 1, 0, 1], logits="all")
    assert [context.memory.seq_pos_max(s) for s in (0, 1)] == [1, 4]
    np.testing.assert_allclose(context.logits()[3], single.logits()[0], rtol=1e-4, atol=1e-5)


def test_tokens_may_belong_to_several_sequences(make):
    context = make(n_seq_max=2, kv_unified=True)
    context.decode_batch(PROMPT[:4], seq_ids=[[0, 1]] * 4)
    context.decode_batch([1], seq_ids=1)
    assert [context.memory.seq_pos_max(s) for s in (0, 1)] == [3, 4]
    with pytest.raises(tp.InvalidInputError, match="continue at positions"):
        context.decode_batch([2], seq_ids=[[0, 1]])


@pytest.mark.parametrize("n_batch", [64, 48, 7])
def test_tokens_of_several_sequences_are_split_as_those_of_one_are(make, n_batch):
    """Tokens with one, two and three ids, so that ids and tokens are not numbered alike."""
    groups = [[[0], [0, 1], [0, 1, 2]][min(2 * i // 64, 2)] for i in range(100)][::-1]
    options = {"n_seq_max": 3, "kv_unified": True, "n_ubatch": 7}
    whole, split = make(**options), make(**options, n_batch=n_batch)
    whole.decode_batch(PROMPT[:100], seq_ids=groups, logits="all")
    split.decode_batch(PROMPT[:100], seq_ids=groups, logits="all")
    assert [split.memory.seq_pos_max(s) for s in range(3)] == [whole.memory.seq_pos_max(s) for s in range(3)]
    if n_batch % 7 == 0:  # else ubatches have other sizes, and sums other roundings
        np.testing.assert_array_equal(split.logits(), whole.logits())
    np.testing.assert_allclose(split.logits(), whole.logits(), rtol=1e-3, atol=1e-3)


LIMITS = Limits(n_vocab=100, n_embd_inp=4, n_pos_per_embd=4, n_seq_max=3)


def batch_of(inputs, pos=None, seq_ids=0, logits="last", pos_max: Callable[[int], int] = lambda _: -1):
    return make_batch(inputs, pos, seq_ids, logits, limits=LIMITS, pos_max=pos_max)


def test_a_part_has_the_values_of_its_own_tokens():
    groups = [[2], [0, 1], [0, 1, 2], [1]]
    batch = batch_of([10, 11, 12, 13], [0, 1, 2, 3], groups, [True, False, True, False])
    for start, stop in ((0, 4), (0, 1), (1, 3), (2, 4), (3, 4)):
        part = batch.part(start, stop, output_all=False)
        assert part["tokens"].tolist() == [10, 11, 12, 13][start:stop]
        assert part["pos"].tolist() == [0, 1, 2, 3][start:stop]
        assert part["n_seq_id"].tolist() == [len(group) for group in groups[start:stop]]
        assert part["seq_id"].tolist() == [s for group in groups[start:stop] for s in group]
        assert part["output"].tolist() == [1, 0, 1, 0][start:stop]
        assert part["embd"] is None
        assert batch.part(start, stop, output_all=True)["output"].tolist() == [1] * (stop - start)


def test_positions_of_embeddings_are_the_same_in_all_sections_but_the_last():
    """As llama.cpp lays out the positions of text for M-RoPE."""
    embeddings = np.arange(12, dtype=np.float32).reshape(3, 4)
    batch = batch_of(embeddings, pos_max=lambda _: 6)
    assert batch.pos.tolist() == [[7, 8, 9], [7, 8, 9], [7, 8, 9], [0, 0, 0]]
    part = batch.part(1, 3, output_all=False)
    assert part["pos"].tolist() == [8, 9, 8, 9, 8, 9, 0, 0]
    assert part["embd"].tolist() == embeddings[1:3].tolist()
    assert part["tokens"] is None
    given = np.arange(12).reshape(4, 3)
    assert batch_of(embeddings, given).pos.tolist() == given.tolist()
    assert batch_of([1, 2, 3], pos_max=lambda _: 6).pos.tolist() == [[7, 8, 9]]  # tokens need one row


def test_the_largest_position_leaves_room_for_the_next_one():
    largest = 2**31 - 2
    assert batch_of([1], [largest]).pos.tolist() == [[largest]]
    assert batch_of([1], pos_max=lambda _: largest - 1).pos.tolist() == [[largest]]
    for options in ({"pos": [largest + 1]}, {"pos_max": lambda _: largest}):
        with pytest.raises(tp.InvalidInputError, match=rf"pos\[0\] is {largest + 1}; expected 0 to {largest}"):
            batch_of([1], **options)


def test_tokens_shared_by_sequences_continue_where_all_of_these_end():
    ends = {0: 4, 1: 4, 2: 9}
    batch = batch_of([1] * 5, seq_ids=[[0, 1], [2], [0], [0], [2]], pos_max=ends.__getitem__)
    assert batch.pos.tolist() == [[5, 10, 6, 7, 11]]
    for groups in ([[0, 2]], [[0, 1], [0], [0, 1]]):
        with pytest.raises(tp.InvalidInputError, match=f"token {len(groups) - 1} belongs to .*pass pos"):
            batch_of([1] * len(groups), seq_ids=groups, pos_max=ends.__getitem__)


@pytest.mark.parametrize(("value", "fits"), [(0, True), (99, True), (-1, False), (100, False)])
def test_every_token_of_the_vocabulary_is_allowed(value, fits):
    if fits:
        assert batch_of([value]).tokens.tolist() == [value]
    else:
        with pytest.raises(tp.InvalidInputError, match=rf"tokens\[0\] is {value}; expected 0 to 99"):
            batch_of([value])


@pytest.mark.parametrize("form", [lambda s: s, lambda s: [s], lambda s: np.array([s]), lambda s: [[s]]])
@pytest.mark.parametrize(("value", "fits"), [(0, True), (2, True), (-1, False), (3, False)])
def test_every_sequence_is_allowed_in_every_form(form, value, fits):
    if fits:
        batch = batch_of([1], seq_ids=form(value))
        assert (batch.n_seq_id.tolist(), batch.seq_id.tolist()) == ([1], [value])
    else:
        with pytest.raises(tp.InvalidInputError, match=rf"seq_ids\[0\] is {value}; expected 0 to 2"):
            batch_of([1], seq_ids=form(value))


@pytest.mark.parametrize(
    ("inputs", "expected"), [([1, 2], r"\(2,\)$"), (np.zeros((2, 4), np.float32), r"\(2,\) or \(4, 2\)$")]
)
def test_positions_of_another_shape_are_refused_with_the_shapes_that_fit(inputs, expected):
    with pytest.raises(tp.InvalidInputError, match=rf"pos has shape \(3,\); expected {expected}"):
        batch_of(inputs, [0, 1, 2])


def test_positions_may_be_given(make, reference):
    context = make()
    context.decode_batch(PROMPT, pos=np.arange(len(PROMPT)))
    np.testing.assert_array_equal(context.logits(), reference[-1:])


def test_embeddings_are_accepted_as_input(make, model):
    rng = np.random.default_rng(0)
    context = make(n_batch=64)
    context.decode_batch(rng.standard_normal((100, model.n_embd_inp), np.float32), logits="all")
    assert context.logits().shape == (100, model.n_vocab)
    assert np.isfinite(context.logits()).all()
    assert context.memory.seq_pos_max() == 99


@pytest.mark.parametrize("n_batch", [64, 256])
@pytest.mark.parametrize("logits", ["last", "all"])
def test_embeddings_come_out_beside_logits(make, model, reference, n_batch, logits):
    context = make(embeddings=True, n_batch=n_batch)
    context.decode_batch(PROMPT, logits=logits)
    n = 200 if logits == "all" else 1
    assert context.embeddings().shape == (n, model.n_embd_out)
    assert context.embeddings(copy=False).any()
    np.testing.assert_allclose(context.logits(), reference[-n:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chosen", [[199], [5], [7, 8, 9], [0, 7, 199], [3, 4, 6]], ids=str)
@pytest.mark.parametrize("n_batch", [64, 256])
def test_views_have_the_rows_of_copies(make, n_batch, chosen):
    """Also where llama.cpp keeps rows that nobody asked for, as it does beside embeddings."""
    mask = np.isin(np.arange(len(PROMPT)), chosen)
    all_rows, context = make(embeddings=True, n_batch=n_batch), make(embeddings=True, n_batch=n_batch)
    all_rows.decode_batch(PROMPT, logits="all")
    context.decode_batch(PROMPT, logits=mask)
    for name in ("logits", "embeddings"):
        view = getattr(context, name)(copy=False).copy()
        np.testing.assert_array_equal(view, getattr(all_rows, name)()[mask])
        np.testing.assert_array_equal(getattr(context, name)(), view)


@pytest.mark.parametrize(("chosen", "together"), [([5], True), ([7, 8, 9], True), ([7, 9], False)], ids=str)
def test_rows_that_lie_together_are_not_copied(make, chosen, together):
    context = make(embeddings=True)
    context.decode_batch(PROMPT, logits=np.isin(np.arange(len(PROMPT)), chosen))
    rows = context.logits(copy=False)
    with pytest.raises(tp.InUseError, match="view") if together else contextlib.nullcontext():
        context.decode_batch([1])
    del rows
    context.decode_batch([1])


def test_pooled_embeddings_are_per_sequence(make, model):
    context = make(embeddings=True, pooling="mean", n_seq_max=2)
    context.decode_batch(PROMPT[:20], seq_ids=[0] * 10 + [1] * 10, logits="all")
    assert context.embeddings(1).shape == (model.n_embd_out,)
    assert not np.array_equal(context.embeddings(0), context.embeddings(1))
    with pytest.raises(tp.InvalidInputError, match="pass seq_id"):
        context.embeddings()
    with pytest.raises(tp.InvalidInputError, match="makes embeddings, not logits"):
        context.logits()


def test_pooled_embeddings_need_the_whole_input_in_one_batch(make):
    context = make(embeddings=True, pooling="mean", n_batch=64)
    with pytest.raises(tp.InvalidInputError, match="pooled embeddings need the whole input in one batch: 65 > 64"):
        context.decode_batch(PROMPT[:65])
    assert context.memory.seq_pos_max() == -1
    context.decode_batch(PROMPT[:64])
    assert context.embeddings(0).any()


@pytest.fixture(scope="module")
def non_causal_file(model_file, tmp_path_factory) -> Path:
    """The tiny model, each of whose tokens attends to those behind it too."""
    path, shape = tmp_path_factory.mktemp("non-causal") / "model.gguf", synth.shape_of("tiny")
    writer = gguf.GGUFWriter(path, shape.arch)
    archs.add_metadata(writer, shape)
    writer.add_causal_attention(False)
    add_tokenizer(writer, shape.n_vocab)
    for tensor in gguf.GGUFReader(model_file("tiny")).tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_inputs_without_causal_attention_are_never_split(non_causal_file):
    with (
        tp.Model(non_causal_file, devices=[]) as model,
        model.context(n_ctx=256, n_batch=64, n_ubatch=64, n_threads=1, embeddings=True) as context,
    ):
        with pytest.raises(tp.InvalidInputError, match="the batch has 65 tokens; n_batch is 64"):
            context.decode_batch(PROMPT[:65])
        context.decode_batch(PROMPT[:64], logits="all")
        assert context.embeddings().shape == (64, model.n_embd_out)


def test_generating_ends_before_a_token_that_ends_the_generation(make, model, monkeypatch):
    tokens = list(make().generate(PROMPT, 8))
    end = tokens[-1]
    monkeypatch.setattr(model, "is_eog", lambda token: token == end)
    context = make()
    assert list(context.generate(PROMPT, 8)) == tokens[: tokens.index(end)]
    assert end not in tokens[: tokens.index(end)]


def test_loading_a_state_forgets_the_outputs(make, model):
    context = make(embeddings=True)
    context.decode_batch(PROMPT, logits="all")
    state = context.state()
    assert (context.logits().shape[0], context.embeddings().shape[0]) == (200, 200)
    context.load_state(state)
    assert (context.logits().shape, context.embeddings().shape) == ((0, model.n_vocab), (0, model.n_embd_out))


STATE_OPTIONS = {"n_seq_max": 2, "kv_unified": False, "type_k": "f16", "type_v": "f16"}


@pytest.mark.parametrize(
    ("key", "value"), [("n_seq_max", 1), ("kv_unified", True), ("type_k", "f32"), ("type_v", "f32")]
)
def test_a_state_belongs_to_contexts_of_one_kind(make, key, value):
    first, second = make(**STATE_OPTIONS), make(**STATE_OPTIONS | {key: value})
    first.decode_batch(PROMPT[:10])
    second.decode_batch(PROMPT[:5])
    for context, other in ((first, second), (second, first)):
        with pytest.raises(tp.StateError, match=f"another model or kind of context: {key} is "):
            context.load_state(other.state())
    assert (first.memory.seq_pos_max(), second.memory.seq_pos_max()) == (9, 4)


def test_a_state_belongs_to_one_model(make, model_file):
    with (
        tp.Model(model_file("tiny", n_layers=2)) as other,
        other.context(n_ctx=512, n_threads=1) as context,
        pytest.raises(tp.StateError, match=r"another model or kind of context: .*n_params is "),
    ):
        context.load_state(make().state())


def test_generate_is_greedy_lazy_and_repeatable(make, reference):
    first, second = make(), make()
    tokens = list(first.generate(PROMPT, 8))
    assert tokens[0] == int(reference[-1].argmax())
    assert tokens == list(second.generate(PROMPT, 8))
    assert first.memory.seq_pos_max() == len(PROMPT) + 8 - 2  # the last token is not decoded
    lazy = make()
    steps = lazy.generate(PROMPT, 8)
    assert lazy.memory.seq_pos_max() == -1
    next(steps)
    assert lazy.memory.seq_pos_max() == len(PROMPT) - 1
    assert list(first.generate([1], 0)) == []


def test_state_round_trip_gives_the_same_continuation(make, reference):
    first, second = make(), make()
    first.decode_batch(PROMPT[:199], logits="none")
    second.load_state(first.state())
    assert second.memory.seq_pos_max() == 198
    assert second.logits().shape[0] == 0
    for context in (first, second):
        context.decode_batch(PROMPT[199:])
    np.testing.assert_array_equal(first.logits(), second.logits())
    assert first.state() == second.state()


def test_memory_operations(make):
    context = make(n_seq_max=2, kv_unified=True)
    memory = context.memory
    context.decode_batch(PROMPT[:10])
    memory.seq_cp(0, 1, 0, 5)
    assert (memory.seq_pos_min(1), memory.seq_pos_max(1)) == (0, 4)
    assert memory.seq_rm(0, 8)
    assert memory.seq_pos_max(0) == 7
    assert memory.can_shift
    memory.seq_add(0, 4, None, 3)
    assert memory.seq_pos_max(0) == 10
    memory.seq_keep(1)
    assert [memory.seq_pos_max(s) for s in (0, 1)] == [-1, 7]  # token 4 was shared, so it moved in both
    assert memory.seq_rm()
    assert memory.seq_pos_max(1) == -1


def test_removing_a_part_of_all_sequences_fails_if_it_fails_for_one(model_file):
    with (
        tp.Model(model_file("mamba-tiny")) as model,
        model.context(n_ctx=256, n_seq_max=2, n_threads=1, turboprefill=False) as context,
    ):
        context.decode_batch(PROMPT[:10])
        assert context.memory.seq_rm(1, 5)  # there is nothing
        assert not context.memory.seq_rm(None, 5)  # a recurrent state cannot forget its last tokens
        assert context.memory.seq_rm()
        assert context.memory.seq_pos_max() == -1


def test_sequences_with_memory_of_their_own_are_copied_and_kept_whole(make):
    context = make(n_seq_max=3)
    context.decode_batch(PROMPT[:10], logits="none")
    context.memory.seq_cp(0, 1)
    context.decode_batch([1, 1], seq_ids=[0, 1], logits="all")
    np.testing.assert_allclose(*context.logits(), rtol=1e-4, atol=1e-5)
    context.memory.seq_keep(1)
    assert [context.memory.seq_pos_max(s) for s in (0, 1, 2)] == [-1, 10, -1]
    with pytest.raises(tp.InvalidInputError, match="kv_unified"):
        context.memory.seq_cp(1, 2, 0, 5)


@pytest.mark.parametrize("preset", ["mamba-tiny", "gemma3-tiny", "jamba-tiny", "gptoss-tiny"])
def test_other_kinds_of_memory_work_alike(model_file, preset):
    # A sliding-window cache is laid out anew when it is restored, and flash attention rounds by layout.
    options = {"n_ctx": 512, "n_ubatch": 32, "n_threads": 1, "flash_attn": False, "turboprefill": False}
    with tp.Model(model_file(preset)) as model:
        whole, parts = model.context(n_batch=256, **options), model.context(n_batch=32, **options)
        for context in (whole, parts):
            context.decode_batch(PROMPT, logits="all")
        np.testing.assert_array_equal(whole.logits(), parts.logits())
        restored = model.context(n_batch=256, **options)
        restored.load_state(whole.state())
        assert list(restored.generate([1], 3)) == list(whole.generate([1], 3))


def test_stats_perf_and_trace_are_frozen_values(make):
    context = make(turboprefill=True)
    assert context.turboprefill
    context.turboprefill = False
    with context.trace() as trace:
        context.decode_batch(PROMPT)
    context.synchronize()
    assert not context.stats().enabled
    assert isinstance(trace.spans, tuple)
    assert context.perf().n_p_eval == len(PROMPT)
    context.reset_perf()
    context.reset_stats()
    assert context.perf().n_p_eval <= 1
    with pytest.raises(AttributeError):
        context.stats().reason = "x"  # type: ignore[misc]


def test_text_survives_the_tokenizer(model):
    text = "The quick brown fox; naïve \N{GRINNING FACE}."
    assert model.detokenize(model.tokenize(text, add_bos=False)) == text
    assert model.tokenize(text)[0] == model.token_bos
    assert model.tokenize("", add_bos=False) == []
    assert model.detokenize([]) == ""
