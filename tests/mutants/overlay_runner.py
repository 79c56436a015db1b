"""Runs mutants of the overlay: each is compiled into a tree, then the scenarios that have to notice it run."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mutants.catalogue import ROOT, Mutant, MutantError
from mutants.results import Options, Result, Tell, Verdict
from nativebuild import compile_native, patched_tree
from sanitize.models import write_models
from turboprefill.cli.console import progress
from turboprefill.errors import TurboPrefillError
from turboprefill.tools.build import BuildOptions, build

__all__ = ["run"]

WORK = ROOT / "build/mutants"
_DEFINES = ("BUILD_SHARED_LIBS=ON", "GGML_NATIVE=OFF", "GGML_OPENMP=OFF")
_SLOWDOWN, _PATIENCE_S = 5, 30.0  # a mutant may take as many times as long, and as many seconds more
_SAID = re.compile(r"^(\S+) +FAILED: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class _Done:
    code: int | None  # None: it took too long
    output: str
    seconds: float


def run(mutants: Sequence[Mutant], options: Options, tell: Tell) -> list[Result]:
    """Run the scenarios of these mutants unchanged, which must pass, and then each mutant; one after the other.

    Raises:
        MutantError: nothing compiles, or a scenario fails without any mutant.
    """
    try:
        lab = _make_lab(options.jobs)
    except TurboPrefillError as error:
        raise MutantError(str(error)) from error
    times = {name: _baseline(lab, name) for name in dict.fromkeys(name for mutant in mutants for name in mutant.tests)}
    results = []
    for mutant in mutants:
        limit = options.timeout_s or sum(times[name] for name in mutant.tests) * _SLOWDOWN + _PATIENCE_S
        results.append(_try(lab, mutant, limit))
        tell(results[-1])
    lab.compile()  # the tree as it was
    return results


@dataclass(frozen=True)
class _Lab:
    """A build of a patched tree, and the driver of scripts/sanitize."""

    tree: Path
    llama: Path
    native: Path
    models: Path
    jobs: int

    def compile(self) -> str:
        """Compile what has changed; what the compiler reports if it fails, else nothing."""
        command = ["cmake", "--build", str(self.llama), "--parallel", str(self.jobs), "--target", "llama"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        errors = [line for line in done.stdout.splitlines() if "error" in line]
        return "" if done.returncode == 0 else (errors or done.stderr.splitlines() or ["no message"])[0]

    def drive(self, scenarios: Sequence[str], limit: float) -> _Done:
        """Run scenarios."""
        driver = [str(self.native / "driver"), str(self.native / "libturboprefill-virtual.so"), str(self.models)]
        start = time.monotonic()
        try:
            done = subprocess.run(
                [*driver, *scenarios], capture_output=True, text=True, errors="replace", timeout=limit, check=False
            )
        except subprocess.TimeoutExpired:
            return _Done(None, "", limit)
        return _Done(done.returncode, done.stdout + done.stderr, time.monotonic() - start)


def _make_lab(jobs: int) -> _Lab:
    shown = progress()
    tree = patched_tree(None, WORK, "auto", shown)
    options = BuildOptions(cuda=False, targets=("llama",), jobs=jobs, build_dir=WORK / "llama", defines=_DEFINES)
    llama = build(tree, options, progress=shown).build_dir
    with shown.task("compiling the driver"):
        native = compile_native(
            WORK / "native", tree=tree, llama=llama, targets=("driver", "turboprefill-virtual"), jobs=jobs
        )
    return _Lab(tree, llama, native, write_models(WORK / "models"), jobs)


def _baseline(lab: _Lab, scenario: str) -> float:
    done = lab.drive([scenario], 600)
    if done.code != 0:
        raise MutantError(f"scenario {scenario} must pass without any mutant, but: {done.output.strip()[-500:]}")
    return done.seconds


@contextmanager
def _applied(mutant: Mutant, tree: Path) -> Iterator[None]:
    path = tree / Path(mutant.file).relative_to("overlay")
    before = path.read_bytes()
    try:
        path.write_text(mutant.mutated(), encoding="utf-8")
        yield
    finally:
        path.write_bytes(before)


def _try(lab: _Lab, mutant: Mutant, limit: float) -> Result:
    try:
        with _applied(mutant, lab.tree):
            if wrong := lab.compile():
                return Result(mutant, Verdict.ERROR, f"it does not compile: {wrong}")
            done = lab.drive(mutant.tests, limit)
    except MutantError as error:
        return Result(mutant, Verdict.ERROR, str(error))
    return Result(mutant, *_judge(done), done.seconds)


def _judge(done: _Done) -> tuple[Verdict, str]:
    if done.code is None:
        return Verdict.KILLED, f"timeout after {done.seconds:.0f} s"
    if done.code == 0:
        return Verdict.SURVIVED, ""
    if done.code < 0:
        return Verdict.KILLED, f"the process ended by signal {-done.code}"
    found = _SAID.search(done.output)
    return Verdict.KILLED, f"{found[1]}: {found[2]}" if found else done.output.strip()[-120:]
