"""Loads damaged copies of a model, each in a process of its own; run by tests/test_hostile_models.py.

`python damagedmodels.py MODEL` writes what became of each as JSON: the name of the exception and whether its message
names the file, "loaded", or the signal that ended the process.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf

import turboprefill as tp

N_CUTS, N_FLIPS, SEED = 24, 40, 3
Change = tuple[int, bytes]  # offset, and what is written there
Case = tuple[str, "list[Change] | int"]  # or the length that the file is cut to


def _value_offset(data: bytes, field: Any) -> int:
    """Where the value of a key begins, behind its name and type."""
    (n,) = struct.unpack_from("<Q", data, field.offset)
    return int(field.offset) + 8 + n + 4


def cases(data: bytes, reader: gguf.GGUFReader) -> Iterator[Case]:
    yield "unchanged", []
    for name, offset, size in (("version", 4, 4), ("number of tensors", 8, 8), ("number of keys", 16, 8)):
        for value in (0, 2**31, 2**63 - 1):
            yield f"{name} {value}", [(offset, value.to_bytes(8, "little")[:size])]
    for key in ("llama.block_count", "llama.attention.head_count", "llama.context_length"):
        for value in (0, 513, 2**32 - 1):
            if (key, value) not in KNOWN_TO_ABORT:
                yield f"{key} {value}", [(_value_offset(data, reader.fields[key]), struct.pack("<I", value))]
    epsilon = _value_offset(data, reader.fields["llama.attention.layer_norm_rms_epsilon"])
    for number in (-1.0, float("nan"), float("inf")):
        yield f"epsilon {number}", [(epsilon, struct.pack("<f", number))]
    tokens = reader.fields["tokenizer.ggml.tokens"]
    names = [bytes(tokens.parts[i]) for i in tokens.data]
    same = next(i for i in range(300, len(names)) if len(names[i]) == len(names[i + 1]))
    place = data.index(struct.pack("<Q", len(names[same])) + names[same], tokens.offset) + 8
    yield "a token twice", [(place, names[same + 1])]
    for tensor in reader.tensors[:3]:
        info = tensor.field.offset + 8 + len(tensor.name) + 4  # behind the number of dimensions
        n = len(tensor.shape)
        for value in (0, 2**31, 2**63 - 1):
            yield f"{tensor.name}: size {value}", [(info, struct.pack("<Q", value))]
            yield f"{tensor.name}: offset {value + 1}", [(info + 8 * n + 4, struct.pack("<Q", value + 1))]
        yield f"{tensor.name}: type", [(info + 8 * n, struct.pack("<I", 255))]
    rng = random.Random(SEED)
    end = int(reader.data_offset)
    for i in range(N_CUTS):
        n = rng.randrange(4, end if i % 4 else len(data))
        yield f"cut to {n} bytes", n
    for _ in range(N_FLIPS):
        changes = [(rng.randrange(4, end), bytes([rng.randrange(256)])) for _ in range(rng.choice([1, 1, 2, 8]))]
        yield f"changed {changes}", changes


# hyperparameters that contradict each other: docs/robustness.md
KNOWN_TO_ABORT = {("llama.attention.head_count", 0), ("llama.attention.head_count", 513)}


def damage(data: bytes, change: list[Change] | int) -> bytes:
    if isinstance(change, int):
        return data[:change]
    out = bytearray(data)
    for offset, new in change:
        out[offset : offset + len(new)] = new
    return bytes(out)


def use(path: Path) -> str:
    try:
        with tp.Model(path, devices=[]) as model:
            model.tokenize("Hello world")
            with model.context(n_ctx=256, n_ubatch=16, n_threads=1) as context:
                context.decode_batch([token % model.n_vocab for token in range(40)])
                context.logits()
    except tp.ModelLoadError as error:
        return "ModelLoadError" if str(path) in str(error) else f"ModelLoadError without the file: {error}"
    except tp.TurboPrefillError as error:
        return type(error).__name__
    return "loaded"


def apart(path: Path) -> str:
    """What `use` returns, in a child process, or what ended that."""
    receiver, sender = os.pipe()
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))  # what a damaged size asks for
        signal.alarm(60)
        os.write(sender, use(path).encode())
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver, "rb") as pipe:
        said = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return said if status == 0 else f"ended with {status}"


def main() -> None:
    original = Path(sys.argv[1])
    data = original.read_bytes()
    path = original.with_suffix(".damaged.gguf")
    out = {}
    for name, change in cases(data, gguf.GGUFReader(original)):
        path.write_bytes(damage(data, change))
        out[name] = apart(path)
    path.unlink()
    sys.stdout.write(json.dumps(out))


if __name__ == "__main__":
    main()
