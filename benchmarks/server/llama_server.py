"""A llama-server of ours: started, asked, ended."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_START_S = 180.0
_PATIENCE_S = 600


@dataclass(frozen=True)
class LlamaServer:
    """A server that runs: its address, its process, and the file that its output goes to."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def call(self, path: str, body: Any = None, timeout: float = _PATIENCE_S) -> Any:
        """The answer of an endpoint, to a POST if there is a body.

        Raises:
            urllib.error.HTTPError: the server refused.
        """
        data = None if body is None else json.dumps(body).encode()
        with self.open(path, data, timeout) as answer:
            return json.load(answer)

    def open(self, path: str, data: bytes | None = None, timeout: float = _PATIENCE_S) -> Any:
        """The open answer of an endpoint, to a POST of `data` if it is given."""
        headers = {"Content-Type": "application/json"}
        call = urllib.request.Request(self.address + path, data, headers)  # noqa: S310 # our own server
        return urllib.request.urlopen(call, timeout=timeout)  # noqa: S310 # our own server

    def resident_mib(self) -> float:
        """Memory that the process has now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def prompt(n: int, seed: int) -> list[int]:
    """Random tokens that the synthetic models know and no cache does."""
    rng = random.Random(seed)  # noqa: S311 # a prompt, no secret
    return [rng.randrange(300, 500) for _ in range(n)]


@contextmanager
def server(command: Sequence[str], environment: Mapping[str, str], port: int, log: Path) -> Iterator[LlamaServer]:
    """A llama-server that answers. Its output goes to `log`.

    Raises:
        RuntimeError: it ended, or said nothing for three minutes.
    """
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            running = LlamaServer(f"http://127.0.0.1:{port}", process, log)
            _await(running)
            yield running
        finally:
            process.terminate()
            process.wait(60)


def _await(running: LlamaServer) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and running.process.poll() is None:
        try:
            if running.call("/health", timeout=2).get("status") == "ok":
                return
        except (OSError, urllib.error.URLError):
            pass
        time.sleep(0.1)
    raise RuntimeError(f"llama-server did not start:\n{running.log.read_text(errors='replace')[-2000:]}")


def request(running: LlamaServer, **body: Any) -> Any:
    """The open answer to a completion: nothing cached, greedy, never ending by itself."""
    body = {"cache_prompt": False, "temperature": 0, "ignore_eos": True, **body}
    return running.open("/completion", json.dumps(body).encode())


def digest(reply: dict[str, Any]) -> str:
    """Text and probabilities of an answer, in short."""
    kept = [reply["content"], reply.get("completion_probabilities")]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def complete(running: LlamaServer, **body: Any) -> dict[str, Any]:
    """The answer to a completion."""
    with request(running, **body) as reply:
        answer: dict[str, Any] = json.load(reply)
        return answer
