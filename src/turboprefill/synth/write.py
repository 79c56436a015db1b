"""Writes a synthetic model: metadata, tokenizer, and weights drawn from a seed."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

from turboprefill.synth import weights
from turboprefill.synth.archs import Shape, Tensor, add_metadata, tensors
from turboprefill.synth.presets import shape_of
from turboprefill.synth.vocab import add_tokenizer

__all__ = ["model_size", "write_model"]

Progress = Callable[[int, int], None]

_LAYER = re.compile(r"^blk\.(\d+)\.")


def model_size(shape: Shape) -> int:
    """Bytes of all tensors of a model of this shape."""
    return sum(weights.nbytes(t.shape, t.kind) for t in tensors(shape))


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
    size = weights.nbytes(part.shape, part.kind)
    stored = (*part.shape[:-1], size // int(np.prod(part.shape[:-1]))) if quantised else part.shape
    dtype = np.uint8 if quantised else (np.float16 if part.kind is Type.F16 else np.float32)
    writer.add_tensor_info(part.name, stored, np.dtype(dtype), size, raw_dtype=part.kind)


def _rotated(data: npt.NDArray[Any], layer: int) -> npt.NDArray[Any]:
    # With equal layers every block would add the same again, tokens would grow alike from layer to layer, and the
    # routers would send most of them to a few experts. Rows move within a matrix: experts keep their places.
    return np.roll(data, layer, axis=-2) if layer else data


def _values(part: Tensor, seed: int) -> npt.NDArray[Any]:
    rng = weights.generator(seed, part.name)
    if part.fill is not None:
        return np.ascontiguousarray(part.fill(rng), dtype=np.float32)
    return weights.draw(part.shape, part.kind, part.std, rng)
