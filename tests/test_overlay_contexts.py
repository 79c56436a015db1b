"""Several models, contexts and threads in one process, on the same devices: nobody notices the others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from pipelinecounts import assert_pipelined
from turboprefill import ClosedError, Context, Model
from virtualdevices import alive, result, tokens

OPTIONS = {"n_ctx": 512, "n_ubatch": 16, "n_threads": 1, "n_threads_batch": 1}
N_PROMPTS = 4

# of the prompts in work(): a last part of a call may be alone and find nothing in flight
N_PIPELINED = sum((80 + 7 * i) // 16 for i in range(N_PROMPTS))

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("peer_copies"), pytest.mark.pipelined]


def work(context: Context, seed: int) -> list[tuple[bytes, bytes]]:
    """What can be seen after each of some prompts; every other one is read in two calls, some is in flight then."""
    out = []
    for i in range(N_PROMPTS):
        prompt = tokens(80 + 7 * i, seed=10 * seed + i)
        context.memory.clear()
        if i % 2:
            context.decode_batch(prompt[:40], logits="none")
            prompt = prompt[40:]
        context.decode_batch(prompt)
        out.append(result(context))
    return out


def alone(model: Model, seed: int, **options) -> list[tuple[bytes, bytes]]:
    with model.context(**OPTIONS, **options, turboprefill=False) as context:
        return work(context, seed)


def at_once(jobs: list[Callable[[], object]]) -> list[object]:
    """Results of the jobs, which begin together on a thread each."""
    gate = threading.Barrier(len(jobs))

    def start(job: Callable[[], object]) -> object:
        gate.wait(30)
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result(100) for future in [pool.submit(start, job) for job in jobs]]


@pytest.mark.parametrize("properties", ["split_us=300", "events=off", "peer=refused"])
def test_two_models_with_two_contexts_each_on_four_threads(configure, virtual_names, model_file, properties) -> None:
    configure(properties)
    with ExitStack() as stack:
        models = [stack.enter_context(Model(model_file(p), devices=virtual_names)) for p in ("tiny", "jamba-tiny")]
        pairs = [(model, seed) for model in models for seed in (1, 2)]
        expected = [alone(model, seed) for model, seed in pairs]
        contexts = [stack.enter_context(model.context(**OPTIONS, turboprefill=True)) for model, _ in pairs]
        assert (
            at_once([lambda c=c, s=seed: work(c, s) for c, (_, seed) in zip(contexts, pairs, strict=True)]) == expected
        )
        assert all(context.stats().n_ubatches_pipelined > 0 for context in contexts)
        for context in contexts:
            assert_pipelined(context, at_least=N_PIPELINED)
    assert set(alive().values()) == {0}


def test_contexts_that_come_and_go_do_not_disturb_another(configure, virtual_names, model_file) -> None:
    configure("split_us=300")
    with Model(model_file(), devices=virtual_names) as model, model.context(**OPTIONS) as context:
        expected = alone(model, 1)
        done = threading.Event()
        pipelined: list[bool] = []

        def stay() -> list[tuple[bytes, bytes]]:
            try:
                return work(context, 1)
            finally:
                done.set()

        def come_and_go() -> int:
            n = 0
            while not done.is_set() or n < 3:
                with model.context(**OPTIONS, turboprefill=n % 3 < 2) as other:
                    other.decode_batch(tokens(100, n), logits="none")  # closed with work in flight
                    pipelined.append(other.stats().n_ubatches_pipelined == 7)
                n += 1
            return n

        stayed, n_others = at_once([stay, come_and_go])
        assert stayed == expected
        assert_pipelined(context, at_least=N_PIPELINED)
        assert pipelined == [n % 3 < 2 for n in range(n_others)]
    assert set(alive().values()) == {0}


def test_a_model_that_is_closed_ends_its_own_decodes_alone(configure, virtual_names, model_file) -> None:
    configure("split_us=300")
    with ExitStack() as stack:
        closing, staying = (stack.enter_context(Model(model_file(), devices=virtual_names)) for _ in range(2))
        expected = alone(staying, 2)
        contexts = [model.context(**OPTIONS, turboprefill=True) for model in (closing, closing, staying)]
        begun = threading.Semaphore(0)
        counts: dict[Context, int] = {}

        def until_closed(context: Context) -> str:
            try:
                while True:
                    context.memory.clear()
                    context.decode_batch(tokens(200), logits="none")
                    counts[context] = context.stats().n_ubatches_pipelined
                    begun.release()
            except ClosedError as error:
                return str(error)

        def close() -> None:
            for _ in range(4):
                assert begun.acquire(timeout=30)
            closing.close()

        results = at_once(
            [
                lambda: until_closed(contexts[0]),
                lambda: until_closed(contexts[1]),
                lambda: work(contexts[2], 2),
                close,
            ]
        )
        assert all("closed" in str(text) for text in results[:2])
        assert results[2] == expected
        assert_pipelined(contexts[2], at_least=N_PIPELINED)
        n_pipelined = [counts.get(context, 0) for context in contexts[:2]]
        assert min(n_pipelined) >= 13, f"n_pipelined is {n_pipelined}"
        with pytest.raises(ClosedError):
            closing.context()
    assert set(alive().values()) == {0}


@pytest.mark.parametrize("kv_unified", [False, True])
@pytest.mark.parametrize("preset", ["tiny", "gptoss-tiny", "jamba-tiny"])
def test_slots_of_a_server_that_share_a_prefix(configure, virtual_names, model_file, preset, kv_unified) -> None:
    """Prompts arrive in turns, some while others generate; one slot is used again from the shared prefix."""

    def serve(context: Context) -> list[object]:
        seen: list[object] = []

        def decode(inputs: list[int], seq_ids: list[int] | int) -> None:
            context.decode_batch(inputs, seq_ids=seq_ids)
            seen.append(context.logits().tobytes())

        context.decode_batch(tokens(50, 1), logits="none")
        for slot in (1, 2, 3):
            context.memory.seq_cp(0, slot)
            decode(tokens(30 * slot, slot), slot)
            decode(tokens(slot + 1, 5), list(range(slot + 1)))  # a token of each slot that is busy
        context.memory.seq_rm(2)
        context.memory.seq_cp(0, 2)
        decode(tokens(60, 7) + tokens(3, 8), [2] * 60 + [1, 3, 0])
        seen += [context.memory.seq_pos_max(slot) for slot in range(4)]
        return [*seen, context.state()]

    options = {**OPTIONS, "n_ctx": 1024, "n_seq_max": 4, "kv_unified": kv_unified}
    configure("split_us=100")
    with Model(model_file(preset), devices=virtual_names) as model:
        with model.context(**options, turboprefill=False) as standard:
            expected = serve(standard)
        with model.context(**options, turboprefill=True) as context:
            assert serve(context) == expected
            assert context.stats().n_ubatches_pipelined > context.stats().n_ubatches_standard


def test_models_and_threads_share_rpc_workers(model_file, rpc_workers) -> None:
    with ExitStack() as stack:
        models = [stack.enter_context(Model(model_file(p), rpc_servers=rpc_workers(2))) for p in ("tiny", "mamba-tiny")]
        pairs = [(model, seed) for model in models for seed in (1, 2)]
        expected = [alone(model, seed) for model, seed in pairs]
        contexts = [stack.enter_context(model.context(**OPTIONS)) for model, _ in pairs]
        assert (
            at_once([lambda c=c, s=seed: work(c, s) for c, (_, seed) in zip(contexts, pairs, strict=True)]) == expected
        )
        for context in contexts:
            assert_pipelined(context, at_least=N_PIPELINED)
