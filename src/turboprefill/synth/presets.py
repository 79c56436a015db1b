"""The shapes that synthetic models come in: small ones for tests, the demo's, and those of published models."""

from __future__ import annotations

from dataclasses import replace

from gguf import GGMLQuantizationType as Type

from turboprefill.errors import TurboPrefillError
from turboprefill.synth.archs import Shape

__all__ = ["PRESETS", "PresetError", "shape_of"]

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
