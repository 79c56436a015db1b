"""Clients that misbehave, for minutes: the same answers before and after, flat memory, idle slots."""

from __future__ import annotations

import contextlib
import random
import threading
import time
import urllib.error

from llama_server import digest, prompt
from llamaserver.checks import await_idle, hang_up, read_stream
from llamaserver.lab import Lab, answer

_N_CLIENTS = 8
_LENGTHS = (300, 40, 900, 129, 700, 1500)
_GROWTH_MIB = 64  # of resident memory after the first third


def run(lab: Lab, minutes: float) -> str:
    """Raises AssertionError."""
    with lab.server("tiny", "--cache-reuse", 64, slots=4) as running:
        expected = [digest(answer(running, prompt(n, n))) for n in _LENGTHS]
        texts = [read_stream(running, prompt(n, n), 8) for n in _LENGTHS]
        end = time.monotonic() + 60 * minutes
        counts: dict[str, int] = {}
        wrong: list[str] = []
        lock = threading.Lock()

        def once(rng: random.Random) -> str:
            what = rng.choice(("stream", "answer", "cached", "hang up", "nonsense", "oversized"))
            i = rng.randrange(len(_LENGTHS))
            tokens = prompt(_LENGTHS[i], _LENGTHS[i])
            if what == "stream" and read_stream(running, tokens, 8) != texts[i]:
                wrong.append(f"stream {i}")
            elif what == "answer" and answer(running, tokens)["content"] != texts[i]:
                wrong.append(f"answer {i}")
            elif what == "cached":
                answer(
                    running, tokens[: rng.randrange(1, len(tokens))], cache_prompt=True, n_predict=rng.randrange(1, 30)
                )
            elif what == "hang up":
                hang_up(running, tokens, after=rng.random() / 2)
            elif what in ("nonsense", "oversized"):
                data = b'{"prompt": [' if what == "nonsense" else b'{"prompt": "' + b"a " * 20000 + b'"}'
                with contextlib.suppress(urllib.error.HTTPError):
                    running.open("/completion", data, 60).close()
            return what

        def client(seed: int) -> None:
            rng = random.Random(seed)  # an order of requests, no secret
            while time.monotonic() < end:
                what = once(rng)
                with lock:
                    counts[what] = counts.get(what, 0) + 1

        clients = [threading.Thread(target=client, args=(seed,)) for seed in range(_N_CLIENTS)]
        for thread in clients:
            thread.start()
        time.sleep(60 * minutes / 3)
        before = running.resident_mib()
        for thread in clients:
            thread.join()
        await_idle(running)
        grown = running.resident_mib() - before
        assert not wrong, f"wrong answers: {wrong[:5]}"
        assert [digest(answer(running, prompt(n, n))) for n in _LENGTHS] == expected, "other answers than before"
        assert grown < _GROWTH_MIB, f"resident memory grew by {grown:.0f} MiB in the last two thirds"
    done = ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))
    return f"{done}; resident memory {grown:+.0f} MiB"
