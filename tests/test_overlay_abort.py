"""A prompt that is stopped: what is computed after the abort callback said so, and what is left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import virtualdevices
from pipelinecounts import assert_pipelined
from turboprefill import AbortedError, Context, Model, virtual
from virtualdevices import ALIVE, N, alive, result, tokens

N_UBATCH = 8
N_UBATCHES = 30
PROMPT = tokens(N_UBATCHES * N_UBATCH)
OPTIONS = {**virtualdevices.OPTIONS, "n_ubatch": N_UBATCH, "n_batch": len(PROMPT)}

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("peer_copies"), pytest.mark.pipelined]


@pytest.fixture(scope="module")
def models(virtual_names: list[str], model_file) -> Iterator[dict[str, Model]]:
    loaded = {
        preset: Model(model_file(preset), devices=virtual_names) for preset in ("tiny", "gemma3-tiny", "jamba-tiny")
    }
    yield loaded
    for model in loaded.values():
        model.close()
    assert alive() == dict.fromkeys(ALIVE, 0)


def graphs() -> list[int]:
    """Graphs that each device has computed, or was given to compute."""
    return [numbers["graphs"] for numbers in virtual.numbers()]


class Stop:
    """An abort callback: true from the n-th question on. What the devices had been given by then is noted."""

    def __init__(self, context: Context, allowed: int) -> None:
        self.left = allowed + 1  # decode_batch asks once itself
        self.given: list[int] = []
        self.context = context
        context.set_abort_callback(self, interval_s=0)

    def __call__(self) -> bool:
        self.left -= 1
        if self.left < 0 and not self.given:
            self.given = graphs()
        return self.left < 0


@pytest.mark.parametrize("properties", ["", "split_us=1000,peer=refused", "split_us=1000,slow=1/1/1/5"])
@pytest.mark.parametrize("allowed", [0, 1, N_UBATCHES // 2, N_UBATCHES - 1])
def test_nothing_new_is_computed_after_the_callback_says_stop(configure, models, properties, allowed) -> None:
    """The callback is asked once for each ubatch, by the stage of the host: the devices finish what came before."""
    with models["tiny"].context(**OPTIONS, turboprefill=True) as context:
        configure(properties)
        stop = Stop(context, allowed)
        with pytest.raises(AbortedError) as error:
            context.decode_batch(PROMPT)
        assert error.value.code == 2
        assert_pipelined(context, at_least=allowed + 1, standard=0)  # with the one that was asked about
        # a ubatch that the callback has stopped is computed nowhere, and those before it everywhere
        assert graphs() == [allowed] * N
        assert context.memory.seq_pos_max() + 1 == allowed * N_UBATCH
        # at most the ubatches in flight were finished after that
        assert allowed - min(stop.given) <= context.stats().n_slots


@pytest.mark.parametrize("preset", ["tiny", "gemma3-tiny", "jamba-tiny"])
@pytest.mark.parametrize("allowed", [0, 1, N_UBATCHES // 2, N_UBATCHES - 1])
def test_the_prompt_goes_on_after_a_stop_and_a_sibling_is_not_touched(configure, models, preset, allowed) -> None:
    model = models[preset]
    with model.context(**OPTIONS, turboprefill=False) as context:
        context.decode_batch(PROMPT)
        want = result(context)
    with model.context(**OPTIONS) as context, model.context(**OPTIONS, turboprefill=True) as sibling:
        context.turboprefill = True
        configure("split_us=500")
        sibling.decode_batch(PROMPT[: 3 * N_UBATCH], logits="none")  # still in flight when the other one stops
        Stop(context, allowed)
        with pytest.raises(AbortedError):
            context.decode_batch(PROMPT)
        context.set_abort_callback(None)
        assert_pipelined(context, at_least=allowed + 1, standard=0)
        assert_pipelined(sibling, 3, standard=0)
        for each in (context, sibling):
            each.decode_batch(PROMPT[each.memory.seq_pos_max() + 1 :])
            assert result(each) == want


def test_a_stop_between_calls_is_found_before_anything_is_given_to_the_devices(configure, models) -> None:
    configure("split_us=2000")
    with models["tiny"].context(**{**OPTIONS, "n_batch": N_UBATCH}, turboprefill=True) as context:
        context.set_abort_callback(lambda: sum(graphs()) > 0, interval_s=0)
        with pytest.raises(AbortedError) as error:
            context.decode_batch(PROMPT)
        context.synchronize()  # the calls before have returned, their work goes on
        assert_pipelined(context, at_least=error.value.n_decoded // N_UBATCH, standard=0)
        assert 0 < error.value.n_decoded < len(PROMPT)
        assert graphs() == [error.value.n_decoded // N_UBATCH] * N


@pytest.mark.parametrize("allowed", [1, N_UBATCHES // 2])
def test_a_context_is_closed_after_a_stop(configure, models, allowed) -> None:
    before = alive()
    with models["tiny"].context(**OPTIONS, turboprefill=True) as context:
        configure("split_us=1000")
        Stop(context, allowed)
        with pytest.raises(AbortedError):
            context.decode_batch(PROMPT)
        assert_pipelined(context, at_least=allowed + 1, standard=0)
    assert alive() == before
