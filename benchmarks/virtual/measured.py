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


def _eight() -> Machine:
    """Measured before there was TurboPrefill: there, the pipeline without a limit is upstream's with 16 copies."""
    file = "planner-8xH200.json"
    speed = {
        (row["arm"], row["n_ubatch"]): row["tok_per_s"]
        for row in json.loads((_RESULTS / file).read_text())["rows"]
        if row["model"] == "dense" and row["n_prompt"] == 16384 and row["gpus"] == 8
    }
    ratios = (
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
        Ratio(
            "no limit of 4 input copies, ubatch 512",
            speed["copies16", 512] / speed["upstream", 512],
            Arm(512, turboprefill=True),
            Arm(512),
        ),
        Ratio(
            "equal layers, not 5 on the first device, ubatch 512",
            speed["tuned", 512] / speed["copies16", 512],
            Arm(512, balanced=True, turboprefill=True),
            Arm(512, turboprefill=True),
        ),
        Ratio(
            "peer copies, against none, as shipped, ubatch 512",
            speed["upstream", 512] / speed["nopeer-upstream", 512],
            Arm(512),
            Arm(512, peer=False),
        ),
    )
    return Machine("8x H200, NVLink", (5, 4, 4, 4, 4, 4, 4, 3), file, ratios)


def _four() -> Machine:
    def of(file: str) -> dict[tuple[str, str], float]:
        records = json.loads((_RESULTS / file).read_text())["results"]
        return {(record["case"], record["arm"]): record["median_ts"] for record in records if "median_ts" in record}

    peer, none = "2026-11-20-4xH200.json", "2026-11-20-4xH200-no-peer.json"
    small, large = "dense pp16384 ub128", "dense pp16384 ub512"
    with_peer, without = of(peer), of(none)
    ratios = (
        Ratio(
            "TurboPrefill against as shipped, ubatch 128",
            with_peer[small, "turbo"] / with_peer[small, "upstream"],
            Arm(128, turboprefill=True),
            Arm(128, reuse=True),
        ),
        Ratio(
            "TurboPrefill against as shipped, ubatch 512",
            with_peer[large, "turbo"] / with_peer[large, "upstream"],
            Arm(512, turboprefill=True),
            Arm(512),
        ),
        Ratio(
            "equal layers, not 9 on the first device, ubatch 512",
            with_peer[large, "turbo-balanced"] / with_peer[large, "turbo"],
            Arm(512, balanced=True, turboprefill=True),
            Arm(512, turboprefill=True),
        ),
        Ratio(
            "peer copies, against none, as shipped, ubatch 512",
            without[large, "upstream"] / without[large, "nopeer-upstream"],
            Arm(512),
            Arm(512, balanced=True, peer=False),
        ),
        Ratio(
            "TurboPrefill against as shipped, no peer copies, ubatch 512",
            without[large, "nopeer-turbo"] / without[large, "nopeer-upstream"],
            Arm(512, balanced=True, turboprefill=True, peer=False),
            Arm(512, balanced=True, peer=False),
        ),
        Ratio(
            "TurboPrefill against as shipped, no peer copies, ubatch 128",
            without[small, "nopeer-turbo"] / without[small, "nopeer-upstream"],
            Arm(128, balanced=True, turboprefill=True, peer=False),
            Arm(128, balanced=True, reuse=True, peer=False),
        ),
    )
    return Machine("4x H200, NVLink", (9, 8, 8, 7), f"{peer}, {none}", ratios)


MACHINES = (_eight(), _four())
