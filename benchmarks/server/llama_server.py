"""A llama-server of ours: started, asked, ended."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_START_S = 180.0


def prompt(n: int, seed: int) -> list[int]:
    """Random tokens that the synthetic models know and no cache does."""
    rng = random.Random(seed)  # noqa: S311 # a prompt, no secret
    return [rng.randrange(300, 500) for _ in range(n)]


@contextmanager
def server(command: Sequence[str], environment: Mapping[str, str], port: int, log: Path) -> Iterator[str]:
    """A llama-server that answers, by its address. Its output goes to `log`.

    Raises:
        RuntimeError: it ended, or said nothing for three minutes.
    """
    address = f"http://127.0.0.1:{port}"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            _await(address, process, log)
            yield address
        finally:
            process.terminate()
            process.wait(60)


def _await(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2) as answer:  # noqa: S310 # our own server
                if json.load(answer).get("status") == "ok":
                    return
        except (OSError, urllib.error.URLError):
            pass
        time.sleep(0.1)
    raise RuntimeError(f"llama-server did not start:\n{log.read_text(errors='replace')[-2000:]}")


def request(address: str, **body: Any) -> Any:
    """The open answer to a completion: nothing cached, greedy, never ending by itself."""
    body = {"cache_prompt": False, "temperature": 0, "ignore_eos": True, **body}
    call = urllib.request.Request(  # noqa: S310 # our own server
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    return urllib.request.urlopen(call, timeout=600)  # noqa: S310 # our own server


def complete(address: str, **body: Any) -> dict[str, Any]:
    """The answer to a completion."""
    with request(address, **body) as reply:
        answer: dict[str, Any] = json.load(reply)
        return answer
