"""Reads :class:`ModelFacts` from a GGUF: metadata and the list of tensors, never the weights."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from turboprefill.planner.errors import PlanError
from turboprefill.planner.facts import Layer, ModelFacts

__all__ = ["read_facts"]

_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_RECURRENT = ("ssm_", "time_mix", "shortconv")
_KEYS = ("attn_k.", "attn_k_b.", "attn_kv_a_mqa.", "attn_kv_b.")
# The period of sliding-window layers where a file does not say, and whether the full one comes first: llama.cpp's own.
_PERIODS = {
    "gemma2": (2, False), "gemma3": (6, False), "gemma3n": (5, False), "gpt-oss": (2, False), "cohere2": (4, False),
    "cohere2moe": (4, True), "llama4": (4, False), "exaone4": (4, False), "exaone-moe": (4, False),
    "afmoe": (4, False), "olmo2": (4, False), "plamo3": (8, False), "smallthinker": (4, True), "phi3": (1, False),
    "gemma-embedding": (6, False), "laguna": (4, True), "mellum": (4, False),
}  # fmt: skip
_WINDOWS = {"gemma2": 4096, "llama4": 8192, "exaone4": 4096, "smallthinker": 4096}
# Families whose last layer computes all tokens to its end (embeddings_nextn_masked); in the others only those go on
# behind its attention whose results are asked for.
_WHOLE_LAST_LAYER = {
    "bailingmoe3", "cohere2moe", "gemma4", "gpt-oss", "hy_v3", "nemotron_h", "nemotron_h_moe", "qwen35", "qwen35moe",
    "qwen3next", "step35",
}  # fmt: skip

Tensor = tuple[str, tuple[int, ...], int]  # name, dimensions, bytes


def read_facts(path: str | os.PathLike[str]) -> ModelFacts:
    """The facts of a model file; of all parts, given the first one of a split model.

    Raises:
        PlanError: it cannot be read, is not a GGUF file, or holds no model with layers.
    """
    fields, tensors = _read(Path(path))
    return facts_of(Path(path).name, fields, tensors)


def _read(path: Path) -> tuple[dict[str, Any], list[Tensor]]:
    from turboprefill.planner.gguf_header import HeaderReader

    try:
        reader = HeaderReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        tensors = _tensors(reader)
        if (match := _PART.search(path.name)) and match[1] == "00001":
            for number in range(2, int(match[2]) + 1):
                part = path.with_name(path.name.replace(match[0], f"-{number:05d}-of-{match[2]}.gguf"))
                tensors += _tensors(HeaderReader(part))
    except (OSError, ValueError, IndexError, KeyError, struct.error) as error:
        raise PlanError(f"cannot read {path} as a GGUF model: {error}") from error
    return fields, tensors


def _tensors(reader: Any) -> list[Tensor]:
    return [(str(t.name), tuple(int(n) for n in t.shape), int(t.n_bytes)) for t in reader.tensors]


class _Fields:
    """Metadata of one architecture; values may be one for all layers, or one for each."""

    def __init__(self, fields: Mapping[str, Any], n_layer: int) -> None:
        self.arch = str(fields["general.architecture"])
        self._fields, self._n = fields, n_layer

    def get(self, name: str, default: Any = None) -> Any:
        return self._fields.get(f"{self.arch}.{name}", default)

    def number(self, name: str, default: int = 0) -> int:
        """A number; the largest if there is one for each layer."""
        value = self.get(name, default)
        return int(max(value)) if isinstance(value, list) else int(value)

    def each(self, name: str, default: int = 0) -> list[int]:
        """A number for each layer."""
        value = self.get(name, default)
        values = [int(v) for v in value] if isinstance(value, list) else [int(value)]
        return values if len(values) == self._n else [values[i % len(values)] for i in range(self._n)]


def facts_of(name: str, fields: Mapping[str, Any], tensors: Iterable[Tensor]) -> ModelFacts:
    """As :func:`read_facts`, from metadata and tensors.

    Raises:
        PlanError: there are no layers.
    """
    grouped: dict[int, list[Tensor]] = {}
    rest: list[Tensor] = []
    for tensor in tensors:
        match = _LAYER.match(tensor[0])
        if match:
            grouped.setdefault(int(match[1]), []).append((match[2], *tensor[1:]))
        else:
            rest.append(tensor)
    if "general.architecture" not in fields or not grouped:
        raise PlanError(f"{name} contains no layers to plan: expected the GGUF file of a language model")
    n_layer = max(grouped) + 1
    meta = _Fields(fields, n_layer)
    n_expert, n_used = meta.number("expert_count"), meta.number("expert_used_count")
    share = n_used / n_expert if n_expert else 0.0
    heads, kv_heads = meta.each("attention.head_count"), meta.each("attention.head_count_kv", -1)
    windows = _windows(meta, n_layer)
    n_main = n_layer - meta.number("nextn_predict_layers")  # a prompt does not go through the others
    last = -1 if meta.arch in _WHOLE_LAST_LAYER else n_main - 1
    layers = tuple(
        _layer(
            grouped.get(i, []),
            meta,
            heads[i],
            heads[i] if kv_heads[i] < 0 else kv_heads[i],
            windows[i],
            share,
            skipped="" if i >= n_main else "ffn_" if i == last else None,
        )
        for i in range(n_layer)
    )
    sizes = {tensor[0]: tensor for tensor in rest}
    embedding = sizes.get("token_embd.weight", ("", (0, 0), 0))
    on_host = sum(size for tensor, _, size in rest if "token_embd" in tensor)
    output = sum(size for tensor, _, size in rest if "token_embd" not in tensor)
    if "output.weight" not in sizes:  # the embedding is used for both, once in each place
        output += embedding[2]
    return ModelFacts(
        name=name,
        arch=meta.arch,
        layers=layers,
        input_bytes=on_host,
        output_bytes=output,
        n_embd=meta.number("embedding_length"),
        n_ff=max(meta.number("feed_forward_length"), n_used * meta.number("expert_feed_forward_length")),
        n_head=max(heads, default=0),
        n_vocab=embedding[1][-1],
        n_ctx_train=meta.number("context_length"),
        n_expert=n_expert,
        n_expert_used=n_used,
        n_inner=meta.number("ssm.inner_size"),
    )


def _windows(meta: _Fields, n_layer: int) -> list[int]:
    """The window of each layer, 0 where it sees everything."""
    window = meta.number("attention.sliding_window", _WINDOWS.get(meta.arch, 0))
    pattern = meta.get("attention.sliding_window_pattern")
    if window == 0:
        return [0] * n_layer
    if isinstance(pattern, list):
        return [window * bool(flag) for flag in (pattern + [False] * n_layer)[:n_layer]]
    period, full_first = _PERIODS.get(meta.arch, (0, False))
    if pattern is None and meta.arch not in _PERIODS:
        return [0] * n_layer  # such as mistral's, whose window llama.cpp does not use
    period = int(pattern) if pattern is not None else period
    if meta.arch == "phi3" or period == 0:
        return [window] * n_layer
    return [window * (i % period != 0 if full_first else i % period < period - 1) for i in range(n_layer)]


def _layer(
    tensors: list[Tensor], meta: _Fields, n_head: int, n_kv: int, window: int, share: float, skipped: str | None
) -> Layer:
    """One layer; a prompt does not compute tensors whose names begin with `skipped`."""
    names = [tensor[0] for tensor in tensors]
    recurrent = any(name.startswith(_RECURRENT) for name in names)
    attention = any(name.startswith(_KEYS) for name in names)
    attention = attention or (any(name.startswith("attn_qkv.") for name in names) and not recurrent)
    attention = attention and n_kv > 0
    computed = [tensor for tensor in tensors if skipped is None or not tensor[0].startswith(skipped)]
    flops = expert_flops = 0.0
    for name, dims, _ in computed:
        if len(dims) < 2 or "conv1d" in name:
            continue
        count = 2.0
        for n in dims:
            count *= n
        if "_exps." in name:
            expert_flops += count * share
        else:
            flops += count
    n_embd = meta.number("embedding_length")
    width = n_embd // max(n_head, 1)
    swa = "_swa" if window and meta.get("attention.key_length_swa") else ""
    k = meta.number(f"attention.key_length{swa}", width)
    v = meta.number(f"attention.value_length{swa}", width)
    latent = meta.get("attention.key_length_mla") is not None  # keys hold the values too
    kind = "hybrid" if recurrent and attention else "recurrent" if recurrent else "window" if window else "attention"
    return Layer(
        kind=kind if recurrent or attention else "none",
        weight_bytes=sum(tensor[2] for tensor in tensors),
        read_bytes=sum(tensor[2] for tensor in computed if "_exps." not in tensor[0]),
        expert_bytes=sum(tensor[2] for tensor in computed if "_exps." in tensor[0]),
        flops=flops,
        expert_flops=expert_flops,
        key_flops=2.0 * n_head * (k + v) * attention * bool(computed),
        window=window * attention,
        k_values=k * n_kv * attention,
        v_values=0 if latent else v * n_kv * attention,
        state_values=_state_values(meta, n_embd) if recurrent else 0,
    )


def _state_values(meta: _Fields, n_embd: int) -> int:
    """Values of a recurrent layer's state, as llama.cpp's n_embd_r and n_embd_s."""
    if head := meta.number("wkv.head_size"):
        return meta.number("token_shift_count", 2) * n_embd + n_embd * head
    if cells := meta.number("shortconv.l_cache"):
        return n_embd * (cells - 1)
    inner, state = meta.number("ssm.inner_size"), meta.number("ssm.state_size")
    convolved = max(meta.number("ssm.conv_kernel") - 1, 0) * (inner + 2 * meta.number("ssm.group_count") * state)
    return convolved + state * inner
