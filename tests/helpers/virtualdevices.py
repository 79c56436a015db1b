"""What the tests on virtual devices share. Their fixtures are in conftest.py."""

from __future__ import annotations

import numpy as np

from turboprefill import Context, virtual

N = 4  # a process has one number of virtual devices
N_CTX = 256
OPTIONS = {"n_ctx": N_CTX, "n_threads": 1, "n_threads_batch": 1}
ALIVE = ("events", "buffers", "bytes", "streams", "threads")


def tokens(n: int, seed: int = 0) -> list[int]:
    """Random tokens that the synthetic models know."""
    return np.random.default_rng(seed).integers(300, 1000, n).tolist()


def result(context: Context) -> tuple[bytes, bytes]:
    """Logits of the last decode, and everything in memory."""
    return context.logits().tobytes(), context.state()


def configure(*properties: str) -> None:
    """Give all devices these properties; the others become what they are by default, and what is broken is repaired."""
    virtual.load(",".join([str(N), *filter(None, properties)]))


def only(device: int, value: object) -> str:
    """The value of a key for this device, and 0 for the others."""
    return "/".join(str(value if i == device else 0) for i in range(N))


def alive() -> dict[str, int]:
    """What exists of the devices now."""
    return {name: virtual.counters()[name] for name in ALIVE}
