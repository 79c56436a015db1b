"""Running a case on both builds, and what it says."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from turboprefill.errors import TurboPrefillError
from upstream.arms import SABOTAGE, Arm
from upstream.cases import Bench, Case, Outcome
from upstream.devices import devices
from upstream.models import Models


@dataclass
class Counted:
    """What the probe saw on the patched build, summed over contexts."""

    pipelined: int = 0
    standard: int = 0
    contexts: int = 0
    contexts_pipelined: int = 0
    # of contexts without a single pipelined ubatch: the reason, and the models
    reasons: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Row:
    """A line of the table."""

    name: str
    about: str
    seconds: dict[str, float] = field(default_factory=dict)
    equal: bool = False
    counted: Counted = field(default_factory=Counted)
    problem: str = ""

    @property
    def passed(self) -> bool:
        return not self.problem

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def read_counts(path: Path) -> Counted:
    """Sum up what `probe.cpp` wrote.

    Raises:
        OSError: the probe wrote nothing.
    """
    counted = Counted()
    without: dict[str, set[str]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        pipelined, standard, model, reason = line.split("\t")
        counted.contexts += 1
        counted.pipelined += max(0, int(pipelined))
        counted.standard += max(0, int(standard))
        if int(pipelined) > 0:
            counted.contexts_pipelined += 1
        else:
            without.setdefault(reason or "none was given", set()).add(model.split(" ")[0])
    counted.reasons = {reason: sorted(models) for reason, models in sorted(without.items())}
    return counted


def compare(
    case: Case, arms: tuple[Arm, Arm], *, models: Models, work: Path, kind: str, text: str, sabotage: bool
) -> Row:
    """One row. With `sabotage` the patched build's uploads are damaged, and the row should not pass."""
    row = Row(case.name, case.about)
    outcomes: list[Outcome] = []
    for arm in arms:
        folder = work / "runs" / case.name / arm.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        environment = {**case.environment, "PROBE_STATS": str(folder / "stats.tsv")}
        if arm is arms[1]:
            environment |= {**case.patched, **(SABOTAGE if sabotage else {})}
        began = time.monotonic()
        try:
            copies = case.copies if arm is arms[1] else "refused"
            with devices(arm, "rpc" if case.rpc else kind, case.n_devices, copies=copies) as found:
                outcomes.append(case.run(Bench(arm, found, models, folder, text, environment)))
        except (TurboPrefillError, OSError) as error:
            row.problem = f"{arm.name}: {error}"
            return row
        finally:
            row.seconds[arm.name] = round(time.monotonic() - began, 1)
            if arm is arms[1] and (folder / "stats.tsv").exists():
                row.counted = read_counts(folder / "stats.tsv")
    differ = [name for name, value in outcomes[0].items() if outcomes[1].get(name) != value]
    row.equal = not differ and bool(outcomes[0])
    if not row.equal:
        row.problem = f"not equal: {', '.join(differ)}"
    elif row.counted.contexts == 0:
        row.problem = "the probe saw no context: nothing is known about the pipeline"
    elif case.pipelined and row.counted.pipelined == 0:
        row.problem = f"nothing was pipelined: {'; '.join(row.counted.reasons)}"
    elif not case.pipelined and row.counted.pipelined > 0:
        row.problem = f"{row.counted.pipelined} ubatches were pipelined: expected none"
    return row
