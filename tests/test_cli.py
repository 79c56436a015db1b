"""The command line: exit codes, output, and that everything explains itself."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner, Result

import turboprefill
from toytree import HOOKED, OWN, make_overlay, make_pins, make_tree, snapshot
from turboprefill.cli import app
from turboprefill.tools import patcher, sources, treestate
from turboprefill.tools.errors import BuildError, DownloadError, RefusedError, ToolError

# in the order of --help
COMMANDS = ["checkout", "install", "uninstall", "status", "diff", "build", "doctor", "plan", "simulate", "demo"]
HIDDEN = ["make-model", "prepare-tree"]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy tree, and a command line that knows it and has an overlay for it."""
    make_overlay(tmp_path / "overlay")
    monkeypatch.setattr("turboprefill.tools.overlay.overlay_dir", lambda: tmp_path / "overlay")
    for module in (patcher, sources, treestate):
        monkeypatch.setattr(module, "load_pins", make_pins)
    return make_tree(tmp_path / "llama.cpp")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_tree_goes_through_its_whole_life(tree: Path) -> None:
    before = snapshot(tree)
    for command in ("status", "install", "status", "diff", "install", "uninstall", "uninstall"):
        result = run(command, tree)
        assert result.exit_code == 0, result.output
    assert snapshot(tree) == before


def test_these_are_all_commands() -> None:
    commands = typer.main.get_group(app).commands
    assert [name for name, command in commands.items() if not command.hidden] == COMMANDS
    assert [name for name, command in commands.items() if command.hidden] == HIDDEN


@pytest.mark.parametrize("command", [*COMMANDS, "make-model"])
def test_help_of_every_command_has_examples(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert re.findall(r"^ Usage: turboprefill (\S+) \[OPTIONS\]", result.output, re.MULTILINE) == [command]
    assert lines.count(f" {'Examples':<79}") == 1, result.output
    examples = re.findall(r"^   turboprefill (\S+)", result.output, re.MULTILINE)
    assert examples[:1] == [command]
    assert set(examples) <= set(COMMANDS) | set(HIDDEN)


def test_help_lists_every_command_and_the_exit_codes() -> None:
    """Those that are hidden are for tests and for the package build."""
    output = run("--help").output
    _, panel = output.split("╭─ Commands ")
    assert re.findall(r"^│ (\S+)", panel, re.MULTILINE) == COMMANDS
    codes = " ".join(panel.partition("Exit codes: ")[2].split()).rstrip(".").split(", ")
    assert codes == [
        "0 success", "1 failure", "2 usage error", "3 refused (the tree is unchanged)",
        "4 network or download failure", "5 build failure", "130 interrupted",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ToolError("it broke"), 1),
        (RefusedError("it broke"), 3),
        (DownloadError("it broke"), 4),
        (BuildError("it broke"), 5),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_every_kind_of_failure_has_its_exit_code(
    tree: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr("turboprefill.cli.install.install", fail)
    result = run("install", tree)
    assert result.exit_code == code
    assert result.stderr == ("error: it broke\n" if code != 130 else "interrupted\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPIPE], ids=errno.errorcode.get)
def test_an_error_of_the_system_is_a_message_unless_nobody_reads_it(
    tree: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(number, "it broke", "file")

    monkeypatch.setattr("turboprefill.cli.install.install", fail)
    result = run("install", tree)
    assert result.exit_code == 1
    # a broken pipe is left to the command line's library, which ends without a word
    assert ("error:" in result.stderr) == (number == errno.ENOSPC)
    assert isinstance(result.exception, SystemExit)  # no traceback


def test_the_repository_of_a_git_hook_is_forgotten() -> None:
    program = "import os\nfrom turboprefill.cli import main\ntry: main()\nfinally: print('GIT_DIR' in os.environ)"
    done = subprocess.run(
        [sys.executable, "-c", program, "--version"],
        env={**os.environ, "GIT_DIR": "/nowhere"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("arguments", [["instal"], ["install"], ["install", "x", "--unknown"]], ids=" ".join)
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_a_message_may_contain_square_brackets(tmp_path: Path) -> None:
    result = run("status", tmp_path / "[red]x")
    assert result.exit_code == 3
    assert "[red]x does not exist" in result.stderr


def test_install_lists_what_it_changed_and_what_comes_next(tree: Path) -> None:
    lines = run("install", tree).output.splitlines()
    assert "  changed  src/llama-context.cpp (+3 lines)" in lines
    assert f"next: turboprefill build {tree}" in lines


def test_a_dry_run_says_that_nothing_was_written(tree: Path) -> None:
    before = snapshot(tree)
    assert "nothing was written" in run("install", tree, "--dry-run").output
    assert snapshot(tree) == before


def test_status_for_programs_is_json_alone(tree: Path) -> None:
    run("install", tree)
    result = json.loads(run("status", tree, "--json").stdout)
    assert (result["state"], result["version"], result["base"]["name"]) == ("installed", "1.0.0", "b1")


def test_status_names_no_files_where_all_is_well(tree: Path) -> None:
    assert HOOKED[1] not in run("status", tree).output
    run("install", tree)
    assert HOOKED[1] not in run("status", tree).output
    (tree / "src/turboprefill.cpp").unlink()
    assert "missing       src/turboprefill.cpp" in run("status", tree).output


def test_status_names_local_edits(tree: Path) -> None:
    (tree / HOOKED[1]).write_text((tree / HOOKED[1]).read_text() + "// mine\n")
    output = run("status", tree).output
    assert output.startswith("modified")
    assert "src/llama-context.cpp (local edits)" in output


def test_prepare_tree_makes_an_installed_checkout(tree: Path, tmp_path: Path) -> None:
    dest = tmp_path / "prepared"
    assert run("prepare-tree", dest, "--from", tree).exit_code == 0
    assert patcher.status(dest).up_to_date


def test_prepare_tree_changes_nothing_the_second_time(tree: Path, tmp_path: Path) -> None:
    dest = tmp_path / "prepared"
    run("prepare-tree", dest, "--from", tree)
    times = {path: path.stat().st_mtime_ns for path in dest.rglob("*") if ".git" not in path.parts}
    result = run("prepare-tree", dest, "--from", tree)
    assert "nothing to do" in result.output
    assert {path: path.stat().st_mtime_ns for path in dest.rglob("*") if ".git" not in path.parts} == times


def test_prepare_tree_repairs_what_was_edited(tree: Path, tmp_path: Path) -> None:
    dest = tmp_path / "prepared"
    run("prepare-tree", dest, "--from", tree)
    for name in OWN:
        (dest / name).write_text("edited")
    assert run("prepare-tree", dest, "--from", tree).exit_code == 0
    assert patcher.status(dest).up_to_date


def test_prepare_tree_takes_its_source_from_the_environment(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURBOPREFILL_SOURCE", str(tree))
    assert run("prepare-tree", tmp_path / "prepared").exit_code == 0


def test_checkout_names_the_next_command(tree: Path, tmp_path: Path) -> None:
    output = run("checkout", tmp_path / "new", "--from", tree).output
    assert "llama.cpp b1" in output
    assert f"turboprefill install {tmp_path / 'new'}" in output


def test_the_command_line_starts_without_the_native_module() -> None:
    program = (
        "import sys; sys.modules['turboprefill._core'] = None; import turboprefill.cli; "
        "sys.exit('turboprefill._core' in {k for k, v in sys.modules.items() if v})"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("arguments", [[], ["--help"], ["status", "{}"], ["install", "{}"]], ids=" ".join)
def test_libraries_that_few_commands_need_are_loaded_by_those_alone(tmp_path: Path, arguments: list[str]) -> None:
    make_tree(tmp_path / "llama.cpp")
    filled = [argument.format(tmp_path / "llama.cpp") for argument in arguments]
    program = (
        "import sys\n"
        "from turboprefill.cli import main\n"
        "try:\n"
        "    if sys.argv[1:]: main()\n"
        "except SystemExit as end:\n"
        "    print(end.code)\n"
        "print(sorted({'requests', 'matplotlib', 'numpy', 'gguf', 'pynvml'} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", program, *filled]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    if arguments:  # install refuses the toy tree only when it has looked at all of it
        assert done.stdout.splitlines()[-2] == ("3" if arguments[0] == "install" else "0")


def test_python_dash_m_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "turboprefill", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"turboprefill {turboprefill.__version__}\n"
