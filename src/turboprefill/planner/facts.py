"""What a plan needs to know about a model: for each layer, bytes, work and what it keeps. Read from the GGUF alone."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Layer", "ModelFacts"]


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes:
        kind: ``attention``, ``window`` (sliding-window attention), ``recurrent``, ``hybrid`` (both in one layer) or
            ``none``.
        weight_bytes: bytes of its weights.
        read_bytes: bytes of dense weights that a ubatch reads. In the last layer they are less than there are: behind
            its attention, only the tokens go on whose results are asked for, and a prompt asks for one.
        expert_bytes: bytes of experts that a ubatch may read.
        flops: floating-point operations for a token in dense matrices.
        expert_flops: operations for a token in the experts that are used.
        key_flops: operations for a token and each key that it attends to.
        window: keys that a token attends to at most; 0 for no limit.
        k_values, v_values: values that the KV cache keeps for a token.
        state_values: float32 values that are kept for a sequence, whatever its length.
    """

    kind: str
    weight_bytes: int
    read_bytes: int
    flops: float
    expert_bytes: int = 0
    expert_flops: float = 0.0
    key_flops: float = 0.0
    window: int = 0
    k_values: int = 0
    v_values: int = 0
    state_values: int = 0


@dataclass(frozen=True)
class ModelFacts:
    """One model.

    Attributes:
        name: of the file, or what it is.
        arch: llama.cpp's name of the family.
        layers: all of them, with those for multi-token prediction.
        input_bytes: weights that stay in host memory.
        output_bytes: weights of the output layer, on the device that has it.
        n_embd, n_ff, n_head, n_vocab, n_ctx_train: sizes; of the widest layer.
        n_inner: width of recurrent blocks; 0 without.
        n_expert, n_expert_used: 0 without experts.
    """

    name: str
    arch: str
    layers: tuple[Layer, ...]
    input_bytes: int
    output_bytes: int
    n_embd: int
    n_ff: int
    n_head: int
    n_vocab: int
    n_ctx_train: int
    n_expert: int = 0
    n_expert_used: int = 0
    n_inner: int = 0

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights that go to devices."""
        return sum(layer.weight_bytes for layer in self.layers) + self.output_bytes

    def kinds(self) -> dict[str, int]:
        """How many layers there are of each kind."""
        names = [layer.kind for layer in self.layers]
        return {name: names.count(name) for name in dict.fromkeys(names)}
