"""What docs/robustness.md says of cases that TurboPrefill does not prevent, and of its errors."""

from __future__ import annotations

import importlib
import pkgutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import numpy as np
import pytest

import turboprefill as tp
from turboprefill import rpc
from virtualdevices import OPTIONS, only, tokens

USE_AND_TRUNCATE = """
import os, sys
import turboprefill as tp
with tp.Model(sys.argv[1], devices=[], use_mmap=sys.argv[2] == "mapped") as model:
    os.truncate(sys.argv[1], 4096)
    with model.context(n_ctx=64, n_threads=1) as context:
        context.decode_batch([1, 2, 3])
"""


@pytest.mark.parametrize(("how", "code"), [("mapped", -signal.SIGBUS), ("read", 0)])
def test_a_file_truncated_in_place_ends_the_process_only_if_it_is_mapped(model_file, tmp_path, how, code) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(model_file("tiny").read_bytes())
    command = [sys.executable, "-c", USE_AND_TRUNCATE, str(path), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr[-2000:]


@pytest.mark.parametrize("turboprefill", [False, True])
def test_a_fault_during_a_shift_damages_the_sequence_without_an_error(
    model_file, virtual_names, configure, turboprefill
) -> None:
    prompt = tokens(64)

    def shifted_logits(*fault: str) -> np.ndarray:
        with model.context(**OPTIONS, n_batch=64, n_ubatch=8, turboprefill=turboprefill) as context:
            context.decode_batch(prompt)
            context.memory.seq_rm(0, 10, 20)
            context.memory.seq_add(0, 20, None, -10)
            configure("peer=refused", *fault)
            context.decode_batch([prompt[0]])
            logits = context.logits().copy()
            context.memory.clear()  # also forgets a fault that nobody has reported
            configure("peer=refused")
            return logits

    with tp.Model(model_file("tiny"), devices=virtual_names) as model:
        assert np.array_equal(shifted_logits(), shifted_logits())
        assert not np.array_equal(shifted_logits(), shifted_logits(f"fail_graph={only(1, 1)}"))


def _silent(stack: ExitStack) -> tuple[str, int]:
    """An address where connecting takes as long as one lets it: its queue is full, and nobody accepts."""
    server = stack.enter_context(socket.socket())
    server.bind(("127.0.0.1", 0))
    server.listen(0)
    for _ in range(4):
        client = stack.enter_context(socket.socket())
        client.setblocking(False)
        client.connect_ex(server.getsockname())
    return server.getsockname()


def test_an_endpoint_is_given_up_after_one_timeout_for_each_of_its_addresses(monkeypatch) -> None:
    monkeypatch.setattr(rpc, "_CONNECT_TIMEOUT_S", 0.3)
    with ExitStack() as stack:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", _silent(stack)) for _ in range(2)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: found)
        begin = time.monotonic()
        with pytest.raises(tp.EndpointError, match="did not answer within"):
            rpc.add_server("two-addresses:50052")
    assert 0.6 <= time.monotonic() - begin < 0.9 + 1


def test_every_exception_of_the_package_derives_from_one_base() -> None:
    modules = [name for _, name, _ in pkgutil.walk_packages(tp.__path__, "turboprefill.") if "__main__" not in name]
    found = set()
    for module in map(importlib.import_module, modules):
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, BaseException)
                and value.__module__.startswith("turboprefill")
            ):
                found.add(value)
    assert {"PlanError", "DoesNotFitError", "ToolError", "DemoError", "EndpointError"} <= {
        kind.__name__ for kind in found
    }
    assert [kind for kind in found if not issubclass(kind, tp.TurboPrefillError)] == []
