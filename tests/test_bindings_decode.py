"""What goes into a context and comes out: values, shapes, positions, splitting."""

from __future__ import annotations

import numpy as np
import pytest

import turboprefill as tp

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


def test_pooled_embeddings_are_per_sequence(make, model):
    context = make(embeddings=True, pooling="mean", n_seq_max=2)
    context.decode_batch(PROMPT[:20], seq_ids=[0] * 10 + [1] * 10, logits="all")
    assert context.embeddings(1).shape == (model.n_embd_out,)
    assert not np.array_equal(context.embeddings(0), context.embeddings(1))
    with pytest.raises(tp.InvalidInputError, match="pass seq_id"):
        context.embeddings()
    with pytest.raises(tp.InvalidInputError, match="makes embeddings, not logits"):
        context.logits()


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
