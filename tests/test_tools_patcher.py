"""Installing into a tree and removing again."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from toytree import CONTEXT, FILES, HOOKED, HOOKS, OWN, make_overlay, make_pins, make_tree, snapshot
from turboprefill.tools import patcher
from turboprefill.tools.errors import RefusedError
from turboprefill.tools.hooktext import Hook, insert, parse
from turboprefill.tools.overlay import Overlay
from turboprefill.tools.pins import Pins

PINS = make_pins()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "llama.cpp")


@pytest.fixture
def overlay(tmp_path: Path) -> Overlay:
    return make_overlay(tmp_path / "overlay")


def install(tree: Path, overlay: Overlay, pins: Pins = PINS, **options: bool) -> patcher.Outcome:
    return patcher.install(tree, overlay=overlay, pins=pins, **options)


def uninstall(tree: Path, overlay: Overlay, **options: bool) -> patcher.Outcome:
    return patcher.uninstall(tree, overlay=overlay, pins=PINS, **options)


def state(tree: Path, overlay: Overlay) -> str:
    return patcher.status(tree, overlay=overlay, pins=PINS).state


def git(tree: Path, *arguments: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run(["git", "-C", str(tree), *who, *arguments], check=True, capture_output=True)


def commit_all(tree: Path) -> None:
    git(tree, "init", "-q")
    git(tree, "add", "-A")
    git(tree, "commit", "-qm", "base")


def test_installing_inserts_every_line_tagged_at_its_anchor(tree: Path, overlay: Overlay) -> None:
    install(tree, overlay)
    assert (tree / HOOKED[1]).read_text() == (
        '#include "llama-context.h"\n#include "turboprefill.h" // turboprefill\n\nint decode() {\n'
        "    a(); // turboprefill\n    b(); // turboprefill\n    // the ubatch loop\n    return 0;\n}\n"
    )
    assert "    llama-context.cpp\n    turboprefill.cpp # turboprefill\n" in (tree / HOOKED[0]).read_text()
    assert (tree / HOOKED[2]).read_text().endswith('}\n#include "turboprefill.inc" // turboprefill\n')


def test_installing_copies_own_files_with_a_seal(tree: Path, overlay: Overlay) -> None:
    install(tree, overlay)
    first, last = (tree / "src/turboprefill.cpp").read_text().splitlines()
    assert first == "int answer = 42;"
    assert re.fullmatch(r"// turboprefill: installed copy, sha256 of the text above [0-9a-f]{64}", last)


def test_installing_twice_changes_nothing_the_second_time(tree: Path, overlay: Overlay) -> None:
    install(tree, overlay)
    times = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    assert install(tree, overlay).changes == {}
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == times


def test_uninstalling_restores_every_byte(tree: Path, overlay: Overlay) -> None:
    (tree / HOOKED[1]).chmod(0o755)
    before = snapshot(tree)
    install(tree, overlay)
    uninstall(tree, overlay)
    assert snapshot(tree) == before


def test_uninstalling_removes_folders_that_were_made(tree: Path, overlay: Overlay) -> None:
    install(tree, overlay)
    uninstall(tree, overlay)
    assert not (tree / "ggml/src/turboprefill").exists()


def test_uninstalling_says_that_the_result_was_checked(tree: Path, overlay: Overlay) -> None:
    install(tree, overlay)
    assert any("checked against" in note for note in uninstall(tree, overlay).notes)


def test_uninstalling_an_untouched_tree_changes_nothing(tree: Path, overlay: Overlay) -> None:
    assert uninstall(tree, overlay).changes == {}


def test_installing_keeps_file_modes(tree: Path, overlay: Overlay) -> None:
    (tree / HOOKED[2]).chmod(0o750)
    install(tree, overlay)
    assert (tree / HOOKED[2]).stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("command", [install, uninstall], ids=["install", "uninstall"])
def test_a_dry_run_writes_nothing(tree: Path, overlay: Overlay, command) -> None:  # type: ignore[no-untyped-def]
    if command is uninstall:
        install(tree, overlay)
    before = snapshot(tree)
    assert command(tree, overlay, dry_run=True).changes
    assert snapshot(tree) == before


@pytest.mark.parametrize("end", [b"\n", b""], ids=["newline at end", "no newline at end"])
@pytest.mark.parametrize("eol", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("where", ["before", "after", "end"])
def test_a_line_goes_in_and_out_again_whatever_the_line_ends(
    tmp_path: Path, eol: bytes, end: bytes, where: str
) -> None:
    files = {name: data.removesuffix(b"\n").replace(b"\n", eol) + (end and eol) for name, data in FILES.items()}
    tree = make_tree(tmp_path / "tree", files)
    last_line = "}" if where != "end" else ""
    hook = {"file": HOOKED[1], "anchor": last_line, "where": where, "lines": ["x();", "y();"], "why": "w"}
    overlay = make_overlay(tmp_path / "overlay", hooks=[hook])
    before = snapshot(tree)
    install(tree, overlay)
    after = (tree / HOOKED[1]).read_bytes()
    assert b"x(); // turboprefill" + eol + b"y(); // turboprefill" in after
    assert after.endswith(eol) == bool(end)
    assert after.count(b"\r\n") == (after.count(b"\n") if eol == b"\r\n" else 0)
    assert state(tree, overlay) == "installed"
    uninstall(tree, overlay)
    assert snapshot(tree) == before


def test_there_is_nothing_to_say_about_the_version_that_is_tested(tree: Path, overlay: Overlay) -> None:
    assert install(tree, overlay).notes == ()


@pytest.mark.parametrize("newest_first", [True, False])
def test_of_several_known_versions_the_one_that_fits_is_found(tree: Path, overlay: Overlay, newest_first: bool) -> None:
    other = replace(PINS.default, name="b2", commit="2" * 40, files={**PINS.default.files, HOOKED[1]: "0" * 64})
    bases = (other, PINS.default) if newest_first else (PINS.default, other)
    found = patcher.status(tree, overlay=overlay, pins=Pins(PINS.repository, other, bases))
    assert (found.match.base, found.match.known, found.state) == (PINS.default, PINS.default, "pristine")


def test_a_version_with_edits_is_not_exactly_that_version(tree: Path, overlay: Overlay) -> None:
    exact = [patcher.status(tree, overlay=overlay, pins=PINS).as_json(overlay)["base"]["exact"]]
    (tree / HOOKED[1]).write_bytes(CONTEXT + b"// mine\n")
    exact.append(patcher.status(tree, overlay=overlay, pins=PINS).as_json(overlay)["base"]["exact"])
    assert exact == [True, False]


def test_a_tree_with_crlf_line_ends_is_still_a_known_base(tmp_path: Path, overlay: Overlay) -> None:
    tree = make_tree(tmp_path / "crlf", {name: data.replace(b"\n", b"\r\n") for name, data in FILES.items()})
    assert state(tree, overlay) == "pristine"


def test_bytes_that_are_not_utf8_survive(tree: Path, overlay: Overlay) -> None:
    path = tree / HOOKED[1]
    path.write_bytes(CONTEXT + b"// \xff\xfe\x80 \x0c\n")
    before = snapshot(tree)
    install(tree, overlay, force=True)
    uninstall(tree, overlay)
    assert snapshot(tree) == before


class TestAnchorsThatDoNotFit:
    @pytest.fixture(autouse=True)
    def changed_upstream(self, tree: Path) -> None:
        (tree / HOOKED[0]).write_bytes(b"add_library(llama\n    llama-contexts.cc\n    )\n")
        (tree / HOOKED[1]).write_bytes(CONTEXT + b"// the ubatch loop\n")
        (tree / HOOKED[2]).unlink()

    def test_all_of_them_are_listed(self, tree: Path, overlay: Overlay) -> None:
        with pytest.raises(RefusedError) as error:
            install(tree, overlay)
        text = str(error.value)
        assert "src/CMakeLists.txt: expected exactly one line with `llama-context.cpp`, found none" in text
        assert "most similar is line 2: `llama-contexts.cc`" in text
        assert "`// the ubatch loop`, found 2: lines 4, 7" in text
        assert "ggml/src/ggml-backend.cpp: no such file" in text
        assert text.count("ggml/src/ggml-backend.cpp") == 1

    def test_nothing_is_changed(self, tree: Path, overlay: Overlay) -> None:
        before = snapshot(tree)
        with pytest.raises(RefusedError, match="nothing was changed"):
            install(tree, overlay)
        assert snapshot(tree) == before

    def test_force_does_not_help(self, tree: Path, overlay: Overlay) -> None:
        with pytest.raises(RefusedError):
            install(tree, overlay, force=True)

    def test_status_reports_them(self, tree: Path, overlay: Overlay) -> None:
        assert len(patcher.status(tree, overlay=overlay, pins=PINS).failures) == 3


def test_an_anchor_may_occur_again_in_a_line_that_was_inserted(tree: Path, tmp_path: Path) -> None:
    hook = {"file": HOOKED[2], "anchor": "run();", "where": "after", "lines": ["    run();"], "why": "w"}
    overlay = make_overlay(tmp_path / "again", hooks=[hook])
    install(tree, overlay)
    assert install(tree, overlay).changes == {}


def test_two_hooks_at_one_anchor_keep_their_order(tree: Path, tmp_path: Path) -> None:
    hooks = [
        {"file": HOOKED[2], "anchor": "run();", "where": "before", "lines": [f"    step{i}();"], "why": "w"}
        for i in range(3)
    ]
    install(tree, make_overlay(tmp_path / "three", hooks=hooks))
    assert re.findall(r"step\d", (tree / HOOKED[2]).read_text()) == ["step0", "step1", "step2"]


def test_local_edits_in_a_hooked_file_are_refused(tree: Path, overlay: Overlay) -> None:
    (tree / HOOKED[1]).write_bytes(CONTEXT + b"// mine\n")
    with pytest.raises(RefusedError, match=r"differ from llama\.cpp b1(.|\n)*src/llama-context\.cpp(.|\n)*--force"):
        install(tree, overlay)


def test_local_edits_are_kept_with_force_and_after_uninstalling(tree: Path, overlay: Overlay) -> None:
    (tree / HOOKED[1]).write_bytes(CONTEXT + b"// mine\n")
    install(tree, overlay, force=True)
    done = uninstall(tree, overlay)
    assert (tree / HOOKED[1]).read_bytes() == CONTEXT + b"// mine\n"
    assert any("edits" in note and HOOKED[1] in note for note in done.notes)


def test_another_version_in_git_is_not_a_local_edit(tree: Path, overlay: Overlay) -> None:
    (tree / HOOKED[1]).write_bytes(CONTEXT + b"// newer upstream\n")
    commit_all(tree)
    done = install(tree, overlay)
    assert any("tested with llama.cpp b1" in note for note in done.notes)


def test_an_unknown_version_is_tried_by_its_anchors(tree: Path, overlay: Overlay) -> None:
    for name in HOOKED:
        (tree / name).write_bytes(FILES[name] + b"\n")
    assert state(tree, overlay) == "unknown base"
    done = install(tree, overlay)
    assert any("not a pinned version" in note for note in done.notes)


def test_an_unknown_version_with_edits_that_git_sees_is_refused(tree: Path, overlay: Overlay) -> None:
    for name in HOOKED:
        (tree / name).write_bytes(FILES[name] + b"\n")
    commit_all(tree)
    (tree / HOOKED[1]).write_bytes(CONTEXT + b"// mine\n")
    with pytest.raises(RefusedError, match="the version in git"):
        install(tree, overlay)


class TestUpgrade:
    """From an overlay with another version, another own file and a hook in another file."""

    @pytest.fixture
    def older(self, tmp_path: Path) -> Overlay:
        hooks = [
            {"file": "include/llama.h", "anchor": "#pragma once", "where": "after", "lines": ["old();"], "why": "w"}
        ]
        own = {"include/turboprefill.h": OWN["include/turboprefill.h"], "src/turboprefill-old.cpp": "int old;\n"}
        compiled = {**HOOKS[0], "lines": ["    turboprefill-old.cpp"]}
        return make_overlay(tmp_path / "older", "0.9.0", hooks=[*hooks, compiled], own=own)

    def test_the_result_is_that_of_a_fresh_install(self, tree: Path, older: Overlay, overlay: Overlay) -> None:
        fresh = shutil.copytree(tree, tree.with_name("fresh"))
        install(fresh, overlay)
        install(tree, older)
        install(tree, overlay)
        assert snapshot(tree) == snapshot(fresh)

    def test_the_older_one_is_recognised(self, tree: Path, older: Overlay, overlay: Overlay) -> None:
        install(tree, older)
        found = patcher.status(tree, overlay=overlay, pins=PINS)
        assert (found.state, found.version, found.up_to_date) == ("installed", "0.9.0", False)

    def test_the_older_one_can_be_removed(self, tree: Path, older: Overlay, overlay: Overlay) -> None:
        before = snapshot(tree)
        install(tree, older)
        uninstall(tree, overlay)
        assert snapshot(tree) == before


class TestState:
    def test_of_an_untouched_tree_is_pristine(self, tree: Path, overlay: Overlay) -> None:
        assert state(tree, overlay) == "pristine"

    def test_after_installing_is_installed(self, tree: Path, overlay: Overlay) -> None:
        install(tree, overlay)
        found = patcher.status(tree, overlay=overlay, pins=PINS)
        assert (found.state, found.version, found.up_to_date) == ("installed", "1.0.0", True)

    def test_with_a_line_missing_is_partial(self, tree: Path, overlay: Overlay) -> None:
        install(tree, overlay)
        path = tree / HOOKED[1]
        path.write_text(path.read_text().replace("    a(); // turboprefill\n", ""))
        assert state(tree, overlay) == "partial"

    @pytest.mark.parametrize("name", OWN)
    def test_with_an_own_file_missing_is_partial(self, tree: Path, overlay: Overlay, name: str) -> None:
        install(tree, overlay)
        (tree / name).unlink()
        assert state(tree, overlay) == "partial"

    def test_with_an_edited_own_file_is_modified(self, tree: Path, overlay: Overlay) -> None:
        install(tree, overlay)
        path = tree / "src/turboprefill.cpp"
        path.write_text(path.read_text().replace("42", "43"))
        assert state(tree, overlay) == "modified"

    def test_does_not_come_from_a_marker_file(self, tree: Path, overlay: Overlay) -> None:
        install(tree, overlay)
        for name in HOOKED:
            (tree / name).write_bytes(FILES[name])
        for name in OWN:
            (tree / name).unlink()
        assert state(tree, overlay) == "pristine"

    def test_ignores_copies_in_build_folders(self, tree: Path, overlay: Overlay) -> None:
        install(tree, overlay)
        build = tree / "src/build"
        build.mkdir()
        (build / "CMakeCache.txt").touch()
        shutil.copy(tree / "src/turboprefill.cpp", build)
        assert install(tree, overlay).changes == {}


def test_installing_completes_a_partial_tree(tree: Path, overlay: Overlay) -> None:
    install(tree, overlay)
    complete = snapshot(tree)
    (tree / "src/turboprefill.cpp").unlink()
    (tree / HOOKED[0]).write_bytes(FILES[HOOKED[0]])
    install(tree, overlay)
    assert snapshot(tree) == complete


@pytest.mark.parametrize("command", [install, uninstall], ids=["install", "uninstall"])
def test_an_edited_own_file_is_only_lost_with_force(tree: Path, overlay: Overlay, command) -> None:  # type: ignore[no-untyped-def]
    install(tree, overlay)
    path = tree / "src/turboprefill.cpp"
    path.write_text(path.read_text().replace("42", "43"))
    with pytest.raises(RefusedError, match=r"src/turboprefill\.cpp"):
        command(tree, overlay)
    command(tree, overlay, force=True)
    assert not path.exists() or "42" in path.read_text()


@pytest.mark.parametrize("make", ["nothing", "file", "other folder"])
def test_something_that_is_not_llama_cpp_is_refused(tmp_path: Path, overlay: Overlay, make: str) -> None:
    path = tmp_path / "thing"
    if make == "file":
        path.touch()
    elif make == "other folder":
        path.mkdir()
    said = {
        "nothing": "does not exist",
        "file": "is a file",
        "other folder": r"is not a llama\.cpp tree: CMakeLists\.txt",
    }
    with pytest.raises(RefusedError, match=rf"{said[make]}.*turboprefill checkout"):
        install(path, overlay)


def test_a_link_out_of_the_tree_is_refused(tree: Path, overlay: Overlay, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere.cpp"
    outside.write_bytes(CONTEXT)
    (tree / HOOKED[1]).unlink()
    (tree / HOOKED[1]).symlink_to(outside)
    with pytest.raises(RefusedError, match="leads out of the tree"):
        install(tree, overlay)
    assert outside.read_bytes() == CONTEXT


def test_a_folder_that_is_a_link_out_of_the_tree_is_refused(tree: Path, overlay: Overlay, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tree / "ggml/src/turboprefill").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match="leads out of the tree"):
        install(tree, overlay)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_link_inside_the_tree_stays_a_link(tree: Path, overlay: Overlay) -> None:
    (tree / HOOKED[1]).rename(tree / "src/real.txt")
    (tree / HOOKED[1]).symlink_to("real.txt")
    install(tree, overlay)
    assert (tree / HOOKED[1]).is_symlink()
    uninstall(tree, overlay)
    assert (tree / "src/real.txt").read_bytes() == CONTEXT


def test_the_full_diff_is_a_patch_that_git_applies(tree: Path, overlay: Overlay) -> None:
    fresh = shutil.copytree(tree, tree.with_name("fresh"))
    install(tree, overlay)
    patch = tree.with_name("all.patch")
    patch.write_text("".join(f"{line}\n" for line in patcher.diff(tree, full=True, overlay=overlay, pins=PINS)))
    git(fresh, "init", "-q")
    git(fresh, "apply", str(patch))
    assert {name: data for name, (data, _) in snapshot(fresh).items()} == {
        name: data for name, (data, _) in snapshot(tree).items()
    }


def test_the_diff_before_installing_is_the_diff_after(tree: Path, overlay: Overlay) -> None:
    before = list(patcher.diff(tree, overlay=overlay, pins=PINS))
    install(tree, overlay)
    assert list(patcher.diff(tree, overlay=overlay, pins=PINS)) == before
    assert any(line.startswith("+    a();") for line in before)


OPTIONAL = [
    {
        "file": HOOKED[1],
        "anchor": "return 0;",
        "where": "before",
        "lines": ["    c();"],
        "why": "w",
        "optional": "extra",
    },
    {
        "file": "tools/server.cpp",
        "anchor": "main",
        "where": "after",
        "lines": ["d();"],
        "why": "w",
        "optional": "extra",
    },
    {"file": HOOKED[2], "anchor": "run();", "where": "after", "lines": ["    e();"], "why": "w", "optional": "other"},
]


def test_optional_hooks_of_one_name_go_in_together_or_not_at_all(tree: Path, tmp_path: Path) -> None:
    overlay = make_overlay(tmp_path / "overlay", hooks=[*HOOKS, *OPTIONAL])
    outcome = install(tree, overlay)
    assert "    c();" not in (tree / HOOKED[1]).read_text()
    assert "    run();\n    e(); // turboprefill\n" in (tree / HOOKED[2]).read_text()
    assert any("left out" in note and "extra" in note for note in outcome.notes)
    found = patcher.status(tree, overlay=overlay, pins=PINS)
    assert (found.state, found.up_to_date, found.left_out) == ("installed", True, ("extra",))


def test_an_optional_hook_goes_in_where_its_file_is(tree: Path, tmp_path: Path) -> None:
    overlay = make_overlay(tmp_path / "overlay", hooks=[*HOOKS, *OPTIONAL])
    (tree / "tools").mkdir()
    (tree / "tools/server.cpp").write_text("int main() {\n}\n")
    before = snapshot(tree)
    assert not any("left out" in note for note in install(tree, overlay).notes)
    assert (tree / "tools/server.cpp").read_text() == "int main() {\nd(); // turboprefill\n}\n"
    assert "    c(); // turboprefill\n    return 0;" in (tree / HOOKED[1]).read_text()
    uninstall(tree, overlay)
    assert snapshot(tree) == before


def test_the_diff_without_full_has_no_files_of_our_own(tree: Path, overlay: Overlay) -> None:
    for _ in range(2):  # before installing and after
        lines = list(patcher.diff(tree, overlay=overlay, pins=PINS))
        assert {line.partition(" b/")[2] for line in lines if line.startswith("+++ ")} == set(HOOKED)
        install(tree, overlay)


def test_a_patch_of_files_without_a_newline_at_their_end_can_be_applied(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", {name: data.removesuffix(b"\n") for name, data in FILES.items()})
    overlay = make_overlay(tmp_path / "overlay", hooks=[*HOOKS[:1], {**HOOKS[2], "anchor": "}", "where": "after"}])
    fresh = shutil.copytree(tree, tree.with_name("fresh"))
    lines = list(patcher.diff(tree, full=True, overlay=overlay, pins=PINS))
    # of both sides of the last line, which moved up; and of the last line of another file, which is only shown
    assert lines.count("\\ No newline at end of file") == 3
    install(tree, overlay)
    patch = tree.with_name("all.patch")
    patch.write_text("".join(f"{line}\n" for line in lines))
    git(fresh, "init", "-q")
    git(fresh, "apply", str(patch))
    assert {name: data for name, (data, _) in snapshot(fresh).items()} == {
        name: data for name, (data, _) in snapshot(tree).items()
    }


def test_own_files_to_which_git_gave_other_line_ends_are_up_to_date(tree: Path, overlay: Overlay) -> None:
    install(tree, overlay)
    for name in OWN:
        (tree / name).write_bytes((tree / name).read_bytes().replace(b"\n", b"\r\n"))
    assert patcher.status(tree, overlay=overlay, pins=PINS).up_to_date
    assert install(tree, overlay).changes == {}


class TestNotesOfUninstalling:
    """ "Checked against llama.cpp's own version" is claimed only of what was."""

    def notes(self, tree: Path, overlay: Overlay, pins: Pins) -> str:
        return " ".join(patcher.uninstall(tree, overlay=overlay, pins=pins).notes)

    def test_nothing_is_claimed_of_an_unknown_version_without_git(self, tree: Path, overlay: Overlay) -> None:
        for name in HOOKED:
            (tree / name).write_bytes(FILES[name] + b"\n")
        install(tree, overlay)
        assert self.notes(tree, overlay, PINS) == ""

    def test_nothing_is_claimed_if_one_file_could_not_be_checked(self, tree: Path, overlay: Overlay) -> None:
        base = replace(PINS.default, files={name: PINS.default.files[name] for name in HOOKED[:2]})
        install(tree, overlay)
        assert self.notes(tree, overlay, Pins(PINS.repository, base, (base,))) == ""

    def test_git_knows_the_files_of_an_unknown_version(self, tree: Path, overlay: Overlay) -> None:
        for name in HOOKED:
            (tree / name).write_bytes(FILES[name] + b"\n")
        commit_all(tree)
        install(tree, overlay)
        assert "checked against" in self.notes(tree, overlay, PINS)

    def test_edits_that_only_git_can_tell_are_named(self, tree: Path, overlay: Overlay) -> None:
        for name in HOOKED:
            (tree / name).write_bytes(FILES[name] + b"\n")
        commit_all(tree)
        (tree / HOOKED[1]).write_bytes(CONTEXT + b"// mine\n")
        install(tree, overlay, force=True)
        notes = self.notes(tree, overlay, PINS)
        assert f"edits that are not TurboPrefill's were kept: {HOOKED[1]}." in notes
        assert "checked against" not in notes


def file_states(tree: Path, overlay: Overlay) -> dict[str, str]:
    return {file.path: file.state for file in patcher.status(tree, overlay=overlay, pins=PINS).files}


def test_a_line_of_ours_that_is_missing_is_not_one_too_many(tree: Path, overlay: Overlay) -> None:
    (tree / HOOKED[2]).write_bytes(b"")
    install(tree, overlay, force=True)
    path = tree / HOOKED[1]
    path.write_text(path.read_text().replace("    a(); // turboprefill\n", ""))
    path = tree / HOOKED[2]
    path.write_text(path.read_text() * 2)
    states = file_states(tree, overlay)
    assert (states[HOOKED[1]], states[HOOKED[2]]) == ("incomplete", "other lines")


@pytest.mark.parametrize("command", [install, uninstall, state], ids=["install", "uninstall", "status"])
@pytest.mark.parametrize("name", ["src/turboprefill-old.cpp", "include/llama.h"], ids=["own", "hooked"])
def test_a_leftover_behind_a_link_out_of_the_tree_is_refused(tree: Path, tmp_path: Path, name: str, command) -> None:  # type: ignore[no-untyped-def]
    """A file that only an older overlay had: found by what is in it, wherever that is."""
    hook = {"file": "include/llama.h", "anchor": "#pragma once", "where": "after", "lines": ["old();"], "why": "w"}
    own = {"include/turboprefill.h": OWN["include/turboprefill.h"], "src/turboprefill-old.cpp": "int old;\n"}
    install(tree, make_overlay(tmp_path / "older", "0.9.0", hooks=[hook], own=own))
    outside = tmp_path / "elsewhere.cpp"
    (tree / name).rename(outside)
    (tree / name).symlink_to(outside)
    before = outside.read_bytes()
    with pytest.raises(RefusedError, match="leads out of the tree"):
        command(tree, make_overlay(tmp_path / "newer"))
    assert outside.read_bytes() == before
    assert (tree / name).is_symlink()


def test_a_line_goes_into_an_empty_file_and_out_again(tree: Path, tmp_path: Path) -> None:
    (tree / HOOKED[2]).write_bytes(b"")
    overlay = make_overlay(tmp_path / "overlay")
    install(tree, overlay, force=True)
    assert (tree / HOOKED[2]).read_bytes() == b'#include "turboprefill.inc" // turboprefill\n'
    uninstall(tree, overlay)
    assert (tree / HOOKED[2]).read_bytes() == b""


@pytest.mark.parametrize(
    ("line", "nearest"),
    [("    llama-contexts.cc", 2), ("    context", 2), ("    llama-hparams.c", None), ("    xyz", None)],
)
def test_only_a_line_that_is_rather_similar_is_named(line: str, nearest: int | None) -> None:
    hook = Hook("src/CMakeLists.txt", "llama-context.cpp", "after", ("x",), "w")
    (failure,) = insert(parse(f"(\n{line}\n)\n".encode()), [hook], hook.file)[1]
    assert failure.nearest == (nearest and (nearest, line))
    assert ("most similar is line 2" in str(failure)) == bool(nearest)


def test_status_as_json_has_exactly_these_keys(tree: Path, overlay: Overlay) -> None:
    install(tree, overlay)
    (tree / HOOKED[2]).unlink()
    result = patcher.status(tree, overlay=overlay, pins=PINS).as_json(overlay)
    assert set(result) == {
        "schema", "tree", "state", "version", "overlay_version", "up_to_date", "base", "git_head", "left_out",
        "files", "anchors_failed",
    }  # fmt: skip
    assert set(result["base"]) == {"name", "commit", "exact"}
    assert all(set(file) == {"path", "role", "state", "local_edits"} for file in result["files"])
    assert all(set(failure) == {"file", "anchor", "found", "nearest"} for failure in result["anchors_failed"])
