"""What an overlay must look like, and the one that this package brings."""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from toytree import HOOKED, OWN, make_overlay
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


def test_an_own_file_that_could_not_be_found_again_is_named(tmp_path: Path) -> None:
    (tmp_path / "overlay").mkdir()
    with pytest.raises(ToolError, match=r"file src/other\.cpp: must have 'turboprefill' in its path"):
        make_overlay(tmp_path / "overlay", own={**OWN, "src/other.cpp": "\n"})


def test_only_sources_are_installed(tmp_path: Path) -> None:
    overlay = make_overlay(tmp_path, own={**OWN, "README.md": "\n", "turboprefill.bin": "\n"})
    assert set(overlay.own) == set(OWN)


def test_an_own_file_that_hooks_name_and_that_is_missing_is_named(tmp_path: Path) -> None:
    make_overlay(tmp_path)
    (tmp_path / "src/turboprefill.cpp").unlink()
    with pytest.raises(ToolError, match=r"file turboprefill\.cpp: a hook names it"):
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
def test_every_file_of_the_overlay_is_compiled_or_included() -> None:
    overlay = load_overlay()
    lines = [line for hook in overlay.hooks for line in hook.lines]
    text = "\n".join([*lines, *(data.decode() for data in overlay.own.values())])
    unused = [
        path for path in overlay.own if not re.search(rf'(?:^|[\s"]){re.escape(Path(path).name)}(?:$|[\s"])', text)
    ]
    assert unused == []


@needs_overlay
def test_the_hooks_are_in_the_order_of_the_files_that_they_go_into() -> None:
    """As far as it shows without the source: all hooks of a file stand together."""
    files = [hook.file for hook in load_overlay().hooks]
    assert len(set(files)) == len([file for file, _ in itertools.groupby(files)])


@needs_overlay
def test_every_hook_says_why_in_words_of_its_own() -> None:
    unclear = r"as (above|below|before)\b|\b(next|last) hooks?\b|hooks? (below|above)"
    assert [hook.why for hook in load_overlay().hooks if not hook.why or re.search(unclear, hook.why)] == []


@needs_overlay
@pytest.mark.slow
@pytest.mark.parametrize("base", load_pins().bases, ids=str)
def test_the_overlay_goes_in_and_out_of_the_real_tree(base: Base, tmp_path: Path) -> None:
    """The default version's archive is downloaded if need be, the others' are not."""
    assert base.sdist is not None
    if base != load_pins().default and not (cache_dir() / "downloads" / base.sdist.filename).exists():
        pytest.skip(f"not cached: `turboprefill checkout DIR --from pypi --commit {base.name}` downloads the archive")
    fetch_sdist(base.sdist, Silent())
    tree = checkout(tmp_path / "llama.cpp", source="pypi", commit=base.name).root
    if base == load_pins().default:
        _check_order(tree)
    patcher.install(tree)
    assert patcher.status(tree).up_to_date
    patcher.uninstall(tree)
    found = subprocess.run(["git", "-C", tree, "status", "--porcelain", "--ignored"], capture_output=True, check=True)
    assert found.stdout == b""


def _check_order(tree: Path) -> None:
    """In the default version hooks are in the order of lines, and the function that each names begins above it."""
    last = ("", 0)
    for hook in load_overlay().hooks:
        lines = (tree / hook.file).read_text(encoding="utf-8").splitlines()
        place = next((i for i, line in enumerate(lines, 1) if hook.anchor and hook.anchor in line), len(lines) + 1)
        if hook.file == last[0]:
            assert place >= last[1], hook
        name = hook.function.rpartition("::")[2]
        assert not name or any(re.search(rf"\b{name}\b", line) for line in lines[:place]), hook
        last = (hook.file, place)
