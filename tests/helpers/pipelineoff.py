"""With every context forced to the standard path, does each test that claims to see the pipeline fail?

`python -m pipelineoff [--quick] [pytest arguments]`, with tests/helpers on PYTHONPATH, runs the tests marked
`pipelined` and exits with 0 if all of them fail because of what they count. It is a pytest plugin, too: `-p
pipelineoff`. Contexts of child processes are forced like those of this one, through the environment.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

__all__ = ["PipelineOff", "main"]

VARIABLE, NO_BACKEND = "TURBOPREFILL_BACKENDS", "none-of-them"
QUIET = ("--tb=no", "-q", "-rN", "-p", "no:cacheprovider")
COUNTS = re.compile(r"n_(ubatches_)?pipelined|pipelined_ubatches")  # in assertions on counts, or in their messages
CLASSIFIED = "test_overlay_"  # every test of such files has one of the two markers

NOTICED, SKIPPED, PASSED = "noticed", "skipped", "passed"


def is_pipelined(item: pytest.Item) -> bool | None:
    """Whether a test claims to see the pipeline, by its closest marker; None if it has neither."""
    for node in reversed(item.listchain()):
        names = {mark.name for mark in node.own_markers}
        if "unpipelined" in names:
            return False
        if "pipelined" in names:
            return True
    return None


def first_of_each(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """One set of parameters of each test, without slow ones."""
    quick = [item for item in items if not item.get_closest_marker("slow")]
    return list({item.nodeid.partition("[")[0]: item for item in reversed(quick)}.values())[::-1]


def statement(error: pytest.ExceptionInfo[BaseException]) -> str:
    """The line of source that raised it."""
    return str(error.traceback[-1].statement)


def outcome(call: pytest.CallInfo[Any]) -> str:
    """What a phase of a test says about it, in a word or as the error that it ended with."""
    if call.excinfo is None:
        return PASSED
    if call.excinfo.errisinstance(pytest.skip.Exception):
        return SKIPPED
    if call.excinfo.errisinstance(AssertionError) and COUNTS.search(f"{call.excinfo.value} {statement(call.excinfo)}"):
        return NOTICED
    return f"{call.excinfo.typename}: {call.excinfo.value}".splitlines()[0][:160]


@dataclass
class PipelineOff:
    """Selects tests, remembers how each ended, and judges the run."""

    quick: bool
    outcomes: dict[str, str] = field(default_factory=dict)
    unclassified: list[str] = field(default_factory=list)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        files = [item for item in items if item.path.name.startswith(CLASSIFIED)]
        self.unclassified = [item.nodeid for item in files if is_pipelined(item) is None]
        selected = [item for item in items if is_pipelined(item)]
        selected = first_of_each(selected) if self.quick else selected
        chosen = set(selected)
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = selected

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[Any]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if self.outcomes.get(item.nodeid, PASSED) == PASSED:  # what comes after the first failure follows from it
            self.outcomes[item.nodeid] = outcome(call)
        return report

    def problems(self) -> list[str]:
        """What keeps the run from being a success, a line each."""
        found = [f"{test}: passes without a pipeline" for test, how in self.outcomes.items() if how == PASSED]
        others = {test: how for test, how in self.outcomes.items() if how not in (NOTICED, SKIPPED, PASSED)}
        found += [f"{test}: fails, but not because of a count: {how}" for test, how in others.items()]
        found += [f"{test}: is marked neither pipelined nor unpipelined" for test in self.unclassified]
        return found if NOTICED in self.outcomes.values() else [*found, "no test noticed that the pipeline is off"]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = int(bool(self.problems()))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        ends = list(self.outcomes.values())
        terminalreporter.section("pipeline off")
        for line in self.problems():
            terminalreporter.write_line(line)
        terminalreporter.write_line(
            f"{ends.count(NOTICED)} of {len(ends) - ends.count(SKIPPED)} tests noticed that the pipeline is off, "
            f"{ends.count(SKIPPED)} were skipped"
        )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="one set of parameters of each test, no slow ones")


def pytest_configure(config: pytest.Config) -> None:
    os.environ[VARIABLE] = NO_BACKEND
    config.pluginmanager.register(PipelineOff(config.getoption("--quick")))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tests, by default all, and return the exit code: 0 if every selected one noticed."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    where = ("--rootdir", str(Path(__file__).resolve().parents[2]))
    return int(pytest.main(["-p", "pipelineoff", *QUIET, *where, *given]))


if __name__ == "__main__":
    sys.exit(main())
