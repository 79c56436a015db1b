"""The catalogues of mutants, and what scripts/mutants makes of a mutant that is caught, missed or broken."""

from __future__ import annotations

import ast
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from rich.console import Console

from mutants import __main__ as command
from mutants import catalogue, python_runner, results
from mutants.catalogue import ROOT, Mutant, MutantError, load
from mutants.results import Options, Result, Verdict

NAMES = [kind for kind in command.KINDS if catalogue.catalogue_path(kind).exists()]
PYTHON = load("python")


def names_in(path: Path) -> set[str]:
    """Tests of a file, and the classes that they are in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize("name", NAMES)
def test_every_mutant_has_one_place_and_changes_it(name: str) -> None:
    for mutant in load(name):
        assert mutant.mutated() != (ROOT / mutant.file).read_text(encoding="utf-8"), mutant.id


def test_what_a_mutant_makes_of_a_file_is_python() -> None:
    for mutant in PYTHON:
        assert mutant.file.startswith("src/turboprefill/"), mutant.id
        ast.parse(mutant.mutated(), mutant.id)


@pytest.mark.parametrize("mutant", PYTHON, ids=lambda mutant: mutant.id)
def test_the_tests_of_a_mutant_exist(mutant: Mutant) -> None:
    files = [test for test in mutant.tests if not test.startswith("-k ")]
    assert files
    known: set[str] = set()
    for test in files:
        file, *parts = test.split("::")
        known |= names_in(ROOT / file)
        assert {part.partition("[")[0] for part in parts} <= known, test
    for test in set(mutant.tests) - set(files):
        words = set(re.findall(r"\w+", test.removeprefix("-k "))) - {"and", "or", "not"}
        assert [word for word in words if not any(word in name for name in known)] == []


def test_the_scenarios_of_a_mutant_exist() -> None:
    known = set(
        re.findall(r'^ +\{ "([\w-]+)",', (ROOT / "tests/sanitize/driver.cpp").read_text(encoding="utf-8"), re.M)
    )
    for mutant in load("overlay"):
        assert mutant.file.startswith("overlay/"), mutant.id
        assert mutant.tests, mutant.id
        assert set(mutant.tests) <= known, mutant.id


def test_the_testing_page_has_the_counts_and_all_survivors() -> None:
    text = (ROOT / "docs/testing.md").read_text(encoding="utf-8")
    overlay = load("overlay")
    killed = sum(not mutant.survives for mutant in overlay)
    assert f"(`tests/mutants/overlay.json`, {len(overlay)} mutants)" in text
    assert f"\n{killed} are killed; these survive:" in text
    assert sum(int(n) for n in re.findall(r"^\| (?:`\w+`|the Python API)[^|]* \| (\d+) \|$", text, re.M)) == len(PYTHON)
    survivors = [mutant.id for mutant in (*PYTHON, *overlay) if mutant.survives]
    assert [name for name in survivors if f"| `{name}` |" not in text] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_catalogue_has_one_mutant_a_line(name: str) -> None:
    lines = catalogue.catalogue_path(name).read_text(encoding="utf-8").splitlines()
    assert [line.rstrip(",") for line in lines[1:-1]] == [
        json.dumps(entry, ensure_ascii=False) for entry in json.loads("\n".join(lines))
    ]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"id": "a", "file": "f", "find": "x", "replace": "y", "tests": []}] * 2, "several mutants called a"),
        ([{"id": "a", "file": "f", "find": "x", "replace": "y"}], "mutant 'a' cannot be read"),
        ([{"id": "a", "file": "f", "find": "x", "replace": "y", "tests": [], "quik": 1}], "quik"),
    ],
)
def test_a_catalogue_against_the_rules_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: list[dict[str, object]], message: str
) -> None:
    (tmp_path / "x.json").write_text(json.dumps(entries))
    monkeypatch.setattr(catalogue, "catalogue_path", lambda name: tmp_path / f"{name}.json")
    with pytest.raises(MutantError, match=message):
        load("x")


@pytest.mark.parametrize(("text", "n"), [("", 0), ("x x", 2)])
def test_an_anchor_that_has_no_single_place_is_named(tmp_path: Path, text: str, n: int) -> None:
    (tmp_path / "f.py").write_text(text)
    with pytest.raises(MutantError, match=rf"mutant a: f\.py contains 'x' {n} times; expected exactly once"):
        Mutant("a", "f.py", "x", "y", ()).mutated(tmp_path)


TOY = """
import os, signal
from turboprefill.lists import split_list

def test_a_list_is_split():
    assert split_list("a, b,") == ["a", "b"]
"""


@pytest.fixture
def toy(tmp_path: Path) -> Mutant:
    """A mutant of a small module that its test does not notice."""
    (tmp_path / "test_toy.py").write_text(TOY)
    return Mutant("toy", "src/turboprefill/lists.py", "empty parts are left out", "", (str(tmp_path / "test_toy.py"),))


def test_each_mutant_is_tried_on_its_own(toy: Mutant) -> None:
    split = 'for part in (text or "").split(",")'
    mutants = [
        toy,
        replace(toy, id="wrong", find="[part.strip() for", replace="[part for"),
        replace(toy, id="wrong-too", find="if part.strip()]", replace="]"),
        replace(toy, id="crash", find=split, replace='for part in __import__("os").abort()'),
        replace(toy, id="no-import", find='__all__ = ["split_list"]', replace="__all__ = split_list"),
        replace(toy, id="no-anchor", find="nowhere", replace=""),
    ]
    told: list[Result] = []
    found = python_runner.run(mutants, Options(jobs=2), told.append)
    assert [result.mutant for result in found] == mutants
    assert sorted(result.mutant.id for result in told) == sorted(mutant.id for mutant in mutants)
    assert [result.verdict.value for result in found] == ["survived", "killed", "killed", "killed", "error", "error"]
    notes = {result.mutant.id: result.note for result in found}
    assert "test_a_list_is_split" in notes["wrong"]
    assert "SIGABRT" in notes["crash"]
    assert "turboprefill.lists does not import" in notes["no-import"]
    assert "'nowhere' 0 times" in notes["no-anchor"]


def test_tests_that_fail_without_a_mutant_are_an_error(toy: Mutant) -> None:
    path = Path(toy.tests[0])
    path.write_text(path.read_text().replace('"b"]', '"c"]'))
    with pytest.raises(MutantError, match=r"test_toy\.py must pass without any mutant"):
        python_runner.run([toy], Options(jobs=1), lambda _: None)


def test_a_mutant_that_takes_too_long_is_killed_and_that_is_said() -> None:
    verdict, note = python_runner._judge(python_runner._Run(None, "", 9.0), 7.0)
    assert (verdict, note) == (Verdict.KILLED, "timeout after 7 s")


def shown(*found: Result) -> tuple[bool, str]:
    console = Console(file=io.StringIO(), width=200, record=True)
    fine = results.show_summary(found, console)
    return fine, console.export_text()


def test_survivors_are_shown_with_their_reasons(toy: Mutant) -> None:
    reasoned = replace(toy, id="reasoned", survives="it is only a comment")
    killed = Result(toy, Verdict.KILLED, "test_toy.py::test_a")
    assert shown(killed, Result(reasoned, Verdict.SURVIVED))[0]
    fine, text = shown(killed, Result(replace(toy, id="missed"), Verdict.SURVIVED))
    assert not fine
    assert re.search(r"missed +│ survived +│ no test noticed it", text)
    fine, text = shown(Result(reasoned, Verdict.KILLED, "test_b"))
    assert not fine
    assert "killed by test_b: the reason why it survives is out of date: it is only a comment" in text
    fine, text = shown(Result(toy, Verdict.ERROR, "[red] it does not import"))
    assert not fine
    assert "[red] it does not import" in text


def test_an_unknown_mutant_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as end:
        command.main(ids=["nothing"])
    assert end.value.exit_code == 2
    assert "there is no mutant nothing" in capsys.readouterr().err
