"""Replay matches standard: the same work on a pipelined and on a standard context, compared byte for byte.

Both contexts share a model whose layers are split over local RPC workers, one thread each, so that sums are added in
the same order; `pytest --devices CUDA0,CUDA1,CUDA2` takes real devices instead. Logits and state are compared with ==;
there is no tolerance anywhere. Each test also says how many ubatches it expects in the pipeline, so that it cannot pass
by comparing the standard path with itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from pipelinecounts import assert_pipelined
from turboprefill import AbortedError, Context, Model

N_CTX = 256
PRESETS = ["tiny", "moe-tiny", "gptoss-tiny", "gemma3-tiny", "mamba-tiny", "jamba-tiny", "granite-hybrid-tiny"]

pytestmark = pytest.mark.pipelined

Load = Callable[..., Model]
Pair = tuple[Context, Context]


@pytest.fixture(scope="module")
def load(model_file, rpc_workers, request: pytest.FixtureRequest) -> Iterator[Load]:
    """`load(preset, n_devices)`: the model, split by layers over that many devices."""
    models: dict[tuple[str, int], Model] = {}
    names = request.config.getoption("--devices")

    def get(preset: str, n_devices: int) -> Model:
        key = (preset, n_devices)
        if key not in models:
            where = {"devices": names.split(",")[:n_devices]} if names else {"rpc_servers": rpc_workers(n_devices)}
            models[key] = Model(model_file(preset), **where)
        return models[key]

    yield get
    for model in models.values():
        model.close()


@pytest.fixture
def pair(load: Load) -> Iterator[Callable[..., Pair]]:
    """`pair(preset, n_devices, **options)`: a standard and a pipelined context on one model."""
    contexts: list[Context] = []

    def make(preset: str, n_devices: int, **options) -> Pair:
        model = load(preset, n_devices)
        options = {"n_ctx": N_CTX, "n_batch": N_CTX, "n_threads": 1, "n_threads_batch": 1, **options}
        both = tuple(model.context(**options, turboprefill=on) for on in (False, True))
        contexts.extend(both)
        return both

    yield make
    for context in contexts:
        context.close()


def tokens(n: int, seed: int = 0) -> list[int]:
    """Token ids that are no control tokens in the synthetic vocabulary."""
    return np.random.default_rng(seed).integers(300, 1000, n).tolist()


def assert_same(pair: Pair, what: str = "") -> None:
    standard, turbo = pair
    np.testing.assert_array_equal(standard.logits().view(np.uint32), turbo.logits().view(np.uint32), err_msg=what)
    assert standard.state() == turbo.state(), what


def both(pair: Pair, step: Callable[[Context], object]) -> None:
    """Do the same on both contexts, then compare everything that can be seen."""
    results = [step(context) for context in pair]
    assert results[0] == results[1]
    assert_same(pair)


def n_pipelined(pair: Pair) -> int:
    assert pair[0].stats().n_ubatches_pipelined == 0
    return pair[1].stats().n_ubatches_pipelined


def ubatches(n: int, n_ubatch: int) -> int:
    return -(-n // n_ubatch)


@pytest.mark.parametrize("logits", ["last", "all", "mixed"])
@pytest.mark.parametrize("n_devices", [2, 3])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_kind_of_model(pair, preset: str, n_devices: int, logits: str) -> None:
    contexts = pair(preset, n_devices, n_ubatch=16)
    n = 100
    mask = [i % 7 == 3 or i == n - 1 for i in range(n)] if logits == "mixed" else logits
    both(contexts, lambda ctx: ctx.decode_batch(tokens(n), logits=mask))
    assert n_pipelined(contexts) == ubatches(n, 16)


LENGTHS = [
    pytest.param(n, n_ubatch, marks=[] if n > n_ubatch else pytest.mark.unpipelined)
    for n in (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, N_CTX - 1, N_CTX)
    for n_ubatch in (1, 3, 8, 32)
]


@pytest.mark.parametrize(("n", "n_ubatch"), LENGTHS)
def test_every_length_of_prompt(pair, n: int, n_ubatch: int) -> None:
    contexts = pair("tiny", 2, n_ubatch=n_ubatch)
    both(contexts, lambda ctx: ctx.decode_batch(tokens(n), logits="last"))
    assert n_pipelined(contexts) == (ubatches(n, n_ubatch) if n > n_ubatch else 0)


@pytest.mark.parametrize("preset", ["tiny", "gemma3-tiny", "jamba-tiny"])
@pytest.mark.parametrize("n_batch", [8, 24, 40, 64])
def test_prompt_in_several_calls(pair, preset: str, n_batch: int) -> None:
    contexts = pair(preset, 3, n_ubatch=8, n_batch=n_batch)
    both(contexts, lambda ctx: ctx.decode_batch(tokens(200), logits="last"))
    # a last call that is a partial ubatch joins those in flight, if there still are any
    assert n_pipelined(contexts) >= 200 // 8 - 1


@pytest.mark.unpipelined
@pytest.mark.parametrize("preset", PRESETS)
def test_one_device_takes_the_standard_path_and_says_why(pair, preset: str) -> None:
    contexts = pair(preset, 1, n_ubatch=16)
    both(contexts, lambda ctx: ctx.decode_batch(tokens(100)))
    assert n_pipelined(contexts) == 0
    assert "not split over two or more devices" in contexts[1].stats().reason


@pytest.mark.parametrize("n_gpu_layers", [2, 5, 8])
def test_layers_left_on_the_host(model_file, rpc_workers, n_gpu_layers: int) -> None:
    """The host is a stage like others; the last device may have nothing but the output layer."""
    options = {"n_ctx": N_CTX, "n_ubatch": 16, "n_threads": 1, "n_threads_batch": 1, "op_offload": False}
    with Model(model_file("tiny"), rpc_servers=rpc_workers(2), n_gpu_layers=n_gpu_layers) as model:
        contexts = tuple(model.context(**options, turboprefill=on) for on in (False, True))
        both(contexts, lambda ctx: ctx.decode_batch(tokens(100)))
        both(contexts, lambda ctx: ctx.decode_batch(tokens(50, 1), logits="all"))
        assert n_pipelined(contexts) == ubatches(100, 16) + ubatches(50, 16)


def test_short_sequences_of_different_lengths_are_several_ubatches(pair) -> None:
    contexts = pair("tiny", 2, n_ctx=4 * N_CTX, n_ubatch=64, n_seq_max=4)
    both(contexts, lambda ctx: ctx.decode_batch(tokens(60), seq_ids=[0] * 10 + [1] * 20 + [2] * 30, logits="all"))
    assert n_pipelined(contexts) > 1


@pytest.mark.parametrize("allowed", [0, 1, 5, 12])
@pytest.mark.parametrize("preset", ["tiny", "gptoss-tiny", "gemma3-tiny", "mamba-tiny", "jamba-tiny"])
def test_an_abort_keeps_what_was_computed(pair, preset: str, allowed: int) -> None:
    """The callback is asked on the thread of the host's stage, while ubatches before and after are in flight."""
    standard, turbo = pair(preset, 2, n_ubatch=8, swa_full=False)
    questions = 0

    def stop() -> bool:
        nonlocal questions
        questions += 1
        return questions > allowed + 1  # decode_batch asks once itself

    turbo.set_abort_callback(stop, interval_s=0)
    with pytest.raises(AbortedError):
        turbo.decode_batch(tokens(200))
    turbo.set_abort_callback(None)

    n = turbo.memory.seq_pos_max() + 1
    assert n % 8 == 0
    assert n < 200
    if preset == "tiny":
        assert n == 8 * allowed

    for context in (standard, turbo):
        context.decode_batch(tokens(200)[n if context is turbo else 0 :])
    assert turbo.stats().n_ubatches_pipelined > 0
    assert_pipelined(turbo, at_least=allowed + 1)
    assert_same((standard, turbo))


def test_little_host_memory_makes_fewer_slots(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("tiny", 3)
    options = {"n_ctx": 32 * N_CTX, "n_ubatch": 128, "n_threads": 1, "n_threads_batch": 1}
    with model.context(**options, turboprefill=False) as standard, model.context(**options) as plenty:
        monkeypatch.setenv("TURBOPREFILL_HOST_MB", "1")
        with model.context(**options) as little:
            for context in (plenty, little):
                context.decode_batch(tokens(3000), logits="last")
                assert_pipelined(context, ubatches(3000, 128), standard=0)
            standard.decode_batch(tokens(3000), logits="last")
            assert_same((standard, plenty))
            assert_same((standard, little))
            assert little.stats().n_slots < plenty.stats().n_slots
            assert little.stats().n_ubatches_pipelined == ubatches(3000, 128)


def test_switched_off_a_recurrent_model_has_the_order_of_upstream(pair) -> None:
    contexts = pair("jamba-tiny", 2, n_ubatch=16)
    for on in (False, True, False):
        contexts[1].turboprefill = on
        both(contexts, lambda ctx: ctx.decode_batch(tokens(40)))
    assert n_pipelined(contexts) == ubatches(40, 16)


@pytest.mark.unpipelined
def test_a_single_ubatch_takes_the_standard_path_and_says_why(pair) -> None:
    contexts = pair("tiny", 2, n_ubatch=16)
    both(contexts, lambda ctx: ctx.decode_batch(tokens(16)))
    assert n_pipelined(contexts) == 0
    assert "single ubatch" in contexts[1].stats().reason


@pytest.mark.parametrize("kv_unified", [False, True])
@pytest.mark.parametrize("preset", ["tiny", "gemma3-tiny", "mamba-tiny", "granite-hybrid-tiny"])
def test_several_sequences_in_one_batch(pair, preset: str, kv_unified: bool) -> None:
    contexts = pair(preset, 2, n_ctx=4 * N_CTX, n_ubatch=16, n_seq_max=4, kv_unified=kv_unified)
    seq_ids = [i % 3 if i < 60 else 3 for i in range(150)]
    both(contexts, lambda ctx: ctx.decode_batch(tokens(150), seq_ids=seq_ids, logits="all"))
    both(contexts, lambda ctx: ctx.decode_batch(tokens(90, 1), seq_ids=[i // 30 for i in range(90)], logits="all"))
    assert n_pipelined(contexts) >= 240 // 16


def test_a_prompt_shared_by_sequences(pair) -> None:
    contexts = pair("tiny", 2, n_ctx=N_CTX, n_ubatch=16, n_seq_max=3, kv_unified=True)
    both(contexts, lambda ctx: ctx.decode_batch(tokens(90), seq_ids=[[0, 1, 2]] * 90, logits="all"))
    both(contexts, lambda ctx: ctx.decode_batch(tokens(33, 1), seq_ids=1))
    assert n_pipelined(contexts) == ubatches(90, 16) + ubatches(33, 16)


@pytest.mark.parametrize("preset", ["tiny", "gemma3-tiny", "mamba-tiny"])
def test_embeddings_as_input_between_tokens(pair, preset: str) -> None:
    contexts = pair(preset, 2, n_ubatch=16)
    n_embd = contexts[0].model.n_embd
    rows = np.random.default_rng(1).standard_normal((70, n_embd), dtype=np.float32)
    both(contexts, lambda ctx: ctx.decode_batch(tokens(50)))
    both(contexts, lambda ctx: ctx.decode_batch(rows, logits="all"))
    both(contexts, lambda ctx: ctx.decode_batch(tokens(50, 1)))
    assert n_pipelined(contexts) == 2 * ubatches(50, 16) + ubatches(70, 16)


def test_hidden_states_as_output(pair) -> None:
    standard, turbo = pair("tiny", 2, n_ubatch=16, embeddings=True, pooling="none")
    for context in (standard, turbo):
        context.decode_batch(tokens(100), logits="all")
    np.testing.assert_array_equal(standard.embeddings().view(np.uint32), turbo.embeddings().view(np.uint32))
    assert_same((standard, turbo))
    assert n_pipelined((standard, turbo)) == ubatches(100, 16)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_pooled_embeddings(pair, pooling: str) -> None:
    standard, turbo = pair("tiny", 2, n_ubatch=16, n_seq_max=2, n_ctx=2 * N_CTX, embeddings=True, pooling=pooling)
    for context in (standard, turbo):
        context.decode_batch(tokens(100), seq_ids=[i // 50 for i in range(100)], logits="all")
    assert n_pipelined((standard, turbo)) >= ubatches(100, 16)
    for seq_id in range(2):
        np.testing.assert_array_equal(standard.embeddings(seq_id), turbo.embeddings(seq_id))
    assert standard.state() == turbo.state()


@pytest.mark.parametrize("preset", PRESETS)
def test_generation_follows_the_prompt(pair, preset: str) -> None:
    standard, turbo = pair(preset, 3, n_ubatch=16)
    assert list(standard.generate(tokens(90), 12)) == list(turbo.generate(tokens(90), 12))
    assert_same((standard, turbo))
    assert n_pipelined((standard, turbo)) == ubatches(90, 16)


@pytest.mark.parametrize("preset", PRESETS)
def test_work_in_between(pair, preset: str) -> None:
    contexts = pair(preset, 2, n_ctx=3 * N_CTX, n_ubatch=16, n_seq_max=3)
    saved: dict[Context, bytes] = {}

    both(contexts, lambda ctx: ctx.decode_batch(tokens(100)))
    both(contexts, lambda ctx: ctx.decode_batch(tokens(1, 1)))
    both(contexts, lambda ctx: ctx.memory.seq_cp(0, 1))
    both(contexts, lambda ctx: ctx.decode_batch(tokens(50, 2), seq_ids=1))
    both(contexts, lambda ctx: saved.__setitem__(ctx, ctx.state()))
    both(contexts, lambda ctx: ctx.memory.seq_rm(0, 60, None))
    both(contexts, lambda ctx: ctx.decode_batch(tokens(70, 3), seq_ids=2, logits="all"))
    both(contexts, lambda ctx: ctx.memory.seq_keep(1))
    both(contexts, lambda ctx: ctx.decode_batch(tokens(40, 4), seq_ids=1))
    for context in contexts:
        context.load_state(saved[context])
        context.decode_batch(tokens(40, 5), seq_ids=0)
    assert_same(contexts)
    both(contexts, lambda ctx: ctx.memory.clear())
    both(contexts, lambda ctx: ctx.decode_batch(tokens(100, 6)))
    assert n_pipelined(contexts) >= 4 * ubatches(40, 16)


def test_context_shift(pair) -> None:
    contexts = pair("tiny", 2, n_ubatch=16)

    def shift(context: Context) -> None:
        context.memory.seq_rm(0, 20, 80)
        context.memory.seq_add(0, 80, None, -60)

    both(contexts, lambda ctx: ctx.decode_batch(tokens(200)))
    both(contexts, shift)
    both(contexts, lambda ctx: ctx.decode_batch(tokens(60, 1)))
    assert n_pipelined(contexts) == ubatches(200, 16) + ubatches(60, 16)


def test_nothing_waits_between_calls_until_somebody_looks(pair) -> None:
    """Decodes, removals and copies in a row, none of which reads a result."""
    contexts = pair("tiny", 3, n_ctx=2 * N_CTX, n_ubatch=8, n_batch=32, n_seq_max=2)
    for context in contexts:
        context.decode_batch(tokens(100), logits="none")
        context.memory.seq_rm(0, 90, None)
        context.decode_batch(tokens(64, 1), logits="none")
        context.memory.seq_cp(0, 1)
        context.decode_batch(tokens(40, 2), seq_ids=1, logits="none")
        context.decode_batch(tokens(3, 3), seq_ids=0, logits="last")
    assert_same(contexts)
    assert n_pipelined(contexts) >= (96 + 64 + 40) // 8


def test_switching_in_the_middle_of_a_prompt(pair) -> None:
    contexts = pair("jamba-tiny", 2, n_ubatch=8, n_batch=32)
    for part in range(6):
        contexts[1].turboprefill = part % 2 == 0
        for context in contexts:
            context.decode_batch(tokens(40, part), logits="none")
    both(contexts, lambda ctx: ctx.decode_batch(tokens(1, 9)))
    assert n_pipelined(contexts) >= 3 * 4


def test_two_contexts_of_one_model_take_turns(load: Load) -> None:
    model = load("tiny", 2)
    options = {"n_ctx": N_CTX, "n_ubatch": 8, "n_threads": 1, "n_threads_batch": 1}
    with (
        model.context(**options, turboprefill=False) as reference,
        model.context(**options) as first,
        model.context(**options) as second,
    ):
        for start in range(0, 150, 50):
            for context in (reference, first, second):
                context.decode_batch(tokens(150)[start : start + 50], logits="last")
        for context in (first, second):
            assert_same((reference, context))
            assert context.stats().n_ubatches_pipelined >= 18


def test_repeats_are_identical(pair) -> None:
    contexts = pair("gptoss-tiny", 3, n_ubatch=8)
    for i in range(10):
        both(contexts, lambda ctx: ctx.memory.clear())
        both(contexts, lambda ctx: ctx.decode_batch(tokens(200)))
        assert n_pipelined(contexts) == (i + 1) * ubatches(200, 8)
