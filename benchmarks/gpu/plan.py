"""Which processes run in which order, and whether they fit into the time that there is.

Arms are different libraries, so they are different processes. A process loads one model once and runs all cases that
this arm has for it. Rounds make the arms alternate: each runs all arms of all models, every other one backwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from arms import ARMS, Arm, Case, ModelSpec

SINGLE_WARM_UP = 2048  # tokens at most
_START = 6.0  # seconds to start a process and to initialise the devices
_LOAD = 3e9  # bytes of a model per second


@dataclass(frozen=True)
class Run:
    """One process: an arm, a model and its cases, in one round."""

    round: int
    arm: Arm
    model: str
    cases: tuple[Case, ...]


def runs(cases: Sequence[Case], arms: Sequence[str], rounds: int) -> list[Run]:
    """All processes in order. `single` and untimed cases have one round."""
    out = []
    models = list(dict.fromkeys(case.model for case in cases))
    for number in range(rounds):
        for model in models:
            for name in arms if number % 2 == 0 else arms[::-1]:
                if name == "single" and number > 0:
                    continue
                mine = tuple(
                    case
                    for case in cases
                    if case.model == model and name in case.arms and not (case.once and number > 0)
                )
                if mine:
                    out.append(Run(number, ARMS[name], model, mine))
    return out


def estimate(
    run: Run, models: Mapping[str, ModelSpec], sizes: Mapping[str, int], devices: int, repeats: int, warm_up: float
) -> float:
    """Seconds that a process will roughly take."""
    seconds = _START + sizes.get(run.model, 0) / _LOAD
    for case in run.cases:
        once = case.n_prompt / _speed(run.arm, case, models[case.model].speed, devices)
        if case.once:
            seconds += once + 1
        else:
            single = run.arm.name == "single"
            warm = min(warm_up, SINGLE_WARM_UP / case.n_prompt) if single else warm_up
            times = repeats + warm + single + (repeats if case.n_gen else 0)
            seconds += once * times + case.n_gen * repeats * 0.03
    return seconds


def _speed(arm: Arm, case: Case, speed: float, devices: int) -> float:
    many = arm.name != "single"
    if many and not (arm.build == "plain" and not arm.peer):
        speed *= 0.75 * devices
    if case.n_ubatch < 256:
        speed *= 0.7
        if many and arm.build == "plain":  # graph reuse drains the pipeline
            speed *= 0.4
    return speed / (1 + case.n_prompt / 200_000)


class Budget:
    """Decides what still fits, with times of earlier rounds instead of estimates where there are any."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._seen: dict[tuple[str, str, tuple[Case, ...]], float] = {}

    def expect(self, run: Run, guess: float) -> float:
        """Seconds to expect for `run`."""
        return self._seen.get((run.arm.name, run.model, run.cases), guess)

    def fits(self, expected: float, elapsed: float) -> bool:
        """Whether a process of `expected` seconds may start after `elapsed` seconds."""
        return elapsed + expected <= self.seconds

    def note(self, run: Run, seconds: float) -> None:
        """Remember how long `run` took."""
        self._seen[run.arm.name, run.model, run.cases] = seconds
