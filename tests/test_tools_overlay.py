"""What an overlay must look like, and the one that this package brings."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from toytree import HOOKED, make_overlay
from turboprefill.paths import cache_dir, overlay_dir
from turboprefill.tools import patcher
from turboprefill.tools.download import fetch_sdist
from turboprefill.tools.errors import ToolError
from turboprefill.tools.overlay import load_overlay, seal, seal_state
from turboprefill.tools.pins import Base, load_pins
from turboprefill.tools.progress import Silent
from turboprefill.tools.sources import checkout

HOOK = {"file": HOOKED[1], "anchor": "x", "where": "before", "lines": ["y();"], "why": "w"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "/etc/passwd.cpp"}, "relative path"),
        ({"file": "src/../../x.cpp"}, "relative path"),
        ({"file": "README.md"}, "C, C\\+\\+ or CMake"),
        ({"where": "replace"}, "expected before, after or end"),
        ({"anchor": ""}, "anchor is needed"),
        ({"where": "end"}, "which takes none"),
        ({"lines": []}, "no lines"),
        ({"lines": ["a();\nb();"]}, "not a single line"),
        ({"lines": ["#define A \\"]}, "not a single line"),
        ({"lines": ["a(); // turboprefill"]}, "already carries the tag"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_hook_against_the_rules_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ToolError, match=message):
        make_overlay(tmp_path, hooks=[{**HOOK, **change}])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("src/other.cpp", "'turboprefill' in it"),
        ("../turboprefill.h", "relative path"),
        ("turboprefill.bin", "comment"),
    ],
)
def test_an_own_file_against_the_rules_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "overlay").mkdir()
    with pytest.raises(ToolError, match=message):
        make_overlay(tmp_path / "overlay", own={name: "\n"})


def test_a_missing_own_file_is_named(tmp_path: Path) -> None:
    make_overlay(tmp_path)
    (tmp_path / "src/turboprefill.cpp").unlink()
    with pytest.raises(ToolError, match=r"src/turboprefill\.cpp: No such file"):
        load_overlay(tmp_path)


def test_a_header_without_a_version_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="TURBOPREFILL_VERSION"):
        make_overlay(tmp_path, own={"include/turboprefill.h": "#pragma once\n"})


@pytest.mark.parametrize("data", [b"", b"a\n", b"a", b"a\r\nb\r\n"], ids=repr)
def test_a_sealed_file_is_intact_also_with_other_line_ends(data: bytes) -> None:
    sealed = seal(data, "x.cpp")
    assert seal_state(sealed) == "intact"
    assert seal_state(sealed.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")) == "intact"


def test_an_edit_breaks_the_seal() -> None:
    assert seal_state(seal(b"a\n", "x.cpp").replace(b"a\n", b"b\n")) == "broken"


def test_a_file_of_somebody_else_has_no_seal() -> None:
    assert seal_state(b"a\n") == "none"


needs_overlay = pytest.mark.skipif(not (overlay_dir() / "hooks.json").exists(), reason="no overlay in this source tree")


@needs_overlay
def test_the_pins_have_a_hash_for_every_hooked_file() -> None:
    hooked = set(load_overlay().hooked_files)
    for base in load_pins().bases:
        assert set(base.files) == hooked, f"{base}: run scripts/update_pins.py"


@needs_overlay
def test_every_file_of_the_overlay_is_listed_in_its_index() -> None:
    folder = overlay_dir()
    listed = {entry["source"] for entry in json.loads((folder / "hooks.json").read_text())["files"]}
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert present - {"hooks.json"} == listed


@needs_overlay
@pytest.mark.slow
@pytest.mark.parametrize("base", load_pins().bases, ids=str)
def test_the_overlay_goes_in_and_out_of_the_real_tree(base: Base, tmp_path: Path) -> None:
    if base.sdist is None or not (cache_dir() / "downloads" / base.sdist.filename).exists():
        pytest.skip("the archive is not in the cache")
    fetch_sdist(base.sdist, Silent())
    tree = checkout(tmp_path / "llama.cpp", source="pypi", commit=base.name).root
    patcher.install(tree)
    assert patcher.status(tree).up_to_date
    patcher.uninstall(tree)
    found = subprocess.run(["git", "-C", tree, "status", "--porcelain", "--ignored"], capture_output=True, check=True)
    assert found.stdout == b""
