"""Servers on virtual devices, and what their answers are compared by."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_server import LlamaServer, complete, server
from turboprefill import synth

N_DEVICES = 4
UBATCH, BATCH = 32, 128
_TIMES = "us_per_token=100,split_us=500"  # long enough that several ubatches are in flight


@dataclass
class Lab:
    """llama-server's programs, the virtual devices made for them, and a folder for models and logs."""

    bin_dir: Path
    virtual: Path
    folder: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def model(self, preset: str) -> Path:
        """A synthetic model of this preset."""
        path = self.folder / f"{preset}.gguf"
        return path if path.exists() else synth.write_model(path, preset)

    @contextmanager
    def server(
        self,
        preset: str,
        *options: object,
        on: bool = True,
        slots: int = 2,
        context: int = 2048,
        devices: str = "",
        watchdog_s: float = 120,
    ) -> Iterator[LlamaServer]:
        """A server with `slots` slots of `context` tokens; `devices` adds properties to the virtual devices."""
        command = [self.bin_dir / "llama-server", "-m", self.model(preset), "-ngl", 99, "-t", 1, "-fit", "off"]
        command += ["-dev", ",".join(f"VIRT{i}" for i in range(N_DEVICES)), "--no-warmup", "--no-webui"]
        command += ["-c", slots * context, "-np", slots, "-b", BATCH, "-ub", UBATCH, *options]
        environment = {
            "TURBOPREFILL": "1" if on else "0",
            "TURBOPREFILL_VIRTUAL": ",".join([str(N_DEVICES), _TIMES, *filter(None, [devices])]),
            "TURBOPREFILL_WATCHDOG_S": f"{watchdog_s:g}",
            "GGML_BACKEND_PATH": str(self.virtual.resolve()),
            "LD_LIBRARY_PATH": str(self.bin_dir.resolve()),
            "LLAMA_ARG_REPACK": "0",  # a virtual machine may announce instructions that it does not have
        }
        log = self.folder / f"{next(self._numbers)}-{preset}-{'on' if on else 'off'}.log"
        with server([str(word) for word in command], environment, _free_port(), log) as running:
            yield running


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answer(running: LlamaServer, tokens: list[int], n_predict: int = 8, **body: Any) -> dict[str, Any]:
    """The answer to a prompt, with the probabilities of the likeliest tokens."""
    return complete(running, prompt=tokens, n_predict=n_predict, n_probs=3, **body)


def n_cached(reply: dict[str, Any]) -> int:
    """Tokens of the prompt that the server had already."""
    return int(reply["timings"]["cache_n"])


def pipelined(running: LlamaServer) -> int:
    """Ubatches that the log says were pipelined."""
    lines = [line for line in running.log.read_text(errors="replace").splitlines() if "TurboPrefill: prompt of" in line]
    return sum(int(line.partition("devices: ")[2].split()[0]) for line in lines if "pipelined over" in line)
