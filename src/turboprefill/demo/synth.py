"""Synthetic GGUF models: random weights in the shape of real ones, with a tokenizer that reads English.

They answer nonsense, but they load, run and fill caches like the models whose shape they have, need no download,
and give different logits for different prompts, so a wrong result shows.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

from turboprefill.demo import synth_weights
from turboprefill.demo.synth_archs import Shape, Tensor, add_metadata, tensors
from turboprefill.demo.synth_vocab import add_tokenizer
from turboprefill.errors import TurboPrefillError

Progress = Callable[[int, int], None]

_LAYER = re.compile(r"^blk\.(\d+)\.")

# heads of 64, and below states of 128: the smallest that GPUs have kernels for
_TINY = Shape("llama", 8, 256, 512, 1024, Type.Q8_0, n_head=4, n_head_kv=2, head_dim=64)

PRESETS: dict[str, Shape] = {
    # for tests: a few megabytes each, made and loaded in a fraction of a second
    "tiny": _TINY,
    "tiny-f16": replace(_TINY, kind=Type.F16),
    "tiny-q4k": replace(_TINY, kind=Type.Q4_K),
    "moe-tiny": replace(_TINY, arch="qwen3moe", n_ff=64, n_expert=8, n_expert_used=2),
    "mixtral-tiny": replace(_TINY, n_ff=64, n_expert=8, n_expert_used=2),
    # 16 heads, and a latent row of 512 + 64: what GPUs have a kernel for
    "deepseek-tiny": replace(
        _TINY,
        arch="deepseek2",
        n_ff=64,
        n_head=16,
        n_expert=16,
        n_expert_used=4,
        n_expert_group=4,
        n_expert_group_used=2,
        n_dense_lead=1,
        q_rank=128,
        kv_rank=512,
        head_dim=128,
        head_dim_rope=64,
        head_dim_v=64,
    ),
    "mtp-tiny": replace(_TINY, arch="glm4moe", n_ff=64, n_expert=8, n_expert_used=2, n_nextn=1),
    "gptoss-tiny": replace(
        _TINY,
        arch="gpt-oss",
        n_ff=128,
        n_expert=8,
        n_expert_used=2,
        expert_kind=Type.MXFP4,
        window=64,
        rope_base=150000.0,
    ),
    "gemma3-tiny": replace(_TINY, arch="gemma3", window=64, window_period=3),
    "mamba-tiny": replace(_TINY, arch="mamba", n_embd=128, n_ff=0),
    "jamba-tiny": replace(_TINY, arch="jamba", n_embd=128, n_ff=256, n_head=2, n_head_kv=1, period=4, attention=(1,)),
    "granite-hybrid-tiny": replace(
        _TINY,
        arch="granitehybrid",
        n_embd=128,
        n_ff=256,
        n_head=2,
        n_head_kv=1,
        d_state=128,
        n_ssm_head=8,
        period=4,
        attention=(3,),
    ),
    # for the demo: about 94 million weights for CPUs, 3.6 billion for GPUs
    "demo": Shape("llama", 8, 1024, 2816, 2048, Type.Q4_K, n_head=16, n_head_kv=4, head_dim=64),
    "demo-gpu": Shape("llama", 16, 4096, 14336, 4096, Type.Q4_K, n_head=32, n_head_kv=8, head_dim=128),
    # shapes of published models, with 32,000 tokens
    "gemma3-12b": Shape(
        "gemma3",
        48,
        3840,
        15360,
        32000,
        Type.Q4_K,
        n_head=16,
        n_head_kv=8,
        head_dim=256,
        window=1024,
        window_period=6,
        rope_base=1000000.0,
    ),
    "granite-h-micro": Shape(
        "granitehybrid",
        40,
        2048,
        8192,
        32000,
        Type.Q4_K,
        n_head=32,
        n_head_kv=8,
        head_dim=64,
        d_state=128,
        n_ssm_head=64,
        period=10,
        attention=(5,),
    ),
    "qwen30b-a3b": Shape(
        "qwen3moe",
        48,
        2048,
        768,
        32000,
        Type.Q4_K,
        n_head=32,
        n_head_kv=4,
        head_dim=128,
        n_expert=128,
        n_expert_used=8,
        rope_base=1000000.0,
    ),
    "llama8": Shape("llama", 32, 4096, 14336, 32000, Type.Q4_K, n_head=32, n_head_kv=8, head_dim=128),
    "llama70": Shape("llama", 80, 8192, 28672, 32000, Type.Q4_K, n_head=64, n_head_kv=8, head_dim=128),
    "gptoss20": Shape(
        "gpt-oss",
        24,
        2880,
        2880,
        32000,
        Type.Q8_0,
        n_head=64,
        n_head_kv=8,
        expert_kind=Type.MXFP4,
        n_expert=32,
        n_expert_used=4,
        window=128,
        rope_base=150000.0,
    ),
}
PRESETS["gptoss120"] = replace(PRESETS["gptoss20"], n_layer=36, n_expert=128)


class PresetError(TurboPrefillError, ValueError):
    """There is no such preset, or a size that was asked for does not fit it."""


def shape_of(preset: str, *, n_layers: int | None = None, n_vocab: int | None = None) -> Shape:
    """The shape behind a preset's name, with another number of layers or tokens where given.

    Raises:
        PresetError: unknown preset, or fewer than one layer.
    """
    if preset not in PRESETS:
        raise PresetError(f"unknown preset {preset!r}: expected one of {', '.join(PRESETS)}")
    if n_layers is not None and n_layers < 1:
        raise PresetError(f"n_layers is {n_layers}: expected at least 1")
    shape = PRESETS[preset]
    return replace(shape, n_layer=n_layers or shape.n_layer, n_vocab=n_vocab or shape.n_vocab)


def model_size(shape: Shape) -> int:
    """Bytes of all tensors of a model of this shape."""
    return sum(synth_weights.nbytes(t.shape, t.kind) for t in tensors(shape))


def write_model(
    path: str | os.PathLike[str],
    preset: str = "tiny",
    *,
    n_layers: int | None = None,
    n_vocab: int | None = None,
    seed: int = 0,
    same_layers: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a synthetic model to `path`, which appears only when it is complete.

    The same preset, sizes and seed give the same file. With `same_layers` the large matrices of all layers are those
    of the first of their kind with their rows rotated, each layer by another step: writing many gigabytes then takes
    little longer than the disk does.
    `progress` is called with bytes written and bytes in all.

    Raises:
        PresetError: unknown preset or impossible sizes.
        OSError: the file cannot be written.
    """
    shape = shape_of(preset, n_layers=n_layers, n_vocab=n_vocab)
    parts = tensors(shape)
    path = Path(path)
    # of this process alone, so that two demos that start together do not write into one file
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    writer = gguf.GGUFWriter(partial, shape.arch)
    try:
        writer.add_name(f"synthetic-{preset}-{shape.n_layer}x{shape.n_embd}")
        add_metadata(writer, shape)
        add_tokenizer(writer, shape.n_vocab)
        for part in parts:
            _announce(writer, part)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        done, total = 0, model_size(shape)
        drawn: dict[str, npt.NDArray[Any]] = {}
        for part in parts:
            layer = _LAYER.match(part.name) if same_layers and part.kind is not Type.F32 else None
            if layer is None:
                data = _values(part, seed)
            else:
                kind = part.name[layer.end() :]
                if kind not in drawn:
                    drawn[kind] = _values(part, seed)
                data = _rotated(drawn[kind], int(layer[1]))
            writer.write_tensor_data(data)
            done += data.nbytes
            if progress:
                progress(done, total)
        writer.close()
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            writer.close()
        partial.unlink(missing_ok=True)
    return path


def _announce(writer: gguf.GGUFWriter, part: Tensor) -> None:
    quantised = part.kind not in (Type.F32, Type.F16)
    size = synth_weights.nbytes(part.shape, part.kind)
    stored = (*part.shape[:-1], size // int(np.prod(part.shape[:-1]))) if quantised else part.shape
    dtype = np.uint8 if quantised else (np.float16 if part.kind is Type.F16 else np.float32)
    writer.add_tensor_info(part.name, stored, np.dtype(dtype), size, raw_dtype=part.kind)


def _rotated(data: npt.NDArray[Any], layer: int) -> npt.NDArray[Any]:
    # With equal layers every block would add the same again, tokens would grow alike from layer to layer, and the
    # routers would send most of them to a few experts. Rows move within a matrix: experts keep their places.
    return np.roll(data, layer, axis=-2) if layer else data


def _values(part: Tensor, seed: int) -> npt.NDArray[Any]:
    rng = synth_weights.generator(seed, part.name)
    if part.fill is not None:
        return np.ascontiguousarray(part.fill(rng), dtype=np.float32)
    return synth_weights.draw(part.shape, part.kind, part.std, rng)
