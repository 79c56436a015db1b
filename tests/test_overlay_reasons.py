"""The reason for the standard path is the one that holds, on virtual devices; test_docs lists those not given here."""

from __future__ import annotations

import pytest

from turboprefill import Model
from virtualdevices import OPTIONS, only, result, tokens

PROMPT = tokens(64)
SIZES = {**OPTIONS, "n_batch": 64, "n_ubatch": 8}

pytestmark = pytest.mark.unpipelined


def check(model: Model, reason: str, *, on: bool = True, **options) -> None:
    """A context with these options gives this reason, pipelines nothing, and computes what the standard path does."""
    outcomes = []
    for turboprefill in (on, False):
        with model.context(**{**SIZES, **options}, turboprefill=turboprefill) as context:
            context.decode_batch(PROMPT)
            stats = context.stats()
            outcomes.append((result(context), stats.reason, stats.n_ubatches_pipelined))
    assert outcomes[0][1:] == (reason, 0)
    assert outcomes[0][0] == outcomes[1][0]


@pytest.fixture
def model(model_file, virtual_names, configure):
    configure("peer=refused")
    with Model(model_file("tiny"), devices=virtual_names) as loaded:
        yield loaded


@pytest.mark.pipelined
def test_none_if_everything_was_pipelined(model: Model) -> None:
    with model.context(**SIZES, turboprefill=True) as context:
        context.decode_batch(PROMPT)
        assert (context.stats().reason, context.stats().n_ubatches_pipelined) == ("", 8)


def test_disabled(model: Model) -> None:
    check(model, "TurboPrefill is disabled", on=False)


def test_a_prompt_of_one_ubatch(model: Model) -> None:
    check(model, "the batch is a single ubatch and nothing is in flight", n_ubatch=64)


def test_a_cache_in_host_memory(model: Model) -> None:
    check(model, "a device computes more than one split of the graph", offload_kqv=False)


def test_a_backend_that_is_not_allowed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBOPREFILL_BACKENDS", "cuda")
    check(model, "this backend is not known to support a thread per device: VIRT")


@pytest.mark.parametrize("number", [4, 5])
def test_memory_that_the_engine_does_not_get(model: Model, configure, number: int) -> None:
    configure(f"events=off,fail_buffer={only(1, number)}")
    check(model, "not enough memory or threads for the pipeline")


def test_memory_that_enabling_does_not_get(model: Model, configure) -> None:
    configure(f"events=off,fail_buffer={only(1, 3)}")
    check(model, "not enough memory to enable TurboPrefill")


def test_one_device(model_file, virtual_names) -> None:
    with Model(model_file("tiny"), devices=virtual_names[:1]) as model:
        check(model, "the model is not split over two or more devices")


def test_another_split_mode(model_file, virtual_names) -> None:
    with Model(model_file("tiny"), devices=virtual_names, split_mode="none") as model:
        check(model, "the split mode is not layer")
