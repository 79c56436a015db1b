"""Run as a program by tests/test_overlay_health.py: a prompt, in the middle of which an RPC server is ended."""

from __future__ import annotations

import os
import signal
import sys
import threading

from pipelinecounts import assert_pipelined
from turboprefill import Model
from virtualdevices import tokens


def main(path: str, pid: int, endpoints: list[str]) -> None:
    sizes = {"n_ctx": 8192, "n_batch": 8192, "n_ubatch": 32, "n_threads": 1}
    with Model(path, rpc_servers=endpoints) as model, model.context(**sizes, turboprefill=True) as context:
        context.decode_batch(tokens(256))
        context.synchronize()
        assert_pipelined(context, 8)
        threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
        while True:
            context.memory.clear()
            context.decode_batch(tokens(8000))
            context.synchronize()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
