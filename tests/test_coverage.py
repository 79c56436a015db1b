"""What scripts/coverage makes of lines that no test runs, and its list of those that are known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nativecoverage.__main__ import KNOWN
from nativecoverage.unreached import Known, function_of, judge, read_known

OVERLAY = Path(__file__).resolve().parents[1] / "overlay"
SOURCE = ["int f(int x) {", "    if (x) {", "        return 1;", "    }", "    return 0;", "}"]


def test_a_line_that_no_test_runs_must_be_listed() -> None:
    counts = {"a.cpp": {1: 3, 2: 3, 3: 0, 4: 0, 5: 3}}
    verdict = judge(counts, {"a.cpp": SOURCE}, [])
    assert verdict.unknown == (("a.cpp", 3, "return 1;"),)  # braces do not count
    known = Known("a.cpp", "f", ("return 1;",), "why")
    assert judge(counts, {"a.cpp": SOURCE}, [known]) == type(verdict)((), ())


def test_a_listed_line_that_runs_or_is_gone_is_out_of_date() -> None:
    known = [Known("a.cpp", "f", ("return 1;", "return 7;"), "why"), Known("a.cpp", "g", ("return 0;",), "why")]
    verdict = judge({"a.cpp": {3: 1, 5: 0}}, {"a.cpp": SOURCE}, known)
    assert [text for _, text in verdict.outdated] == ["return 1;", "return 7;", "return 0;"]
    assert verdict.unknown == (("a.cpp", 5, "return 0;"),)  # of f, not of g


@pytest.mark.parametrize("entry", read_known(KNOWN), ids=lambda entry: f"{Path(entry.file).name}-{entry.function}")
def test_every_listed_line_is_in_its_function_and_has_a_reason(entry: Known) -> None:
    lines = (OVERLAY / entry.file).read_text(encoding="utf-8").splitlines()
    assert len(entry.reason) > 20
    there = {line.strip() for number, line in enumerate(lines, 1) if function_of(lines, number) == entry.function}
    assert [text for text in entry.lines if text not in there] == []
    assert entry.lines


def test_every_file_of_the_overlay_has_a_name_of_its_own() -> None:
    """Counts are added up by name: a file is compiled at another path than it has here."""
    names = [path.name for path in OVERLAY.rglob("*") if re.search(r"\.(cpp|inc|h)$", path.name)]
    assert len(names) == len(set(names))
