"""Runs mutants of the Python package: each in a copy of its own, with the tests that have to notice it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mutants import import_check
from mutants.catalogue import ROOT, Mutant, MutantError
from mutants.results import Options, Result, Tell, Verdict
from mutants.workspace import Workspace

__all__ = ["NAME", "run"]

NAME = "python"
_PYTEST = ("-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "mutants.import_check")
_PASSED, _FAILED = 0, 1  # pytest's exit codes
_BASELINE_TIMEOUT_S = 600.0
_SLOWDOWN = 5  # a mutant may take this many times as long as its tests take without it, and
_PATIENCE_S = 30.0  # this many seconds more
_FAILURE = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)

Tests = tuple[str, ...]
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True)
class _Run:
    """A run of pytest; `code` is None if it was ended because it took too long."""

    code: int | None
    output: str
    seconds: float


def run(mutants: Sequence[Mutant], options: Options, tell: Tell) -> list[Result]:
    """Run the tests of these mutants unchanged, which must pass, and then each mutant.

    Args:
        mutants: of the Python package.
        options: how.
        tell: told each result as it comes.

    Raises:
        MutantError: the tests of some mutant fail without it, or there is no native module.
    """
    with tempfile.TemporaryDirectory(prefix="turboprefill-mutants-") as folder:
        pytest = _Pytest(Workspace(Path(folder)))
        times: dict[Tests, float] = {}

        def unchanged(tests: Tests) -> None:
            times[tests] = _baseline(pytest, tests)

        def changed(mutant: Mutant) -> Result:
            limit = options.timeout_s or times[mutant.tests] * _SLOWDOWN + _PATIENCE_S
            result = _try(pytest, mutant, limit)
            tell(result)
            return result

        _side_by_side(unchanged, list(dict.fromkeys(mutant.tests for mutant in mutants)), options.jobs, pytest.stop)
        results = _side_by_side(changed, mutants, options.jobs, pytest.stop)
    return sorted(results, key=lambda result: mutants.index(result.mutant))


def _side_by_side(
    work: Callable[[Item], Outcome], items: Sequence[Item], jobs: int, stop: Callable[[], None]
) -> list[Outcome]:
    """The results of all items; what still runs ends if one raises, or on Ctrl-C."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in as_completed(futures)]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop()
            raise


def _baseline(pytest: _Pytest, tests: Tests) -> float:
    done = pytest.run(tests, None, _BASELINE_TIMEOUT_S)
    if done.code != _PASSED:
        tail = "\n".join(done.output.splitlines()[-15:])
        raise MutantError(f"{' '.join(tests)} must pass without any mutant, but ended with {done.code}:\n{tail}")
    return done.seconds


def _try(pytest: _Pytest, mutant: Mutant, limit: float) -> Result:
    try:
        done = pytest.run(mutant.tests, mutant, limit)
    except MutantError as error:
        return Result(mutant, Verdict.ERROR, str(error))
    return Result(mutant, *_judge(done, limit), done.seconds)


def _judge(done: _Run, limit: float) -> tuple[Verdict, str]:
    if done.code is None:
        return Verdict.KILLED, f"timeout after {limit:.0f} s"
    if done.code < 0:
        return Verdict.KILLED, f"the tests' process ended by {signal.Signals(-done.code).name}"
    if done.code == _PASSED:
        return Verdict.SURVIVED, ""
    failures = _FAILURE.findall(done.output)
    if done.code == _FAILED and failures:
        return Verdict.KILLED, failures[0]
    return Verdict.ERROR, f"pytest ended with {done.code}: {(done.output.strip().splitlines() or [''])[-1]}"


class _Pytest:
    """Starts pytest on copies of the package, from several threads."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False
        self._n_runs = 0

    def stop(self) -> None:
        """End everything that runs, and start nothing more."""
        self._stopped = True
        for process in list(self._running):
            _kill(process)

    def run(self, tests: Tests, mutant: Mutant | None, limit: float) -> _Run:
        """Run tests on a copy.

        Raises:
            MutantError: the change cannot be made, or everything was stopped.
        """
        self._n_runs += 1
        with self._workspace.copy(f"run-{self._n_runs}-{mutant.id if mutant else 'unchanged'}", mutant) as root:
            arguments = [part for test in tests for part in test.split(" ", 1)]
            start = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, *_PYTEST, f"--basetemp={root / 'tmp'}", *_marks(tests), *arguments],
                cwd=ROOT,
                env=self._environment(root, mutant),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._running.add(process)
            code, output = _finish(process, limit, lambda: self._stopped)
            self._running.discard(process)
            if self._stopped:
                raise MutantError("stopped")
            return _Run(code, output, time.monotonic() - start)

    def _environment(self, root: Path, mutant: Mutant | None) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TURBOPREFILL")}
        folders = (root / "src", ROOT / "tests", ROOT / "tests/helpers")
        environment["PYTHONPATH"] = os.pathsep.join(map(str, folders))
        environment["PYTHONDONTWRITEBYTECODE"] = environment["PYTHONNOUSERSITE"] = "1"
        environment["TURBOPREFILL_CACHE"] = str(self._workspace.cache)  # what a mistake writes stays here
        if mutant is not None:
            name = Path(mutant.file).relative_to("src").with_suffix("")
            environment[import_check.VARIABLE] = ".".join(name.parts).removesuffix(".__init__")
        return environment


def _marks(tests: Tests) -> list[str]:
    """Slow tests run only if they are named one by one."""
    return [] if any("::" in test for test in tests) else ["-m", "not slow"]


def _finish(process: subprocess.Popen[str], limit: float, stopped: Callable[[], bool]) -> tuple[int | None, str]:
    """Return code and output; a code of None means that the time was up."""
    if stopped():
        _kill(process)
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        _kill(process)
        return None, process.communicate()[0]
    _kill(process)  # what a test may have left behind
    return process.returncode, output


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
