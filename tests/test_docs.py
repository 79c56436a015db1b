"""The documents say what the code does: reasons, hooks, variables, versions, links."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
OVERLAY = ROOT / "overlay"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), OVERLAY / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ENGINE = [path for path in sorted(OVERLAY.rglob("*")) if path.suffix in (".cpp", ".inc", ".h")]

STRING = r'"((?:[^"\\]|\\.)+)"'


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def reasons() -> set[str]:
    """Every text that the engine can give for the standard path."""
    giving = re.compile(
        r"(?:return|\bwhy_no_engine\s*=|\bwhy_not\s*=|\bwhy\s*=|\breason\s*=|\bwhy_disabled\s*=)\s*" + STRING
    )
    return {text for path in ENGINE for text in giving.findall(read(path))}


def variables() -> set[str]:
    """Every environment variable of ours that some part reads."""
    reading = re.compile(r"""(?:getenv\(|environ\.get\(|environ\[|turboprefill_option\()["']?(TURBOPREFILL\w*)""")
    files = [path for folder in ("overlay", "src", "cpp", "cmake") for path in (ROOT / folder).rglob("*")]
    texts = [read(path) for path in files if path.suffix in (".cpp", ".inc", ".h", ".py", ".cmake")]
    return {name for text in texts for name in reading.findall(text)}


def hooks() -> list[dict[str, Any]]:
    return json.loads(read(OVERLAY / "hooks.json"))["hooks"]


def headings(text: str) -> set[str]:
    """Names that GitHub gives to the headings of a document."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_reasons_are_found_in_the_sources() -> None:
    assert len(reasons()) >= 10


@pytest.mark.parametrize("reason", sorted(reasons()))
def test_every_reason_is_explained(reason: str) -> None:
    assert f'### "{reason}"\n' in read(ROOT / "docs" / "eligibility.md")


def test_no_reason_is_explained_that_is_never_given() -> None:
    assert set(re.findall(r'^### "(.+)"$', read(ROOT / "docs" / "eligibility.md"), re.MULTILINE)) == reasons()


def test_the_table_of_hooks_is_that_of_hooks_json() -> None:
    subprocess.run([sys.executable, ROOT / "scripts" / "write_hooks_page.py", "--check"], check=True)


def test_the_table_of_hooks_has_every_line() -> None:
    text = read(ROOT / "docs" / "hooks.md").replace("\\|", "|")
    missing = [line for hook in hooks() for line in hook["lines"] if f"`{line.strip()}`" not in text]
    assert hooks()
    assert missing == []


@pytest.mark.parametrize("file", sorted({hook["file"] for hook in hooks()}))
def test_every_file_that_is_changed_is_named(file: str) -> None:
    assert f"`{file}`" in read(ROOT / "docs" / "usage.md")


@pytest.mark.parametrize("name", sorted(variables()))
def test_every_environment_variable_is_explained(name: str) -> None:
    assert f"`{name}`" in read(ROOT / "docs" / "usage.md")


def test_the_usual_environment_variables_are_found_in_the_sources() -> None:
    usual = {"", "_TRANSPORT", "_SLOTS", "_CACHE", "_SOURCE", "_CUDA"}
    assert {f"TURBOPREFILL{end}" for end in usual} <= variables()


def test_the_version_is_the_same_everywhere() -> None:
    header = re.search(rf"#define TURBOPREFILL_VERSION {STRING}", read(OVERLAY / "include" / "turboprefill.h"))
    package = re.search(rf"^version = {STRING}", read(ROOT / "pyproject.toml"), re.MULTILINE)
    assert header
    assert package
    assert header.group(1) == package.group(1)
    assert f"## {package.group(1)}\n" in read(ROOT / "CHANGELOG.md")


def test_the_readme_is_short() -> None:
    assert len(read(ROOT / "README.md").splitlines()) < 120


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", read(document)):
        if target.startswith("http"):
            continue
        name, _, heading = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), f"{document.name} links to {target}"
        assert not heading or heading in headings(read(path)), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_of_the_repository_exist(document: Path) -> None:
    named = re.findall(r"`((?:docs|overlay|src/turboprefill|cpp|tests|scripts|cmake)/[\w./-]+\w)`", read(document))
    assert [name for name in named if not (ROOT / name).exists()] == []
