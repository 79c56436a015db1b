"""llama-server under the same requests over and over: how many different answers each of them got."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_LENGTHS = (1500, 300, 2600, 40, 900, 2049, 700)
_START_S = 180.0


@dataclass
class Answers:
    """Digests of the answers by request, of those that were alone and of those that were not."""

    alone: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    together: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    n: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, request: int, digest: str, *, alone: bool) -> None:
        """Note one answer."""
        with self.lock:
            (self.alone if alone else self.together)[request].add(digest)
            self.n += 1


@contextmanager
def server(command: Sequence[str], environment: Mapping[str, str], port: int, log: Path) -> Iterator[str]:
    """A llama-server that answers, by its address.

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
            time.sleep(0.2)
    raise RuntimeError(f"llama-server did not start:\n{log.read_text(errors='replace')[-2000:]}")


def ask(address: str, request: int, n_predict: int, n_probs: int) -> str:
    """Digest of an answer: its text, and with `n_probs` the likeliest tokens with their probabilities."""
    rng = random.Random(request)  # noqa: S311 # a prompt, no secret
    body: dict[str, Any] = {
        "prompt": [rng.randrange(300, 500) for _ in range(_LENGTHS[request % len(_LENGTHS)])],
        "n_predict": n_predict,
        "n_probs": n_probs,
        "temperature": 0,
        "cache_prompt": False,
        "ignore_eos": True,
    }
    call = urllib.request.Request(  # noqa: S310 # our own server
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(call, timeout=600) as reply:  # noqa: S310
        answer = json.load(reply)
    kept = [answer["content"], answer.get("completion_probabilities")]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def run(address: str, seconds: float, n_clients: int = 4) -> Answers:
    """A third of the time one request after the other, then several clients at once."""
    answers, start = Answers(), time.monotonic()
    while time.monotonic() - start < seconds / 3 or len(answers.alone) < len(_LENGTHS):
        request = answers.n % len(_LENGTHS)
        answers.add(request, ask(address, request, 8, 3), alone=True)

    def client(index: int) -> None:
        rng = random.Random(index)  # noqa: S311
        while time.monotonic() - start < seconds:
            request = rng.randrange(len(_LENGTHS))
            answers.add(request, ask(address, request, rng.choice((1, 8)), 0), alone=False)

    clients = [threading.Thread(target=client, args=(index,)) for index in range(n_clients)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    for request in range(len(_LENGTHS)):  # and the same answers after all that
        answers.add(request, ask(address, request, 8, 3), alone=True)
    return answers
