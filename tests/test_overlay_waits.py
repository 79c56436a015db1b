"""What waits for ubatches in flight, for which of them, and how that is counted. No times: counts and results."""

from __future__ import annotations

import pytest

import virtualdevices
from pipelinecounts import assert_pipelined, pipeline_once
from turboprefill import Context, Model
from virtualdevices import configure, tokens

# slow devices: nothing is done before the caller goes on
SLOW = "split_us=3000"
OPTIONS = {**virtualdevices.OPTIONS, "n_ubatch": 16, "n_batch": 64, "kv_unified": True, "n_seq_max": 2}

pytestmark = [pytest.mark.timeout(120), pytest.mark.pipelined]


@pytest.fixture
def model(virtual_names, model_file):
    with Model(model_file(), devices=virtual_names) as model:
        yield model


def waits(context: Context) -> dict[str, int]:
    """Counts by cause, without those that are 0 and that of a caller who is ahead."""
    return {cause: wait.n for cause, wait in context.stats().waits.items() if wait.n and cause != "full slots"}


@pytest.mark.unpipelined
def test_every_cause_is_there_from_the_start(model: Model) -> None:
    with model.context(**OPTIONS) as context:
        found = context.stats().waits
    assert set(found) == {
        "result", "synchronize", "memory operation", "state", "standard-path graph", "plan", "growing buffer",
        "setting", "abort callback", "fault", "full slots",
    }  # fmt: skip
    assert all((wait.n, wait.t_us) == (0, 0) for wait in found.values())


def test_a_prompt_waits_for_its_result_alone(model: Model) -> None:
    configure(SLOW)
    with model.context(**OPTIONS) as context:
        context.decode_batch(tokens(160))
        assert_pipelined(context, 10, standard=0)
        assert waits(context) == {}
        context.logits()
        assert waits(context) == {"result": 1}
        assert context.stats().n_ubatches_pipelined == 10


def read_in_calls(context: Context, between) -> tuple[bytes, bytes]:
    for start in range(0, 160, 32):
        between(context, start)
        context.decode_batch(tokens(160)[start : start + 32])
    return virtualdevices.result(context)


@pytest.mark.parametrize(
    "between",
    [
        pytest.param(lambda context, start: context.memory.seq_rm(0, start), id="nothing-to-remove"),
        pytest.param(lambda context, _: context.memory.seq_rm(1), id="another-sequence"),
        pytest.param(lambda context, _: context.memory.seq_keep(0), id="keep"),
        pytest.param(lambda context, _: context.memory.seq_cp(1, 1), id="copy-another-sequence"),
        pytest.param(lambda context, _: context.memory.seq_add(1, 0, 10, 1), id="shift-another-sequence"),
    ],
)
def test_memory_operations_that_concern_nothing_in_flight_do_not_wait(model: Model, between) -> None:
    configure(SLOW)
    with model.context(**OPTIONS) as context:
        read_in_calls(context, between)
        assert_pipelined(context, 10, standard=0)
        assert {
            cause: n for cause, n in waits(context).items() if cause not in ("result", "synchronize", "state")
        } == {}
        assert context.stats().n_ubatches_standard == 0
        assert context.stats().n_ubatches_pipelined == 10


@pytest.mark.parametrize("preset", ["tiny", "gemma3-tiny", "jamba-tiny"])
def test_removing_what_is_in_flight_gives_the_same_bytes(virtual_names, model_file, preset: str) -> None:
    def prompts(context: Context) -> tuple[bytes, bytes]:
        context.decode_batch(tokens(96, 1))
        context.memory.seq_rm(0)  # somebody gave up
        context.decode_batch(tokens(80, 2))
        return virtualdevices.result(context)

    with Model(model_file(preset), devices=virtual_names) as model:
        configure("peer=refused")
        with model.context(**OPTIONS, turboprefill=False) as context:
            expected = prompts(context)
        configure(SLOW)
        with model.context(**OPTIONS) as context:
            assert prompts(context) == expected
            assert_pipelined(context, 6 + 5, standard=0)
            assert "memory operation" not in waits(context)


def test_copying_a_sequence_waits_for_that_sequence_only(model: Model) -> None:
    configure(SLOW)
    with model.context(**{**OPTIONS, "n_seq_max": 3}) as context:
        context.decode_batch(tokens(32, 1), seq_ids=1)
        context.decode_batch(tokens(96), seq_ids=0, logits="none")
        assert_pipelined(context, 2 + 6, standard=0)
        context.memory.seq_cp(1, 2)
        assert waits(context) == {"memory operation": 1}
        context.synchronize()  # counted only if something was in flight still
        assert waits(context) == {"memory operation": 1, "synchronize": 1}


def test_a_result_lets_later_ubatches_go_on(model: Model) -> None:
    configure("peer=refused")
    mixed = [True] + [False] * 63

    def call(context: Context) -> bytes:
        context.decode_batch(tokens(64), seq_ids=[1] + [0] * 63, logits=mixed)
        return context.logits().tobytes()

    with model.context(**OPTIONS, turboprefill=False) as context:
        expected = call(context)
    configure(SLOW)
    with model.context(**OPTIONS) as context:
        assert call(context) == expected
        assert_pipelined(context, at_least=4, standard=0)
        assert waits(context) == {"result": 1}
        context.synchronize()
        assert waits(context) == {"result": 1, "synchronize": 1}


def test_a_fault_behind_a_result_leaves_the_result(model: Model) -> None:
    configure("peer=refused")
    mixed = [True] + [False] * 63
    with model.context(**OPTIONS, turboprefill=False) as context:
        context.decode_batch(tokens(64), seq_ids=[1] + [0] * 63, logits=mixed)
        expected = context.logits().tobytes()
    with model.context(**OPTIONS) as context:
        pipeline_once(context, tokens(64), 4)
        configure(SLOW, f"fail_graph={virtualdevices.only(3, 4)}")
        context.decode_batch(tokens(64), seq_ids=[1] + [0] * 63, logits=mixed)
        assert_pipelined(context, at_least=4, standard=0)
        assert context.logits().tobytes() == expected
        with pytest.raises(Exception, match="failed"):
            context.synchronize()


FUSION = ("fusion=on", "us_per_token=20")


@pytest.mark.parametrize("preset", ["moe-tiny", "mixtral-tiny", "deepseek-tiny", "gptoss-tiny", "granite-hybrid-tiny"])
@pytest.mark.parametrize("n_ubatch", [16, 48])
def test_graphs_of_several_kinds_keep_their_plans(virtual_names, model_file, preset: str, n_ubatch: int) -> None:
    """With and without results, a tail, a token, another prompt: on devices that fuse, each is another plan."""
    options = {**OPTIONS, "n_ctx": 512, "n_batch": 256, "n_ubatch": n_ubatch}

    def everything(context: Context) -> tuple[bytes, ...]:
        context.decode_batch(tokens(200, 1))
        first = context.logits().tobytes()
        context.decode_batch(tokens(1, 2))
        context.decode_batch(tokens(180, 3), logits="all")
        return first, *virtualdevices.result(context)

    with Model(model_file(preset), devices=virtual_names) as model:
        configure("peer=refused", *FUSION)
        with model.context(**options, turboprefill=False) as context:
            expected = everything(context)
        configure("peer=async", *FUSION)
        with model.context(**options) as context:
            assert everything(context) == expected
            assert_pipelined(context, at_least=(200 + 180) // n_ubatch, standard=1)
            assert set(waits(context)) <= {"result", "synchronize", "standard-path graph", "state"}
            assert context.stats().n_ubatches_standard == 1  # the generated token
