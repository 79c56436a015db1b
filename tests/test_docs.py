"""The documents say what the code does: reasons, hooks, variables, versions, links."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from enginereasons import reasons_in

ROOT = Path(__file__).resolve().parents[1]
OVERLAY = ROOT / "overlay"
DOCUMENTS = [*sorted(ROOT.glob("*.md")), OVERLAY / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ENGINE = [path for path in sorted(OVERLAY.rglob("*")) if path.suffix in (".cpp", ".inc", ".h")]

STRING = r'"((?:[^"\\]|\\.)+)"'


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


NO_TEST_GIVES = {
    "a device reads another device's memory directly, so there is no copy to wait for": "no device of the tests does",
    "this llama.cpp's RPC client allows only one thread per connection: update llama.cpp": "needs an older llama.cpp",
    "the graph is not a decoder's": "no synthetic model has an encoder",
    "an evaluation callback is set": "not in the Python API; imatrix in scripts/upstream_tests sets one",
    "a split reads weights or state that belong to another device": "needs --override-tensor, not in the Python API",
    "a user input is not in host memory": "llama.cpp does this for no model that we know of",
    "not enough memory for the pipeline's transport buffers": "no fault on demand reaches them",
}


def reasons() -> set[str]:
    """Every text that the engine can give for the standard path."""
    return reasons_in(map(read, ENGINE))


def variables() -> set[str]:
    """Every environment variable of ours that some part reads."""
    reading = re.compile(r"""(?:getenv\w*\(|environ\.get\(|environ\[|turboprefill_option\()["']?(TURBOPREFILL\w*)""")
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


def test_a_literal_becomes_a_reason_wherever_it_stands() -> None:
    source = """
static const char * deeper(int n) {
    const auto known = [&](const char * name) { return name == "not me"; };
    return n > 1 ? "one" : n > 0 ? "two; {braces}" : nullptr; // "a comment"
}

static std::string unrelated() {
    return "not me either";
}

void enable(bool on) {
    why_no_engine = on ? std::string("three: ") + name : "four";
    if (const char * why = deeper(2)) { count(why); }
    *why_not =
        "five";
}

const char * llama_turboprefill_reason(const llama_context * ctx) {
    return ctx ? "six" : last(ctx);
}
"""
    assert reasons_in([source]) == {"one", "two; {braces}", "three: ", "four", "five", "six"}


@pytest.mark.parametrize("reason", sorted(reasons()))
def test_every_reason_is_given_by_a_test_or_it_is_said_why_not(reason: str) -> None:
    others = [path for path in (ROOT / "tests").rglob("test_*.py") if path.name != Path(__file__).name]
    tested = any(reason in read(path) for path in others)
    assert tested != (reason in NO_TEST_GIVES), "give it in a test (test_overlay_reasons.py), or name the cause here"


def test_no_cause_is_named_for_a_reason_that_is_never_given() -> None:
    assert NO_TEST_GIVES.keys() - reasons() == set()


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


def code_of(*folders: str) -> str:
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    return "\n".join(read(path) for path in files if path.suffix in (".cpp", ".h", ".inc", ".py", ".json"))


def test_the_identifiers_of_the_architecture_exist() -> None:
    """Everything in code spans that looks like an identifier: with an underscore, or in camel case."""
    code = code_of("overlay", "cpp", "src/turboprefill")
    text = re.sub(r"```.*?```", "", read(ROOT / "docs" / "architecture.md"), flags=re.DOTALL)
    words = {word for span in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"[A-Za-z_]\w*", span)}
    names = {word for word in words if "_" in word or re.fullmatch(r"[a-z]+[A-Z]\w*", word)}
    assert len(names) > 40
    assert sorted(name for name in names if not re.search(rf"\b{name}\b", code)) == []


@pytest.mark.parametrize(
    ("document", "statement", "code"),
    [
        ("architecture", "staging region u % 3", "#define GGML_TURBOPREFILL_N_STAGINGS 3"),
        ("architecture", "three staging regions per boundary", "#define GGML_TURBOPREFILL_N_STAGINGS 3"),
        ("architecture", "outbox u % 2", "#define GGML_TURBOPREFILL_N_OUTBOXES 2"),
        ("architecture", "two outbox regions", "#define GGML_TURBOPREFILL_N_OUTBOXES 2"),
        ("architecture", "makes several (4 by default), else 2", "#define GGML_TURBOPREFILL_N_LANDINGS 2"),
        ("architecture", "once a second (more often if `TURBOPREFILL_WATCHDOG_S` is below 8)",
         "std::clamp<int64_t>(limit_us/8, 1000, 1000*1000)"),
        ("usage", "default: devices + 3", "engine->params.n_slots = n_backends + 2;"),  # the CPU is a backend too
        ("usage", "at least four", "std::max(engine->n_copies, GGML_TURBOPREFILL_N_STAGINGS) + 1"),
    ],
)  # fmt: skip
def test_counts_are_those_of_the_code(document: str, statement: str, code: str) -> None:
    assert statement in read(ROOT / "docs" / f"{document}.md")
    assert code in code_of("overlay")


def test_the_python_version_of_the_readme_is_that_of_the_package() -> None:
    required = re.search(r'^requires-python = ">=([\d.]+)"', read(ROOT / "pyproject.toml"), re.MULTILINE)
    assert required
    assert f"Python {required.group(1)}+" in read(ROOT / "README.md")


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
