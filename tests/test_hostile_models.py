"""Damaged model files, and files that change or go while they are in use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

import damagedmodels
import turboprefill as tp

PROMPT = list(range(10, 60))
OPTIONS = {"n_ctx": 256, "n_ubatch": 16, "n_threads": 1}


@pytest.mark.timeout(180)
def test_a_damaged_file_is_refused_by_name_or_harmless(model_file) -> None:
    """Where llama.cpp would end the process, we look before it does: cpp/checkfile.cpp."""
    command = [sys.executable, damagedmodels.__file__, str(model_file("tiny", n_layers=2))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = json.loads(done.stdout)
    assert outcomes["unchanged"] == "loaded"
    assert len(outcomes) == 106  # as docs/robustness.md says
    allowed = {"loaded", "ModelLoadError", "ContextCreationError", "InvalidInputError"}
    assert {name: outcome for name, outcome in outcomes.items() if outcome not in allowed} == {}
    assert Counter(outcomes.values())["ModelLoadError"] > len(outcomes) / 2


@pytest.mark.parametrize(
    ("preset", "key", "value", "expected"),
    [
        ("tiny", b"llama.block_count", 600, "1 to 512"),
        ("gptoss-tiny", b"gpt-oss.expert_count", 100000, "0 to "),
        ("gptoss-tiny", b"gpt-oss.expert_used_count", 9, "1 to 8"),
        ("gptoss-tiny", b"gpt-oss.expert_used_count", 0, "1 to 8"),
    ],
)
def test_the_reason_of_our_own_check_is_told(model_file, tmp_path, preset, key, value, expected) -> None:
    data = bytearray(model_file(preset).read_bytes())
    at = data.index(key) + len(key) + 4
    data[at : at + 4] = value.to_bytes(4, "little")
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    name = key.decode().partition(".")[2]
    with pytest.raises(tp.ModelLoadError, match=rf"damaged\.gguf: .*{name} is {value}; expected {expected}"):
        tp.Model(path)


@pytest.mark.parametrize("change", ["deleted", "replaced"])
def test_a_file_that_is_deleted_or_replaced_after_loading_stays_in_use(model_file, tmp_path, change) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model_file("tiny").read_bytes())
    with tp.Model(path, devices=[]) as model:
        if change == "deleted":
            path.unlink()
        else:
            (tmp_path / "other").write_bytes(model_file("gemma3-tiny").read_bytes())
            (tmp_path / "other").replace(path)
        with model.context(**OPTIONS) as context, tp.Model(model_file("tiny"), devices=[]) as same:
            context.decode_batch(PROMPT)
            with same.context(**OPTIONS) as other:
                other.decode_batch(PROMPT)
                np.testing.assert_array_equal(context.logits(), other.logits())


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, kind) -> None:
    import socket

    path = tmp_path / "model.gguf"
    with socket.socket(socket.AF_UNIX) as server:
        if kind == "pipe":
            os.mkfifo(path)
        else:
            server.bind(str(path))
        with pytest.raises(tp.ModelLoadError, match=r"model\.gguf"):
            tp.Model(path)


def test_a_path_with_a_null_byte_is_refused(tmp_path) -> None:
    with pytest.raises(tp.ModelLoadError, match="null byte"):
        tp.Model(f"{tmp_path}/a\0b.gguf")
