"""What each model family consists of: its GGUF metadata and its tensors, for random weights.

Shapes are in NumPy order (rows, row length), the reverse of ggml's. Weights get the standard deviation 1/sqrt(row
length), so that every block keeps the scale of what enters it; queries and keys are sharper than that, because
attention that averages over the whole prompt would make all prompts look alike. Biases are small: what all tokens
have in common sends them to the same experts, and a trained model spreads them over all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

Fill = Callable[[np.random.Generator], npt.NDArray[Any]]

_SHARP = 1.6  # of query and key weights: scores get a standard deviation of its square


@dataclass(frozen=True)
class Tensor:
    """One tensor to write. `fill` makes a float32 array of `shape`; without it values are normal with `std`."""

    name: str
    shape: tuple[int, ...]
    kind: Type
    std: float = 0.0
    fill: Fill | None = None


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. `kind` is the format of the large matrices, `expert_kind` that of the experts' (None: `kind`).

    `n_nextn` layers behind the others draft further tokens (glm4moe only).

    Layers whose index modulo `period` is in `attention` have attention, the others a recurrent block
    (hybrid families only).
    """

    arch: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_vocab: int
    kind: Type
    n_head: int = 1
    n_head_kv: int = 1
    head_dim: int = 64
    expert_kind: Type | None = None
    n_expert: int = 0
    n_expert_used: int = 0
    n_nextn: int = 0
    window: int = 0
    window_period: int = 0
    rope_base: float = 500000.0
    n_ctx_train: int = 131072
    n_expert_group: int = 0  # of which each token chooses `n_expert_group_used` first
    n_expert_group_used: int = 0
    n_dense_lead: int = 0  # layers without experts, in front
    q_rank: int = 0  # multi-head latent attention: ranks, and sizes of a head before it is compressed
    kv_rank: int = 0
    head_dim_rope: int = 0
    head_dim_v: int = 0
    d_state: int = 16
    d_conv: int = 4
    n_ssm_head: int = 0
    period: int = 1
    attention: tuple[int, ...] = (0,)

    @property
    def d_inner(self) -> int:
        return 2 * self.n_embd

    def has_attention(self, layer: int) -> bool:
        return layer % self.period in self.attention


@dataclass
class _Tensors:
    shape: Shape
    tensors: list[Tensor] = field(default_factory=list)

    def matrix(self, name: str, *dims: int, kind: Type | None = None, gain: float = 1.0) -> None:
        std = gain / float(np.sqrt(dims[-1]))
        self.tensors.append(Tensor(name + ".weight", dims, self.shape.kind if kind is None else kind, std))

    def norm(self, name: str, n: int) -> None:
        self.values(name + ".weight", (n,), lambda rng: 1 + 0.1 * rng.standard_normal(n, dtype=np.float32))

    def bias(self, name: str, *dims: int, std: float = 0.02) -> None:
        self.tensors.append(Tensor(name, dims, Type.F32, std))

    def values(self, name: str, dims: tuple[int, ...], fill: Fill) -> None:
        self.tensors.append(Tensor(name, dims, Type.F32, fill=fill))

    def attention(self, block: str, *, biases: bool = False, head_norms: bool = False) -> None:
        s = self.shape
        queries, keys = s.n_head * s.head_dim, s.n_head_kv * s.head_dim
        sharp = 1.0 if head_norms else _SHARP
        for name, rows, gain in (("attn_q", queries, sharp), ("attn_k", keys, sharp), ("attn_v", keys, 1.0)):
            self.matrix(block + name, rows, s.n_embd, gain=gain)
            if biases:
                self.bias(f"{block}{name}.bias", rows)
        self.matrix(block + "attn_output", s.n_embd, queries)
        if head_norms:
            for name in ("attn_q_norm", "attn_k_norm"):
                self.values(f"{block}{name}.weight", (s.head_dim,), lambda _: np.full(s.head_dim, _SHARP, np.float32))

    def feed_forward(self, block: str) -> None:
        s = self.shape
        self.matrix(block + "ffn_gate", s.n_ff, s.n_embd)
        self.matrix(block + "ffn_up", s.n_ff, s.n_embd)
        self.matrix(block + "ffn_down", s.n_embd, s.n_ff, gain=2.0)

    def experts(self, block: str, *, biases: bool = False) -> None:
        s = self.shape
        kind = s.kind if s.expert_kind is None else s.expert_kind
        self.matrix(block + "ffn_gate_inp", s.n_expert, s.n_embd, kind=Type.F32)
        self.matrix(block + "ffn_gate_exps", s.n_expert, s.n_ff, s.n_embd, kind=kind)
        self.matrix(block + "ffn_up_exps", s.n_expert, s.n_ff, s.n_embd, kind=kind)
        self.matrix(block + "ffn_down_exps", s.n_expert, s.n_embd, s.n_ff, kind=kind, gain=2.0)
        if biases:
            self.bias(block + "ffn_gate_inp.bias", s.n_expert)
            self.bias(block + "ffn_gate_exps.bias", s.n_expert, s.n_ff)
            self.bias(block + "ffn_up_exps.bias", s.n_expert, s.n_ff)
            self.bias(block + "ffn_down_exps.bias", s.n_expert, s.n_embd)

    def shared_expert(self, block: str) -> None:
        s = self.shape
        self.matrix(block + "ffn_gate_shexp", s.n_ff, s.n_embd)
        self.matrix(block + "ffn_up_shexp", s.n_ff, s.n_embd)
        self.matrix(block + "ffn_down_shexp", s.n_embd, s.n_ff, gain=2.0)

    def latent_attention(self, block: str) -> None:
        """DeepSeek's attention: keys and values of all heads are made from one compressed row."""
        s = self.shape
        plain = s.head_dim - s.head_dim_rope
        self.matrix(block + "attn_q_a", s.q_rank, s.n_embd)
        self.norm(block + "attn_q_a_norm", s.q_rank)
        self.matrix(block + "attn_q_b", s.n_head * s.head_dim, s.q_rank, gain=_SHARP)
        self.matrix(block + "attn_kv_a_mqa", s.kv_rank + s.head_dim_rope, s.n_embd, gain=_SHARP)
        self.norm(block + "attn_kv_a_norm", s.kv_rank)
        self.matrix(block + "attn_k_b", s.n_head, s.kv_rank, plain)
        self.matrix(block + "attn_v_b", s.n_head, s.head_dim_v, s.kv_rank)
        self.matrix(block + "attn_output", s.n_embd, s.n_head * s.head_dim_v)

    def drafts(self, block: str) -> None:
        """What makes a layer draft: the token that it starts from counts more than the target's hidden row."""
        n = self.shape.n_embd
        self.norm(block + "nextn.enorm", n)
        self.norm(block + "nextn.hnorm", n)
        self.norm(block + "nextn.shared_head_norm", n)
        self.values(block + "nextn.eh_proj.weight", (n, 2 * n), _token_and_some_noise(n))

    def mamba(self, block: str, *, norms: bool = False) -> None:
        """First-generation Mamba block; `norms` as in Jamba."""
        s = self.shape
        rank = max(s.n_embd // 16, 1)
        self.matrix(block + "ssm_in", 2 * s.d_inner, s.n_embd)
        self.convolution(block, s.d_inner)
        self.matrix(block + "ssm_x", rank + 2 * s.d_state, s.d_inner)
        self.matrix(block + "ssm_dt", s.d_inner, rank, kind=Type.F32)
        self.values(block + "ssm_dt.bias", (s.d_inner,), _time_step_bias(s.d_inner))
        self.values(block + "ssm_a", (s.d_inner, s.d_state), _decay_per_state(s.d_inner, s.d_state))
        self.values(block + "ssm_d", (s.d_inner,), lambda _: np.ones(s.d_inner, np.float32))
        if norms:
            for name, n in (("ssm_dt_norm", rank), ("ssm_b_norm", s.d_state), ("ssm_c_norm", s.d_state)):
                self.norm(block + name, n)
        self.matrix(block + "ssm_out", s.n_embd, s.d_inner)

    def mamba2(self, block: str) -> None:
        s = self.shape
        mixed = s.d_inner + 2 * s.d_state  # one group
        self.matrix(block + "ssm_in", s.d_inner + mixed + s.n_ssm_head, s.n_embd)
        self.convolution(block, mixed)
        self.values(block + "ssm_dt.bias", (s.n_ssm_head,), _time_step_bias(s.n_ssm_head))
        self.values(block + "ssm_a", (s.n_ssm_head, 1), lambda rng: -rng.uniform(0.5, 8, (s.n_ssm_head, 1)))
        self.values(block + "ssm_d", (s.n_ssm_head, 1), lambda _: np.ones((s.n_ssm_head, 1), np.float32))
        self.values(block + "ssm_norm.weight", (1, s.d_inner), lambda _: np.ones((1, s.d_inner), np.float32))
        self.matrix(block + "ssm_out", s.n_embd, s.d_inner)

    def convolution(self, block: str, channels: int) -> None:
        self.matrix(block + "ssm_conv1d", channels, self.shape.d_conv, kind=Type.F32)
        self.bias(block + "ssm_conv1d.bias", channels, std=0.1)


def _time_step_bias(n: int) -> Fill:
    # the inverse softplus of steps between 0.001 and 0.1, as Mamba is initialised
    return lambda rng: np.log(np.expm1(np.exp(rng.uniform(np.log(1e-3), np.log(1e-1), n))))


def _decay_per_state(channels: int, d_state: int) -> Fill:
    return lambda _: np.tile(-np.arange(1, d_state + 1, dtype=np.float32), (channels, 1))


def _token_and_some_noise(n: int) -> Fill:
    def fill(rng: np.random.Generator) -> npt.NDArray[Any]:
        noise = rng.standard_normal((n, n), dtype=np.float32) / np.float32(np.sqrt(n))
        return np.hstack([8 * np.eye(n, dtype=np.float32), noise])

    return fill


def tensors(shape: Shape) -> list[Tensor]:
    """All tensors of a model, in the order in which the file holds them."""
    out = _Tensors(shape)
    # half the scale of what a block adds, so that context outweighs the token itself
    embedding = Type.F16 if shape.kind is Type.F16 else Type.Q8_0
    out.tensors.append(Tensor("token_embd.weight", (shape.n_vocab, shape.n_embd), embedding, _embedding_std(shape)))
    out.norm("output_norm", shape.n_embd)
    out.matrix("output", shape.n_vocab, shape.n_embd, kind=embedding, gain=3.0)
    for layer in range(shape.n_layer + shape.n_nextn):
        _BLOCKS[shape.arch](out, f"blk.{layer}.", layer)
    return out.tensors


def _embedding_std(shape: Shape) -> float:
    if shape.n_nextn:
        return 6.0  # the token itself outweighs context: a draft is right now and then
    scale = float(np.sqrt(shape.n_embd)) if shape.arch == "gemma3" else 1.0  # which gemma multiplies by
    return 0.5 / scale


def _llama(out: _Tensors, block: str, _: int) -> None:
    out.norm(block + "attn_norm", out.shape.n_embd)
    out.attention(block)
    out.norm(block + "ffn_norm", out.shape.n_embd)
    if out.shape.n_expert:  # Mixtral
        out.experts(block)
    else:
        out.feed_forward(block)


def _deepseek2(out: _Tensors, block: str, layer: int) -> None:
    out.norm(block + "attn_norm", out.shape.n_embd)
    out.latent_attention(block)
    out.norm(block + "ffn_norm", out.shape.n_embd)
    if layer < out.shape.n_dense_lead:
        out.feed_forward(block)
    else:
        out.experts(block)
        out.bias(block + "exp_probs_b.bias", out.shape.n_expert)
        out.shared_expert(block)


def _qwen3moe(out: _Tensors, block: str, _: int) -> None:
    out.norm(block + "attn_norm", out.shape.n_embd)
    out.attention(block, head_norms=True)
    out.norm(block + "ffn_norm", out.shape.n_embd)
    out.experts(block)


def _glm4moe(out: _Tensors, block: str, layer: int) -> None:
    s = out.shape
    out.norm(block + "attn_norm", s.n_embd)
    out.attention(block, head_norms=True)
    out.norm(block + "post_attention_norm", s.n_embd)
    out.experts(block)
    out.bias(block + "exp_probs_b.bias", s.n_expert)
    out.shared_expert(block)
    if layer >= s.n_layer:
        out.drafts(block)


def _gpt_oss(out: _Tensors, block: str, _: int) -> None:
    s = out.shape
    out.norm(block + "attn_norm", s.n_embd)
    out.norm(block + "post_attention_norm", s.n_embd)
    out.attention(block, biases=True)
    out.bias(block + "attn_output.bias", s.n_embd)
    out.bias(block + "attn_sinks.weight", s.n_head, std=1.0)
    out.experts(block, biases=True)


def _gemma3(out: _Tensors, block: str, _: int) -> None:
    n = out.shape.n_embd
    for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
        out.norm(block + name, n)
    out.attention(block, head_norms=True)
    out.feed_forward(block)


def _mamba(out: _Tensors, block: str, _: int) -> None:
    out.norm(block + "attn_norm", out.shape.n_embd)
    out.mamba(block)


def _jamba(out: _Tensors, block: str, layer: int) -> None:
    out.norm(block + "attn_norm", out.shape.n_embd)
    if out.shape.has_attention(layer):
        out.attention(block)
    else:
        out.mamba(block, norms=True)
    out.norm(block + "ffn_norm", out.shape.n_embd)
    out.feed_forward(block)


def _granite_hybrid(out: _Tensors, block: str, layer: int) -> None:
    out.norm(block + "attn_norm", out.shape.n_embd)
    if out.shape.has_attention(layer):
        out.attention(block)
    else:
        out.mamba2(block)
    out.norm(block + "ffn_norm", out.shape.n_embd)
    out.feed_forward(block)


_BLOCKS: dict[str, Callable[[_Tensors, str, int], None]] = {
    "llama": _llama,
    "deepseek2": _deepseek2,
    "qwen3moe": _qwen3moe,
    "glm4moe": _glm4moe,
    "gpt-oss": _gpt_oss,
    "gemma3": _gemma3,
    "mamba": _mamba,
    "jamba": _jamba,
    "granitehybrid": _granite_hybrid,
}


def add_metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    """Write the hyperparameters that llama.cpp needs for the family."""
    writer.add_block_count(shape.n_layer + shape.n_nextn)
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.n_embd)
    writer.add_feed_forward_length(0 if shape.arch == "mamba" else shape.n_ff)
    writer.add_vocab_size(shape.n_vocab)
    writer.add_layer_norm_rms_eps(1e-5)
    if shape.arch == "mamba":
        writer.add_head_count(0)
    elif shape.kv_rank:
        _add_latent_attention(writer, shape)
    else:
        _add_attention(writer, shape)
    if shape.arch in ("mamba", "jamba", "granitehybrid"):
        _add_recurrent(writer, shape)
    if shape.n_expert:
        writer.add_expert_count(shape.n_expert)
        writer.add_expert_used_count(shape.n_expert_used)
        writer.add_expert_feed_forward_length(shape.n_ff)
    if shape.arch == "deepseek2":
        writer.add_leading_dense_block_count(shape.n_dense_lead)
        writer.add_expert_shared_count(1)
        writer.add_expert_group_count(shape.n_expert_group)
        writer.add_expert_group_used_count(shape.n_expert_group_used)
        writer.add_expert_weights_scale(2.5)
        writer.add_expert_weights_norm(True)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if shape.arch == "glm4moe":
        writer.add_expert_shared_count(1)
        writer.add_expert_weights_scale(1.0)
        writer.add_expert_weights_norm(True)
        writer.add_nextn_predict_layers(shape.n_nextn)
    if shape.window:
        writer.add_sliding_window(shape.window)
    if shape.window_period:
        writer.add_sliding_window_pattern(shape.window_period)


def _add_attention(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_head_count(shape.n_head)
    if shape.period == 1:
        writer.add_head_count_kv(shape.n_head_kv)
    else:  # a layer without key heads is a recurrent one
        writer.add_head_count_kv([shape.n_head_kv * shape.has_attention(i) for i in range(shape.n_layer)])
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)


def _add_latent_attention(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(1)  # one compressed row for all heads
    writer.add_q_lora_rank(shape.q_rank)
    writer.add_kv_lora_rank(shape.kv_rank)
    writer.add_key_length(shape.kv_rank + shape.head_dim_rope)
    writer.add_value_length(shape.kv_rank)
    writer.add_key_length_mla(shape.head_dim)
    writer.add_value_length_mla(shape.head_dim_v)
    writer.add_rope_dimension_count(shape.head_dim_rope)
    writer.add_rope_freq_base(shape.rope_base)


def _add_recurrent(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_ssm_conv_kernel(shape.d_conv)
    writer.add_ssm_inner_size(shape.d_inner)
    writer.add_ssm_state_size(shape.d_state)
    writer.add_ssm_time_step_rank(shape.n_ssm_head or max(shape.n_embd // 16, 1))
    if shape.arch == "granitehybrid":
        writer.add_ssm_group_count(1)
