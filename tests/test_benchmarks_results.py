"""The committed results files: one record a line, in the format that all benchmarks write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from resultfile import format_document, write_document

FILES = sorted((Path(__file__).resolve().parents[1] / "benchmarks" / "results").glob("*.json"))


def test_there_are_results() -> None:
    assert len(FILES) >= 10


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_committed_file_is_in_the_format(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert format_document(json.loads(text)) == text


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({}, "{\n}\n"),
        ({"a": [], "b": {}}, '{\n "a": [],\n "b": {}\n}\n'),
        ({"results": [{"x": [1, 2.0]}, {}]}, '{\n "results": [\n  {"x": [1, 2.0]},\n  {}\n ]\n}\n'),
        ({"notes": ["a", "b"], "n": None}, '{\n "notes": [\n  "a",\n  "b"\n ],\n "n": null\n}\n'),
        ({"a": [{"b": [{"c": 1}]}]}, '{\n "a": [\n  {\n   "b": [\n    {"c": 1}\n   ]\n  }\n ]\n}\n'),
    ],
)
def test_each_record_has_a_line(document: dict[str, Any], text: str) -> None:
    assert format_document(document) == text
    assert json.loads(text) == document


def test_a_file_is_read_as_what_was_written(tmp_path: Path) -> None:
    document = {"config": {"name": "µ", "load": [0.1, 1e-9]}, "results": [{"samples_ns": [1, 2], "why": None}]}
    write_document(tmp_path / "out.json", document)
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == document
