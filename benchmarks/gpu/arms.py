"""What is compared: arms (a build, a split, an environment), models, and cases (a prompt and batch sizes)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Arm:
    """One way to run a model. `build` is a name of builds.TREES, `split` default, balanced or none."""

    name: str
    build: str
    split: str
    env: Mapping[str, str] = field(default_factory=dict)
    peer: bool = True
    own_ubatch: bool = False  # chooses the size itself: its results are those of another size
    baseline: str = "upstream"  # what its speed is divided by


_AUTO = {"TURBOPREFILL": "1"}
_TURBO = {**_AUTO, "TURBOPREFILL_SPLIT": "off"}
ARMS = {
    arm.name: arm
    for arm in (
        Arm("upstream", "plain", "default"),
        Arm("tuned", "copies16", "balanced", {"LLAMA_GRAPH_REUSE_DISABLE": "1"}),
        Arm("turbo", "turbo", "default", _TURBO),
        Arm("turbo-balanced", "turbo", "balanced", _TURBO),
        Arm("turbo-balanced-peer", "turbo", "balanced", {**_TURBO, "TURBOPREFILL_TRANSPORT": "peer"}),
        Arm("turbo-auto", "turbo", "default", {**_AUTO, "TURBOPREFILL_UBATCH": "auto"}, own_ubatch=True),
        Arm("nopeer-upstream", "plain", "balanced", peer=False, baseline="nopeer-upstream"),
        Arm("nopeer-turbo", "turbo", "balanced", _TURBO, peer=False, baseline="nopeer-upstream"),
        Arm("single", "plain", "none"),
    )
}
MAIN = ("upstream", "tuned", "turbo", "turbo-balanced")
ALL = tuple(ARMS)
SAME = tuple(name for name, arm in ARMS.items() if not arm.own_ubatch)


@dataclass(frozen=True)
class ModelSpec:
    """A synthetic model and, for the plan, tokens per second that one H200 reads with ubatches of 512."""

    preset: str
    n_layer: int
    speed: float


MODELS = {
    "dense": ModelSpec("llama70", 32, 2900),
    "moe": ModelSpec("gptoss120", 12, 7800),
    "swa": ModelSpec("gemma3-12b", 48, 6000),
    "hybrid": ModelSpec("granite-h-micro", 40, 15000),
}
SMALL = {
    "dense": ModelSpec("tiny", 8, 3000),
    "moe": ModelSpec("gptoss-tiny", 8, 2000),
    "swa": ModelSpec("gemma3-tiny", 8, 2000),
    "hybrid": ModelSpec("granite-hybrid-tiny", 8, 1500),
}


@dataclass(frozen=True)
class Case:
    """One prompt: tokens, sizes of ubatch and call, and what else is looked at."""

    step: str
    model: str
    n_prompt: int
    n_ubatch: int
    n_batch: int
    arms: tuple[str, ...]
    n_gen: int = 0
    state: bool = False
    once: bool = False  # in the first round alone, not timed

    @property
    def name(self) -> str:
        """As in llama-bench's test names."""
        batch = f" b{self.n_batch}" if self.n_batch != self.n_prompt else ""
        return f"{self.model} pp{self.n_prompt} ub{self.n_ubatch}{batch}"


def cases(steps: set[str], models: Mapping[str, ModelSpec], *, small: bool = False) -> Iterator[Case]:
    """The cases of the chosen steps. Small ones have a sixteenth of the tokens."""

    def case(step: str, model: str, n: int, ub: int, arms: tuple[str, ...], nb: int = 0, gen: int = 0) -> Case:
        scale = 16 if small else 1
        return Case(step, model, n // scale, max(8, ub // scale), (nb or n) // scale, arms, gen // scale)

    if "correctness" in steps:
        for model in models:
            # the last call and the last ubatch of each call are partial ones
            yield Case("correctness", model, 2500, 128, 1000, SAME, state=True, once=True)
    if "dense" in steps:
        yield case("dense", "dense", 16384, 512, ALL)
        yield case("dense", "dense", 16384, 256, (*MAIN, "single"))
        yield case("dense", "dense", 16384, 128, SAME)
        yield case("dense", "dense", 4096, 512, ("upstream", "tuned", "turbo-auto"))
        yield case("dense", "dense", 4096, 256, (*MAIN, "single"))
    if "sizes" in steps:
        for n, sizes in ((16384, (192, 384)), (4096, (96, 128, 192, 384))):
            for size in sizes:
                yield case("sizes", "dense", n, size, ("tuned", "turbo-balanced"))
    for model in ("moe", "swa", "hybrid"):
        if model in steps:
            yield case(model, model, 16384, 512, (*MAIN, "turbo-auto", "single"))
            yield case(model, model, 16384, 128, (*MAIN, "single"))
    if "nbatch" in steps:
        yield case("nbatch", "dense", 16384, 512, MAIN, nb=2048)
    if "scaling" in steps:
        yield case("scaling", "dense", 32768, 512, (*MAIN, "single"))
    if "long" in steps:
        yield case("long", "dense", 65536, 512, ("upstream", "tuned", "turbo-balanced"))
        yield case("long", "dense", 131072, 512, ("tuned", "turbo-balanced"))
    if "decode" in steps:
        yield case("decode", "dense", 2048, 512, ("upstream", "tuned", "turbo-balanced"), gen=128)
