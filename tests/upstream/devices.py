"""The devices that the layers are split over: virtual ones, local RPC servers, or those of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from turboprefill.demo.workers import RpcWorkers
from upstream.arms import Arm


@dataclass(frozen=True)
class Devices:
    """What makes a program use them."""

    names: tuple[str, ...]
    arguments: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    # for programs that do not look for backends by themselves
    preload: dict[str, str] = field(default_factory=dict)

    def layers(self, *split: int) -> list[str]:
        """Options of llama.cpp's programs; `split`: proportions, as the tool would choose when empty."""
        ratios = ["-ts", ",".join(str(part) for part in split)] if split else []
        return [*self.arguments, "-ngl", "99", "-sm", "layer", *ratios, "-t", "1"]


@contextlib.contextmanager
def devices(arm: Arm, kind: str, n: int, *, copies: str) -> Iterator[Devices]:
    """`n` devices: "virtual", "rpc", or the names of this machine's, of which the first `n` are taken.

    `copies` between virtual devices: "async" or "refused". llama.cpp's own pipeline needs the latter: an asynchronous
    copy of its does not wait until the device that it goes to has computed from what is there. Where that device is
    slower, results are wrong now and then, in unpatched trees as well.
    """
    if kind == "virtual":
        names = tuple(f"VIRT{i}" for i in range(n))
        count = {"TURBOPREFILL_VIRTUAL": f"{n},peer={copies}", "TURBOPREFILL_TRANSPORT": "peer"}
        path = str(arm.virtual)
        yield Devices(
            names, ("-dev", ",".join(names)), {**count, "GGML_BACKEND_PATH": path}, {**count, "PROBE_LOAD": path}
        )
    elif kind == "rpc":
        with RpcWorkers(n, binary=arm.llama / "ggml-rpc-server") as workers:
            names = tuple(f"RPC{i}" for i in range(n))
            yield Devices(names, ("--rpc", ",".join(workers.endpoints)))
    else:
        names = tuple(kind.split(","))[:n]
        yield Devices(names, ("-dev", ",".join(names)))
