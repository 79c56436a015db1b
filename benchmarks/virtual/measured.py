"""What was measured on real GPUs, and which arms on virtual devices are to show the same ratios.

All figures are of a dense model with 32 layers of Llama-70B's shape, one prompt of 16,384 tokens, flash attention,
llama.cpp 0c1e57098; tokens per second, medians.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MACHINES", "Arm", "Machine", "Ratio"]

_RESULTS = Path(__file__).resolve().parents[1] / "results"


@dataclass(frozen=True)
class Arm:
    """One way to read a prompt.

    Attributes:
        n_ubatch: the ubatch of the real run. 512 never finds a graph to reuse there, so reuse is off here as well.
        balanced: as many layers on each device, or what llama.cpp makes of its default split.
        turboprefill: with TurboPrefill, or upstream's own path.
        reuse: graphs may be reused, as llama.cpp is shipped.
        peer: devices copy to each other and have events, or as a build with GGML_CUDA_NO_PEER_COPY.
    """

    n_ubatch: int
    balanced: bool = False
    turboprefill: bool = False
    reuse: bool = False
    peer: bool = True


@dataclass(frozen=True)
class Ratio:
    """Speed of one arm over that of another, measured, and the arms that stand for both here."""

    name: str
    measured: float
    faster: Arm
    slower: Arm


@dataclass(frozen=True)
class Machine:
    """A kind of machine: its devices, the layers that the default split gives them, and the ratios measured on it."""

    name: str
    layers: tuple[int, ...]
    source: str
    ratios: tuple[Ratio, ...]

    @property
    def n_devices(self) -> int:
        return len(self.layers)

    @property
    def arms(self) -> list[Arm]:
        """All arms that the ratios need, each once."""
        return list(dict.fromkeys(arm for ratio in self.ratios for arm in (ratio.slower, ratio.faster)))


def _speeds(file: str) -> dict[tuple[str, int], float]:
    """Tokens per second by arm and ubatch, of a file of benchmarks/gpu."""
    records = json.loads((_RESULTS / file).read_text())["results"]
    return {
        (record["arm"], record["n_ubatch"]): record["median_ts"]
        for record in records
        if record["case"] in ("dense pp16384 ub128", "dense pp16384 ub512") and "median_ts" in record
    }


def _pipeline(speed: dict[tuple[str, int], float], without: dict[tuple[str, int], float], first: int) -> list[Ratio]:
    """What was measured with TurboPrefill; `first` is the first device's layers where the split is llama.cpp's own."""
    ratios = [
        Ratio(
            f"TurboPrefill against as shipped, ubatch {n}",
            speed["turbo", n] / speed["upstream", n],
            Arm(n, turboprefill=True),
            Arm(n, reuse=n == 128),
        )
        for n in (128, 512)
    ]
    ratios.append(
        Ratio(
            f"equal layers, not {first} on the first device, ubatch 512",
            speed["turbo-balanced", 512] / speed["turbo", 512],
            Arm(512, balanced=True, turboprefill=True),
            Arm(512, turboprefill=True),
        )
    )
    ratios.append(
        Ratio(
            "as shipped: peer copies against none, ubatch 512",
            without["upstream", 512] / without["nopeer-upstream", 512],
            Arm(512),
            Arm(512, balanced=True, peer=False),
        )
    )
    ratios += [
        Ratio(
            f"without peer copies: TurboPrefill against as shipped, ubatch {n}",
            without["nopeer-turbo", n] / without["nopeer-upstream", n],
            Arm(n, balanced=True, turboprefill=True, peer=False),
            Arm(n, balanced=True, reuse=n == 128, peer=False),
        )
        for n in (128, 512)
    ]
    return ratios


def _eight() -> Machine:
    """Reuse and the limit of copies were measured one by one; the pipeline without it was upstream's with 16 copies."""
    table, file = "planner-8xH200.json", "2026-11-21-8xH200.json"
    speed = {
        (row["arm"], row["n_ubatch"]): row["tok_per_s"]
        for row in json.loads((_RESULTS / table).read_text())["rows"]
        if row["model"] == "dense" and row["n_prompt"] == 16384 and row["gpus"] == 8
    }
    single = [
        Ratio(
            "graph reuse switched off, ubatch 128",
            speed["reuse-off", 128] / speed["upstream", 128],
            Arm(128),
            Arm(128, reuse=True),
        ),
        Ratio(
            "no limit of 4 input copies, ubatch 128",
            speed["copies16", 128] / speed["reuse-off", 128],
            Arm(128, turboprefill=True),
            Arm(128),
        ),
    ]
    pipeline = _pipeline(_speeds(file), _speeds(file), 5)
    return Machine("8x H200, NVLink", (5, 4, 4, 4, 4, 4, 4, 3), f"{table}, {file}", (*single, *pipeline))


def _four() -> Machine:
    peer, none = "2026-11-20-4xH200.json", "2026-11-20-4xH200-no-peer.json"
    pipeline = _pipeline(_speeds(peer), _speeds(none), 9)
    return Machine("4x H200, NVLink", (9, 8, 8, 7), f"{peer}, {none}", tuple(pipeline))


MACHINES = (_eight(), _four())
