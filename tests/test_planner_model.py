"""What is read from a model file, and what a plan says about memory, against llama.cpp itself."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from turboprefill import Model, synth
from turboprefill.planner import Cost, DeviceSpec, ModelFacts, Needs, PlanError, make_plan, memory, read_facts
from turboprefill.planner.cost import layer_cost
from turboprefill.planner.facts import Layer
from turboprefill.planner.gguf_facts import facts_of
from turboprefill.planner.plan import plan_of
from turboprefill.planner.presets import preset_facts
from turboprefill.synth import archs

pytestmark = pytest.mark.timeout(120)

_ASSIGNED = re.compile(r"layer +(\d+) assigned to device (\w+)")
_BUFFER = re.compile(r"(\w+) (model|KV|RS|compute) buffer size (?:=|is) +([\d.]+) MiB")


def test_layers_are_read_from_the_file(model_file) -> None:
    facts = read_facts(model_file("tiny"))
    assert (facts.arch, len(facts.layers), facts.n_embd, facts.n_ff, facts.n_vocab) == ("llama", 8, 256, 512, 1024)
    matrices = 256 * 256 * 2 + 256 * 128 * 2 + 3 * 256 * 512
    assert all(layer.flops == 2 * matrices for layer in facts.layers[:-1])
    # behind the attention of the last layer only the token goes on whose logits are asked for
    assert facts.layers[-1].flops == 2 * (256 * 256 * 2 + 256 * 128 * 2)
    assert facts.layers[-1].weight_bytes == facts.layers[0].weight_bytes > facts.layers[-1].read_bytes
    assert all(layer.key_flops == 2 * 4 * (64 + 64) for layer in facts.layers)
    assert all((layer.k_values, layer.v_values, layer.window) == (128, 128, 0) for layer in facts.layers)


@pytest.mark.parametrize(
    ("preset", "kinds"),
    [
        ("tiny", {"attention": 8}),
        ("moe-tiny", {"attention": 8}),
        ("gptoss-tiny", {"window": 4, "attention": 4}),
        ("gemma3-tiny", {"window": 6, "attention": 2}),
        ("mamba-tiny", {"recurrent": 8}),
        ("jamba-tiny", {"recurrent": 6, "attention": 2}),
        ("granite-hybrid-tiny", {"recurrent": 6, "attention": 2}),
    ],
)
def test_kinds_of_layers(model_file, preset: str, kinds: dict[str, int]) -> None:
    facts = read_facts(model_file(preset))
    assert facts.kinds() == kinds
    assert preset_facts(preset).layers == facts.layers  # without a file


def test_experts_count_as_far_as_they_are_used(model_file) -> None:
    layer = read_facts(model_file("moe-tiny")).layers[0]
    assert layer.expert_flops == 2 * 3 * 256 * 64 * 2  # 2 of 8
    assert 0 < layer.expert_bytes < layer.weight_bytes


@pytest.mark.parametrize(
    ("preset", "options"),
    [
        ("tiny", {"n_ctx": 2048, "n_ubatch": 128}),
        ("tiny", {"n_ctx": 1000, "n_ubatch": 64, "type_k": "q8_0", "type_v": "q8_0"}),
        ("gemma3-tiny", {"n_ctx": 2048, "n_ubatch": 64, "swa_full": False}),
        ("gptoss-tiny", {"n_ctx": 512, "n_ubatch": 32}),
        ("jamba-tiny", {"n_ctx": 512, "n_ubatch": 64, "n_seq_max": 3}),
        ("mamba-tiny", {"n_ctx": 512, "n_ubatch": 64}),
    ],
)
def test_a_plan_holds_where_llama_cpp_puts_things(
    virtual_names, model_file, caplog: pytest.LogCaptureFixture, preset: str, options: dict
) -> None:
    facts = read_facts(model_file(preset))
    specs = [DeviceSpec(virtual_names[0], None), DeviceSpec(virtual_names[1], None), DeviceSpec(virtual_names[2], None)]
    specs[1] = DeviceSpec(virtual_names[1], None, specs[1].rates.slower(2))
    plan = make_plan(facts, specs, Needs(**options))
    with (
        caplog.at_level(logging.DEBUG, "turboprefill.llama"),
        Model(model_file(preset), devices=virtual_names[:3], tensor_split=plan.tensor_split) as model,
    ):
        model.context(**options, n_threads=1).close()
    assigned: dict[str, list[int]] = defaultdict(list)
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for line in (record.getMessage() for record in caplog.records):
        if match := _ASSIGNED.search(line):
            assigned[match[2]].append(int(match[1]))
        if match := _BUFFER.search(line):
            found[match[1], match[2]].append(float(match[3]))
    for stage in plan.stages:
        units = list(range(stage.first, stage.first + stage.n_layers + stage.has_output))
        assert assigned[stage.device] == units
        mebibytes = {"model": stage.weights, "KV": stage.kv, "RS": stage.state}
        for kind, expected in mebibytes.items():
            assert sum(found[stage.device, kind]) == pytest.approx(expected / 2**20, rel=0.01, abs=0.03), kind
        # an estimate that is never too low, nor far too high
        assert max(found[stage.device, "compute"]) <= stage.buffers / 2**20
        assert stage.buffers / 2**20 <= 2.5 * max(found[stage.device, "compute"]) + 1


ATTENTION = Layer("attention", 1000, 900, 5000.0, key_flops=7.0, k_values=128, v_values=64)
WINDOW = replace(ATTENTION, kind="window", window=64)
HYBRID = replace(ATTENTION, kind="hybrid")
RECURRENT = Layer("recurrent", 1000, 900, 5000.0, state_values=300)


@pytest.mark.parametrize(
    ("layer", "needs", "expected"),
    [
        (ATTENTION, Needs(4096), 4096 * (128 + 64) * 2),
        (ATTENTION, Needs(4000), 4096 * (128 + 64) * 2),  # cells are rounded up
        (ATTENTION, Needs(3000, n_seq_max=3), 3 * 1024 * (128 + 64) * 2),  # for each sequence
        (ATTENTION, Needs(4096, swa_full=False), 4096 * (128 + 64) * 2),
        (WINDOW, Needs(4096), 4096 * (128 + 64) * 2),
        (WINDOW, Needs(4096, 64, swa_full=False), 256 * (128 + 64) * 2),  # the window and a ubatch
        (WINDOW, Needs(4096, 512, swa_full=False), 768 * (128 + 64) * 2),
        (WINDOW, Needs(512, 512, swa_full=False), 512 * (128 + 64) * 2),  # no more than the context
        (ATTENTION, Needs(256, type_k="q8_0"), 256 * (128 * 34 // 32 + 64 * 2)),
        (ATTENTION, Needs(256, type_v="q8_0"), 256 * (128 * 2 + 64 * 34 // 32)),
        (RECURRENT, Needs(4096), 0),
    ],
)
def test_bytes_of_the_kv_cache(layer: Layer, needs: Needs, expected: int) -> None:
    assert memory.kv_bytes(layer, needs) == expected


def test_bytes_of_states_are_those_of_all_sequences() -> None:
    assert memory.state_bytes(RECURRENT, Needs(n_seq_max=3)) == 3 * 300 * 4
    assert memory.state_bytes(ATTENTION, Needs(n_seq_max=3)) == 0


def facts_with(*layers: Layer) -> ModelFacts:
    return ModelFacts("m", "llama", layers, 50, 70, n_embd=10, n_ff=20, n_head=3, n_vocab=100, n_ctx_train=0, n_inner=5)


@pytest.mark.parametrize(
    ("layers", "masks"),
    [
        ([ATTENTION], 1),
        ([WINDOW], 1),
        ([ATTENTION, WINDOW], 2),
        ([RECURRENT], 0),
        ([replace(WINDOW, kind="hybrid")], 1),
    ],
)
def test_bytes_of_buffers(layers: list[Layer], masks: int) -> None:
    """For ubatches of 32 tokens and 1,024 cells."""
    facts, needs = facts_with(*layers), Needs(1000, 32)
    activations = 32 * 4 * (6 * 10 + 3 * 20 + 16 * 5)
    boundary = 32 * 4 * 10
    mask = 32 * 1024 * 2
    # four copies of what a graph gets: embeddings and masks; and two boundaries that are on their way
    expected = activations + 4 * (boundary + masks * mask) + 2 * boundary
    assert memory.compute_bytes(facts, needs) == expected
    # without flash attention there are scores of each head, and masks have twice as many bytes
    scores = 32 * 1024 * 4 * 3
    assert memory.compute_bytes(facts, replace(needs, flash_attn=False)) == expected + scores + 4 * masks * mask
    assert memory.compute_bytes(facts, Needs(2000, 32, n_seq_max=2)) == expected  # cells of one sequence


def test_bytes_of_units_are_those_of_layers_and_of_the_output() -> None:
    facts, needs = facts_with(ATTENTION, RECURRENT), Needs(256, 32, n_seq_max=1)
    assert memory.unit_bytes(facts, needs) == [1000 + 256 * 192 * 2, 1000 + 300 * 4, 70 + 32 * 100 * 4]
    assert facts.weight_bytes == 1000 + 1000 + 70  # what only the host holds does not count


def test_a_plan_fits_if_every_stage_does() -> None:
    facts, needs = preset_facts("tiny"), Needs(n_ctx=256, n_ubatch=32)
    half = make_plan(facts, [DeviceSpec("a", None)] * 2, needs).stages[1].used
    specs = [DeviceSpec("a", None), DeviceSpec("b", half)]
    for counts, fits in (([5, 4], True), ([4, 5], True), ([3, 6], False), ([9, 0], True)):
        plan = plan_of(facts, specs, needs, counts, 256)
        assert (plan.fits, plan.stages[1].fits, plan.stages[0].fits) == (fits, fits, True)
    exactly = plan_of(facts, [specs[0], replace(specs[1], memory=half)], needs, [4, 5], 256)
    assert exactly.stages[1].used == half
    assert exactly.fits
    assert not plan_of(facts, [specs[0], replace(specs[1], memory=half - 1)], needs, [4, 5], 256).fits


def test_a_layer_that_prompts_do_not_go_through_takes_no_time(model_file) -> None:
    """The last one of a model with multi-token prediction: it has weights and room in the cache, and no work."""
    facts = read_facts(model_file("mtp-tiny"))
    rates = DeviceSpec("a", None).rates
    assert facts.layers[-1].weight_bytes > 0
    assert layer_cost(facts.layers[-1], replace(rates, per_layer=1.0)) == Cost()
    assert layer_cost(facts.layers[-2], rates).seconds(32, 0) > 0
    assert memory.kv_bytes(facts.layers[-1], Needs()) > 0


@pytest.mark.pipelined
def test_a_planned_model_computes_the_same_bits_as_any_split(virtual_names, model_file) -> None:
    """A machine with a slow device and one with little memory: three quarters of the layers go elsewhere."""
    facts, tokens = read_facts(model_file("tiny")), np.random.default_rng(3).integers(300, 1000, 200).tolist()
    needs = Needs(n_ctx=256, n_ubatch=32)
    whole = make_plan(facts, [DeviceSpec("one", None)], needs).stages[0].used
    specs = [
        DeviceSpec(virtual_names[0], None),
        DeviceSpec(virtual_names[1], None, DeviceSpec("", None).rates.slower(3)),
        DeviceSpec(virtual_names[2], whole // 3),
        DeviceSpec(virtual_names[3], None),
    ]
    plan = make_plan(facts, specs, needs)
    layers = [stage.n_layers for stage in plan.stages]
    assert layers[1] < layers[0]
    assert all(stage.memory is None or stage.used <= stage.memory for stage in plan.stages)

    def outcome(split: list[int] | tuple[int, ...] | None, *, turboprefill: bool) -> tuple[bytes, bytes]:
        options = {"n_ctx": 256, "n_ubatch": 32, "n_threads": 1, "turboprefill": turboprefill}
        with (
            Model(model_file("tiny"), devices=virtual_names, tensor_split=split) as model,
            model.context(**options) as context,
        ):
            context.decode_batch(tokens, logits="all")
            if turboprefill:
                assert context.stats().n_ubatches_pipelined == 7
                assert [s.device for s in context.stats().stages if s.device != "CPU"] == [
                    stage.device for stage in plan.stages if stage.n_layers
                ]
            return context.logits().tobytes(), context.state()

    reference = outcome(None, turboprefill=False)
    assert outcome(plan.tensor_split, turboprefill=False) == reference
    assert outcome(plan.tensor_split, turboprefill=True) == reference


def test_a_large_vocabulary_is_skipped_and_not_lost(model_file) -> None:
    import gguf

    from turboprefill.planner.gguf_header import HeaderReader

    path = model_file("tiny", n_vocab=5000)
    ours, theirs = HeaderReader(path), gguf.GGUFReader(path)
    assert [t.name for t in ours.tensors] == [t.name for t in theirs.tensors]
    assert [t.data_offset for t in ours.tensors] == [t.data_offset for t in theirs.tensors]
    assert set(ours.fields) == set(theirs.fields)
    assert len(ours.fields["tokenizer.ggml.tokens"].data) == 0 < len(theirs.fields["tokenizer.ggml.tokens"].data)
    assert read_facts(path).n_vocab == 5000


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for content in (b"", b"GGUF", b"no model at all"):
        path.write_bytes(content)
        with pytest.raises(PlanError, match=r"x\.gguf"):
            read_facts(path)
    with pytest.raises(PlanError, match=r"missing\.gguf"):
        read_facts(tmp_path / "missing.gguf")


def test_a_type_that_no_cache_can_have_is_refused() -> None:
    with pytest.raises(PlanError, match="f17"):
        make_plan(preset_facts("tiny"), [DeviceSpec("a", None)], Needs(type_k="f17"))


def test_all_parts_of_a_split_model_are_read(model_file, tmp_path: Path) -> None:
    import gguf

    whole = gguf.GGUFReader(model_file("tiny"))
    writer = gguf.GGUFWriter(tmp_path / "parts.gguf", "llama", split_max_tensors=30)
    archs.add_metadata(writer, synth.shape_of("tiny"))
    for tensor in whole.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first, second, *rest = sorted(tmp_path.glob("parts-*.gguf"))
    assert rest
    facts = read_facts(first)
    assert facts.layers == read_facts(model_file("tiny")).layers
    assert facts.output_bytes == read_facts(model_file("tiny")).output_bytes
    second.unlink()
    with pytest.raises(PlanError, match=second.name):
        read_facts(first)


def test_shared_keys_of_latent_attention_are_kept_once() -> None:
    """DeepSeek's attention: a cache of keys alone, which hold the values too."""
    meta = {
        "block_count": 2, "embedding_length": 64, "feed_forward_length": 128, "context_length": 1024,
        "attention.head_count": 4, "attention.head_count_kv": 1, "attention.key_length": 24,
        "attention.value_length": 16, "attention.key_length_mla": 12, "attention.value_length_mla": 8,
        "nextn_predict_layers": 1,
    }  # fmt: skip
    fields = {"general.architecture": "deepseek2", **{f"deepseek2.{key}": value for key, value in meta.items()}}
    tensors = [("token_embd.weight", (64, 100), 6400)]
    for i in range(2):
        tensors += [(f"blk.{i}.attn_kv_a_mqa.weight", (64, 24), 1536), (f"blk.{i}.ffn_up.weight", (64, 128), 8192)]
    facts = facts_of("latent", fields, tensors)
    last, predictor = facts.layers
    assert (last.k_values, last.v_values, last.key_flops) == (24, 0, 2 * 4 * (24 + 16))
    assert last.flops == 2 * 64 * 24  # without what only the token goes through whose logits are asked for
    assert (predictor.flops, predictor.key_flops, predictor.read_bytes) == (0, 0, 0)  # prompts do not go there
    assert predictor.weight_bytes == last.weight_bytes == 1536 + 8192
    assert facts.output_bytes == 6400  # the embedding, once more
