"""llama-server under the same requests over and over: how many different answers each of them got."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

from llama_server import LlamaServer, complete, digest, prompt

_LENGTHS = (1500, 300, 2600, 40, 900, 2049, 700)


@dataclass
class Answers:
    """Digests of the answers by request, of those that were alone and of those that were not."""

    alone: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    together: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    n: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, request: int, answer: str, *, alone: bool) -> None:
        """Note one answer."""
        with self.lock:
            (self.alone if alone else self.together)[request].add(answer)
            self.n += 1


def ask(running: LlamaServer, request: int, n_predict: int, n_probs: int) -> str:
    """Digest of an answer: its text, and with `n_probs` the likeliest tokens with their probabilities."""
    tokens = prompt(_LENGTHS[request % len(_LENGTHS)], request)
    answer = complete(running, prompt=tokens, n_predict=n_predict, n_probs=n_probs)
    return digest(answer)


def run(running: LlamaServer, seconds: float, n_clients: int = 4) -> Answers:
    """A third of the time one request after the other, then several clients at once."""
    answers, start = Answers(), time.monotonic()
    while time.monotonic() - start < seconds / 3 or len(answers.alone) < len(_LENGTHS):
        request = answers.n % len(_LENGTHS)
        answers.add(request, ask(running, request, 8, 3), alone=True)

    def client(index: int) -> None:
        rng = random.Random(index)  # noqa: S311 # an order of requests, no secret
        while time.monotonic() - start < seconds:
            request = rng.randrange(len(_LENGTHS))
            answers.add(request, ask(running, request, rng.choice((1, 8)), 0), alone=False)

    clients = [threading.Thread(target=client, args=(index,)) for index in range(n_clients)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    for request in range(len(_LENGTHS)):  # and the same answers after all that
        answers.add(request, ask(running, request, 8, 3), alone=True)
    return answers
