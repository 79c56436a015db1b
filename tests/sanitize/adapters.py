"""LoRA adapters for synthetic models."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

_RANK = 4
_ADAPTED = ("attn_q.weight", "ffn_down.weight")


def write_lora(path: Path, base: Path) -> None:
    """An adapter with random weights for some matrices of every layer of `base`, strong enough to change results."""
    model = gguf.GGUFReader(base)
    arch = model.fields["general.architecture"].contents()
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(_RANK))
    for tensor in model.tensors:
        if tensor.name.endswith(_ADAPTED):
            n_in, n_out = map(int, tensor.shape)
            for name, shape in (("lora_a", (_RANK, n_in)), ("lora_b", (n_out, _RANK))):
                writer.add_tensor(f"{tensor.name}.{name}", rng.normal(0, 0.1, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
