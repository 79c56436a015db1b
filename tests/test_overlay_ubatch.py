"""TURBOPREFILL_UBATCH: the size of ubatches follows the prompt, and the results are those of that size."""

from __future__ import annotations

import logging
import re

import gguf
import numpy as np
import pytest

from pipelinecounts import assert_pipelined
from turboprefill import Model, synth

N_UBATCH = 128
SIZES = (32, 64, 96, N_UBATCH)
N_DEVICES = 3
OVERHEAD = 16

pytestmark = pytest.mark.pipelined


@pytest.fixture
def model(virtual_names, model_file):
    with Model(model_file("tiny", n_layers=6), devices=virtual_names[:N_DEVICES], tensor_split=[2, 2, 3]) as model:
        yield model


def best(n_tokens: int) -> int:
    """The size with the least time of a pipeline; of equals the largest."""

    def time(size: int) -> float:
        ubatches = [size] * (n_tokens // size) + ([n_tokens % size] if n_tokens % size else [])
        return sum(OVERHEAD + c for c in ubatches) + (N_DEVICES - 1) * (OVERHEAD + max(ubatches))

    return min(SIZES, key=lambda size: (time(size), -size))


def read(model: Model, prompt: list[int], n_ubatch: int, n_batch: int, **options) -> tuple[bytes, bytes, int]:
    with model.context(
        n_ctx=1024, n_batch=n_batch, n_ubatch=n_ubatch, n_threads=1, n_threads_batch=1, **options
    ) as ctx:
        ctx.decode_batch(prompt)
        return ctx.logits().tobytes(), ctx.state(), ctx.stats().n_ubatches_pipelined


@pytest.mark.parametrize("n_tokens", [pytest.param(40, marks=pytest.mark.unpipelined), 100, 200, 513, 900])
def test_results_are_those_of_the_standard_path_at_the_size_that_is_best(model, monkeypatch, n_tokens) -> None:
    prompt = np.random.default_rng(n_tokens).integers(300, 1000, n_tokens).tolist()
    want = read(model, prompt, best(n_tokens), 1024, turboprefill=False)
    monkeypatch.setenv("TURBOPREFILL_UBATCH", f"auto:{OVERHEAD}")
    got = read(model, prompt, N_UBATCH, 1024, turboprefill=True)
    n_pipelined, n_ubatches = got[2], -(-n_tokens // best(n_tokens))
    assert n_pipelined == (n_ubatches if n_ubatches > 1 else 0)  # one alone has nothing to overlap with
    assert got[:2] == want[:2]


@pytest.mark.unpipelined
def test_sizes_differ_between_prompts() -> None:
    assert len({best(n) for n in (40, 200, 900)}) > 1


def test_a_prompt_in_several_calls_gets_larger_ubatches_as_it_goes_on(model, monkeypatch) -> None:
    prompt = np.random.default_rng(1).integers(300, 1000, 768).tolist()
    monkeypatch.setenv("TURBOPREFILL_UBATCH", f"auto:{OVERHEAD}")
    _, _, n_pipelined = read(model, prompt, N_UBATCH, 256, turboprefill=True)
    assert n_pipelined == sum(-(-256 // best(n)) for n in (256, 512, 768))


def guess(file) -> float:
    """What docs/planner.md says that TURBOPREFILL_UBATCH=auto takes for a ubatch, in tokens."""
    reader = gguf.GGUFReader(file)

    def number(key: str) -> int:
        field = next((field for name, field in reader.fields.items() if name.endswith(key)), None)
        return 1 if field is None else np.max(field.contents())

    experts_used = number(".expert_used_count") / number(".expert_count")
    layers = [(tensor.name, int(tensor.n_elements)) for tensor in reader.tensors if tensor.name.startswith("blk.")]
    n_used = sum(n * (experts_used if "_exps." in name else 1) for name, n in layers)
    return (28 * sum(n for _, n in layers) + 1.6e10 * number(".block_count")) / n_used


@pytest.mark.parametrize("preset", ["tiny", "gptoss-tiny", "jamba-tiny", "experts by layer"])
def test_what_a_ubatch_costs_is_guessed_from_the_model(
    virtual_names, model_file, monkeypatch, caplog, tmp_path, preset
) -> None:
    if preset == "experts by layer":  # as the files of a few models have it

        def add_for_each_layer(writer: gguf.GGUFWriter, count: int) -> None:
            writer.add_array(f"{writer.arch}.expert_used_count", [count] * 4)

        monkeypatch.setattr(gguf.GGUFWriter, "add_expert_used_count", add_for_each_layer)
        file = synth.write_model(tmp_path / "model.gguf", "gptoss-tiny", n_layers=4)
    else:
        file = model_file(preset, n_layers=4)
    monkeypatch.setenv("TURBOPREFILL_UBATCH", "auto")
    with (
        caplog.at_level(logging.INFO, "turboprefill.llama"),
        Model(file, devices=virtual_names[:2]) as model,
        model.context(n_ctx=512, n_ubatch=64, turboprefill=True) as ctx,
    ):
        ctx.decode_batch([300] * 256)
        assert_pipelined(ctx, 4, standard=0)
        found = [int(n) for n in re.findall(r"fixed cost per ubatch of (\d+) tokens", caplog.text)]
    assert set(found) == {round(guess(file))}


@pytest.mark.parametrize("value", ["", "off", "fast"])
def test_the_context_s_own_size_otherwise(model, monkeypatch, value) -> None:
    prompt = np.random.default_rng(2).integers(300, 1000, 300).tolist()
    monkeypatch.setenv("TURBOPREFILL_UBATCH", value)
    _, _, n_pipelined = read(model, prompt, N_UBATCH, 1024, turboprefill=True)
    assert n_pipelined == 3


@pytest.mark.parametrize("logits", [pytest.param("all", marks=pytest.mark.unpipelined), "last"])
def test_generation_is_not_cut(model, monkeypatch, logits) -> None:
    """One token of each sequence, all with results: in pieces they would be computed one after the other."""
    monkeypatch.setenv("TURBOPREFILL_UBATCH", f"auto:{OVERHEAD}")
    n = 120
    sizes = {"n_ctx": 1024, "n_batch": 512, "n_ubatch": N_UBATCH, "n_seq_max": n, "kv_unified": True}
    with model.context(**sizes, turboprefill=True) as ctx:
        ctx.decode_batch([300] * n, pos=[0] * n, seq_ids=list(range(n)), logits=logits)
        stats = ctx.stats()
        if logits == "last":
            assert_pipelined(ctx, at_least=2, standard=0)
        whole = stats.n_ubatches_standard == 1 and stats.n_ubatches_pipelined == 0
        assert whole == (logits == "all")
