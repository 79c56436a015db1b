"""Bytes that a model takes on a device: weights, what is kept for sequences, buffers to compute with.

Weights, KV cache and recurrent states follow llama.cpp's own sizes. The compute buffer is an estimate on the safe
side: the graph allocator's result depends on the graph.
"""

from __future__ import annotations

from dataclasses import dataclass

from turboprefill.options import DEFAULT_UBATCH
from turboprefill.planner.errors import PlanError
from turboprefill.planner.facts import Layer, ModelFacts

__all__ = ["Needs", "compute_bytes", "kv_bytes", "state_bytes", "unit_bytes"]

_PAD = 256  # cells that llama.cpp rounds up to
_OUTBOXES = 2  # regions that boundaries leave from on TurboPrefill's path
_COPIES = 4  # of each input, for llama.cpp's own pipeline (GGML_SCHED_MAX_COPIES)


@dataclass(frozen=True)
class Needs:
    """What a context is going to be, with the names of :meth:`turboprefill.Model.context`."""

    n_ctx: int = 4096
    n_ubatch: int = DEFAULT_UBATCH
    n_seq_max: int = 1
    type_k: str = "f16"
    type_v: str = "f16"
    swa_full: bool = True
    flash_attn: bool = True


def _pad(n: int) -> int:
    return -(-n // _PAD) * _PAD


def _row_bytes(values: int, kind: str) -> float:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]]
    except KeyError:
        raise PlanError(f"{kind!r} is not a KV cache type: expected one such as f16, q8_0 or q4_0") from None
    return values * size / block


def kv_bytes(layer: Layer, needs: Needs) -> int:
    """Bytes of a layer's part of the KV cache."""
    cells = _pad(needs.n_ctx // needs.n_seq_max)  # of each sequence
    if layer.window and not needs.swa_full:
        cells = min(cells, _pad(layer.window + needs.n_ubatch))
    return int(
        needs.n_seq_max * cells * (_row_bytes(layer.k_values, needs.type_k) + _row_bytes(layer.v_values, needs.type_v))
    )


def state_bytes(layer: Layer, needs: Needs) -> int:
    """Bytes of a layer's recurrent states."""
    return 4 * layer.state_values * needs.n_seq_max


def compute_bytes(facts: ModelFacts, needs: Needs) -> int:
    """Bytes of a device's compute buffer, of copies of inputs and of boundaries, without the output layer."""
    activations = 4 * needs.n_ubatch * (6 * facts.n_embd + 3 * facts.n_ff + 16 * facts.n_inner)
    cells = _pad(needs.n_ctx // needs.n_seq_max)
    kinds = {layer.kind for layer in facts.layers}
    masks = ("attention" in kinds or "hybrid" in kinds) + ("window" in kinds)
    mask_bytes = (2 if needs.flash_attn else 4) * needs.n_ubatch * cells * masks
    inputs = 4 * needs.n_ubatch * facts.n_embd + mask_bytes
    scores = 0 if needs.flash_attn else 4 * needs.n_ubatch * cells * facts.n_head
    outboxes = _OUTBOXES * 4 * needs.n_ubatch * facts.n_embd
    return int(activations + scores + _COPIES * inputs + outboxes)


def output_bytes(facts: ModelFacts, needs: Needs) -> int:
    """Bytes of the output layer: weights, and logits for a whole ubatch."""
    return facts.output_bytes + 4 * needs.n_ubatch * facts.n_vocab


def unit_bytes(facts: ModelFacts, needs: Needs) -> list[int]:
    """Bytes of each unit: of each layer, and last of the output."""
    layers = [layer.weight_bytes + kv_bytes(layer, needs) + state_bytes(layer, needs) for layer in facts.layers]
    return [*layers, output_bytes(facts, needs)]
