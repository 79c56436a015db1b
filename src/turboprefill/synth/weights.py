"""Random weights of a wanted standard deviation, directly in ggml's block formats.

Quantising real numbers would be slow for models of many gigabytes, so the quantised formats are drawn block by
block: random codes, and scales chosen so that the decoded values have mean zero and the standard deviation asked for.
"""

from __future__ import annotations

import zlib
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

Bytes = npt.NDArray[np.uint8]

_Q8_STD = 73.3  # of codes uniform in -127..127
_Q4_STD = 4.61  # of codes uniform in 0..15
_Q4_MEAN = 7.5
_MXFP4_STD = 5.85  # of the 16 values that a 4-bit MXFP4 code stands for, as ggml scales them


def generator(seed: int, name: str) -> np.random.Generator:
    """A generator for one tensor: independent of which other tensors the model has and of their order."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def nbytes(shape: tuple[int, ...], kind: Type) -> int:
    """Bytes of a tensor of `shape` (NumPy order) in format `kind`.

    Raises:
        ValueError: the rows are not a whole number of blocks.
    """
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise ValueError(f"rows of {shape[-1]} values cannot be stored as {kind.name}: expected a multiple of {block}")
    return int(np.prod(shape)) // block * size


def draw(shape: tuple[int, ...], kind: Type, std: float, rng: np.random.Generator) -> npt.NDArray[Any]:
    """A tensor as GGUF stores it: float32 or float16 of `shape`, or uint8 of shape (*shape[:-1], bytes per row)."""
    if kind in (Type.F32, Type.F16):
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(std)
        stored: npt.NDArray[Any] = values.astype(np.float16) if kind is Type.F16 else values
        return stored
    row_bytes = nbytes(shape, kind) // int(np.prod(shape[:-1], dtype=np.int64))
    size = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = rng.integers(0, 256, nbytes(shape, kind), dtype=np.uint8).reshape(-1, size)
    _SET_SCALES[kind](blocks, std, rng)
    return blocks.reshape(*shape[:-1], row_bytes)


def _half(value: float) -> Bytes:
    return np.frombuffer(np.float16(value).tobytes(), np.uint8)


def _scale_q8_0(blocks: Bytes, std: float, _: np.random.Generator) -> None:
    blocks[:, 0:2] = _half(std / _Q8_STD)
    codes = blocks[:, 2:]
    codes[codes == 0x80] = 0  # -128 is not a code that a quantiser writes


def _scale_q4_k(blocks: Bytes, std: float, rng: np.random.Generator) -> None:
    # value = d * scale * code - dmin * min, with a 6-bit scale and min for each of 8 groups;
    # min == scale and dmin == 7.5 d put every group's mean at zero
    scales = rng.integers(16, 48, (len(blocks), 8), dtype=np.uint8)
    rms = float(np.sqrt(np.mean(np.arange(16, 48, dtype=np.float64) ** 2)))
    step = std / (_Q4_STD * rms)
    blocks[:, 0:2] = _half(step)
    blocks[:, 2:4] = _half(step * _Q4_MEAN)
    low, high = scales[:, :4], scales[:, 4:]
    blocks[:, 4:8] = low | (high >> 4 << 6)
    blocks[:, 8:12] = low | (high >> 4 << 6)
    blocks[:, 12:16] = (high & 0x0F) | (high << 4)


def _scale_mxfp4(blocks: Bytes, std: float, rng: np.random.Generator) -> None:
    exponent = 128 + np.log2(std / _MXFP4_STD)  # the stored scale is a power of two: mix the two nearest
    floor = int(np.floor(exponent))
    upper = rng.random(len(blocks)) < (4.0 ** (exponent - floor) - 1) / 3
    blocks[:, 0] = floor + upper


_SET_SCALES = {Type.Q8_0: _scale_q8_0, Type.Q4_K: _scale_q4_k, Type.MXFP4: _scale_mxfp4}
