from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from turboprefill import Model, synth
from turboprefill.synth import vocab, weights

SMALL = [name for name in synth.PRESETS if "tiny" in name]


@pytest.mark.parametrize("preset", SMALL)
def test_the_same_preset_and_seed_give_the_same_file(tmp_path: Path, preset: str) -> None:
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    synth.write_model(first, preset)
    synth.write_model(again, preset)
    synth.write_model(other, preset, seed=1)
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()


def test_a_tensor_does_not_depend_on_the_number_of_layers(tmp_path: Path) -> None:
    readers = [gguf.GGUFReader(synth.write_model(tmp_path / f"{n}", "tiny", n_layers=n)) for n in (2, 3)]
    (two, three) = ({t.name: t.data for t in reader.tensors} for reader in readers)
    assert np.array_equal(two["blk.1.ffn_up.weight"], three["blk.1.ffn_up.weight"])
    assert "blk.2.ffn_up.weight" in three.keys() - two.keys()


def test_layers_that_share_weights_have_their_rows_in_another_order(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(synth.write_model(tmp_path / "model", "gptoss-tiny", n_layers=3, same_layers=True))
    tensors = {t.name: t for t in reader.tensors}
    for part in (name.removeprefix("blk.0.") for name in tensors if name.startswith("blk.0.")):
        first, *others = (tensors[f"blk.{layer}.{part}"] for layer in range(3))
        for layer, other in enumerate(others, start=1):
            assert not np.array_equal(first.data, other.data), part
            if first.tensor_type != Type.F32:
                assert np.array_equal(np.roll(first.data, layer, axis=-2), other.data), part


@pytest.mark.parametrize(("preset", "limit"), [("moe-tiny", 0.2), ("gptoss-tiny", 0.1)])
def test_tokens_stay_apart_in_deep_models_whose_layers_share_weights(tmp_path: Path, preset: str, limit: float) -> None:
    path = synth.write_model(tmp_path / "model", preset, n_layers=24, same_layers=True)
    with (
        Model(str(path), n_gpu_layers=0) as model,
        model.context(n_ctx=256, n_batch=256, n_threads=1, n_threads_batch=1) as context,
    ):
        tokens = np.random.default_rng(0).permutation(np.arange(3, model.n_vocab))[:256]
        context.decode_batch(tokens, logits="all")
        logits = context.logits()
        directions = logits / np.linalg.norm(logits, axis=1, keepdims=True)
        alike = directions @ directions.T
        assert np.isfinite(alike).all()
        assert abs(np.mean(alike[np.triu_indices(len(alike), 1)])) < limit


@pytest.mark.parametrize("kind", [Type.F32, Type.F16, Type.Q8_0, Type.Q4_K, Type.MXFP4], ids=lambda kind: kind.name)
@pytest.mark.parametrize("std", [0.01, 0.06, 1.0])
def test_decoded_weights_have_mean_zero_and_the_wanted_deviation(kind: Type, std: float) -> None:
    data = weights.draw((64, 1024), kind, std, weights.generator(0, "weights"))
    values = data if kind in (Type.F32, Type.F16) else gguf.dequantize(data, kind)
    assert values.shape == (64, 1024)
    assert np.isfinite(values).all()
    assert np.std(values, dtype=np.float64) == pytest.approx(std, rel=0.03)
    assert abs(np.mean(values, dtype=np.float64)) < 0.02 * std


def test_rows_that_are_not_whole_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 256"):
        weights.nbytes((4, 128), Type.Q4_K)


def test_an_unknown_preset_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(synth.PresetError, match=r"unknown preset 'tinny'.*gptoss-tiny"):
        synth.write_model(tmp_path / "model", "tinny")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synth.write_model(tmp_path / "model", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_progress_ends_at_the_size_of_all_tensors(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = synth.write_model(tmp_path / "model", progress=lambda done, total: seen.append((done, total)))
    size = synth.model_size(synth.PRESETS["tiny"])
    assert seen[-1] == (size, size)
    assert size <= path.stat().st_size < size + 200_000


def test_a_vocabulary_without_room_for_the_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"at least {vocab.MIN_VOCAB}"):
        synth.write_model(tmp_path / "model", n_vocab=300)


def test_every_piece_is_made_of_two_earlier_ones() -> None:
    known = set("\u2581ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
    for piece in vocab.learned_pieces():
        assert any(piece[:i] in known and piece[i:] in known for i in range(1, len(piece))), piece
        known.add(piece)


@pytest.mark.parametrize("n_vocab", [512, 1024, 2048, 5000])
def test_english_is_tokenized_plausibly_and_comes_back(model_file, text: str, n_vocab: int) -> None:
    with Model(str(model_file("tiny", n_layers=1, n_vocab=n_vocab)), n_gpu_layers=0) as model:
        tokens = model.tokenize(text)
        assert model.n_vocab == n_vocab
        assert 1.0 < len(tokens) / len(text.split()) < 2.6
        assert model.detokenize(tokens[1:]).strip() == text.strip()
        unseen = "A q\u00fcick brown fox, 3.14 & caf\u00e9s: \u4f60\u597d!"
        assert model.detokenize(model.tokenize(unseen)[1:]).strip() == unseen


def test_the_demo_text_is_long_enough_for_the_demo(model_file, text: str) -> None:
    with Model(str(model_file("tiny", n_layers=1, n_vocab=2048)), n_gpu_layers=0) as model:
        assert len(model.tokenize(text)) >= 2560


@pytest.mark.parametrize("preset", SMALL)
def test_different_prompts_give_different_finite_logits(model_file, text: str, preset: str) -> None:
    with (
        Model(str(model_file(preset)), n_gpu_layers=0) as model,
        model.context(n_ctx=256, n_batch=256, n_ubatch=64, n_threads=1, n_threads_batch=1) as context,
    ):
        tokens = model.tokenize(text)
        best = []
        for start in range(0, 1600, 200):
            context.memory.clear()
            context.decode_batch(tokens[start : start + 100])
            logits = context.logits()[-1]
            assert np.isfinite(logits).all()
            assert 1 < np.std(logits) < 10
            best.append(int(np.argmax(logits)))
        assert len(set(best)) >= 6


@pytest.mark.parametrize("preset", SMALL)
def test_an_early_token_still_counts_many_ubatches_later(model_file, text: str, preset: str) -> None:
    with (
        Model(str(model_file(preset)), n_gpu_layers=0) as model,
        model.context(n_ctx=320, n_batch=320, n_ubatch=64, n_threads=1, n_threads_batch=1) as context,
    ):
        tokens = model.tokenize(text)[:300]
        results = []
        for second in (tokens[1], tokens[2]):
            context.memory.clear()
            context.decode_batch([tokens[0], second, *tokens[2:]])
            results.append(context.logits()[-1].copy())
        assert not np.array_equal(*results)
