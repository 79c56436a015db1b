"""Figures in README.md and docs/benchmarks.md are those of the committed results; none is there for no reason."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import benchmarkconstants
import benchmarkfigures
import figures
import plannerfigures
import readmefigures

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "benchmarks" / "gpu" / "readme_table.py"


@dataclass(frozen=True)
class Document:
    """A document, the figures that it must have, and the numbers that are not computed."""

    path: Path
    figures: Callable[[], list[figures.Figure]]
    constants: tuple[figures.Constant, ...] = ()

    @property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")


DOCUMENTS = [
    Document(ROOT / "README.md", readmefigures.figures, tuple(readmefigures.CONSTANTS)),
    Document(ROOT / "docs" / "benchmarks.md", benchmarkfigures.figures, tuple(benchmarkconstants.CONSTANTS)),
]
PARTLY = [  # documents with figures from results among many other numbers
    Document(ROOT / "docs" / "planner.md", plannerfigures.planner_figures),
    Document(ROOT / "docs" / "architecture.md", plannerfigures.architecture_figures),
]


def each_document(*more: Document) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("document", [*DOCUMENTS, *more], ids=lambda document: document.path.name)


def table_of_results(text: str) -> str:
    """The README's results table, which readme_table.py compares with the results; "" in other documents."""
    before, rule, rest = text.partition("|---:|---:|---:|---:|---:|---:|---:|\n")
    return before.rpartition("\n\n")[2] + rule + rest.partition("\n\n")[0] if rule else ""


@each_document(*PARTLY)
def test_each_figure_is_what_the_results_say(document: Document) -> None:
    missing = [figure.text for figure in document.figures() if figure.text not in document.text]
    assert "\n".join(missing) == "", f"{document.path.name} should say this, computed from benchmarks/results"


@each_document()
def test_each_number_is_computed_or_a_known_constant(document: Document) -> None:
    text = document.text
    explained = [*(figure.text for figure in document.figures()), *(constant.text for constant in document.constants)]
    assert "\n".join(figures.unexplained(text, [*explained, table_of_results(text)])) == ""


@each_document()
def test_each_constant_is_still_there(document: Document) -> None:
    assert [constant.text for constant in document.constants if constant.text not in document.text] == []


@each_document()
def test_figures_without_raw_data_are_said_to_be(document: Document) -> None:
    for constant in document.constants:
        if constant.no_data:
            assert "raw data is not in this repository" in figures.section_of(document.text, constant.text)


def test_the_results_table_of_the_readme_is_that_of_the_results() -> None:
    subprocess.run([sys.executable, TABLE, "--check"], check=True)


def test_the_check_of_the_results_table_can_fail(tmp_path: Path) -> None:
    """With one digit of the README changed, `--check` exits with 1."""
    for name in (
        "README.md",
        "benchmarks/results/2026-11-21-8xH200.json",
        "benchmarks/results/2026-11-21-4xH200-models.json",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for path in TABLE.parent.glob("*.py"):
        (tmp_path / "benchmarks" / "gpu").mkdir(exist_ok=True)
        (tmp_path / "benchmarks" / "gpu" / path.name).write_bytes(path.read_bytes())
    command = [sys.executable, str(tmp_path / "benchmarks" / "gpu" / TABLE.name), "--check"]
    assert subprocess.run(command, check=False).returncode == 0
    readme = tmp_path / "README.md"
    readme.write_text(readme.read_text().replace("| 17,762 | 1.46× |", "| 17,763 | 1.46× |"))
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "out of date" in done.stderr


def test_a_number_that_nobody_explains_is_found() -> None:
    text = "It is 2.5 times as fast, `code 7`, at 0c1e57098 with [8](x8.md) devices; 3 of 4."
    assert [text[begin:end] for begin, end in figures.numbers(text)] == ["2.5", "8", "3", "4"]
    assert len(figures.unexplained(text, ["is 2.5 times", "3 of 4"])) == 1
