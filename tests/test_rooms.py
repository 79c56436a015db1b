"""Which module of the package imports which: no cycles, and tools that need neither llama.cpp nor a plan.

Imports inside functions count, those for type checkers alone do not. Names that the package loads on first use, as in
``from turboprefill import Model``, count as imports of the module that has them. Importing a module imports the
packages around it, so these count too, but for those that the importing module is in itself.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import turboprefill

ROOT = Path(turboprefill.__file__).parent
NATIVE = "turboprefill._core"

Graph = dict[str, set[str]]


def module_name(path: Path) -> str:
    return ".".join(("turboprefill", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All parts of a syntax tree that run."""
    yield node
    children = node.orelse if for_type_checkers(node) else ast.iter_child_nodes(node)
    for child in children:
        yield from statements(child)


def home(name: str) -> str:
    """The module in which a name of the package is, or the one that a dotted name means."""
    first, _, rest = name.removeprefix("turboprefill.").partition(".")
    if name not in MODULES and not rest and first in turboprefill.__all__:
        return f"turboprefill.{turboprefill._HOME.get(first, 'errors')}"
    while name not in MODULES and name != NATIVE and "." in name:
        name = name.rpartition(".")[0]
    return name


def named(node: ast.AST, inside: str) -> Iterator[str]:
    """Dotted names of modules that a statement of the module `inside` imports or uses."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{inside}: relative imports are not followed"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "turboprefill":
        yield f"turboprefill.{node.attr}"
    elif isinstance(node, ast.Constant) and node.value == NATIVE:  # importlib.import_module
        yield NATIVE


def around(name: str) -> set[str]:
    """A module and the packages that it is in."""
    parts = name.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts) + 1)}


def imports(name: str, path: Path) -> set[str]:
    found = {
        other
        for node in statements(ast.parse(path.read_text(encoding="utf-8")))
        for written in named(node, name)
        if written.split(".")[0] == "turboprefill"
        for other in around(home(written))
    }
    return found - around(name)


def room(name: str) -> str:
    """The subpackage that a module belongs to; the module itself if it is not in one."""
    parts = name.split(".")
    package = ".".join(parts[:2])
    return package if package in MODULES and MODULES[package].name == "__init__.py" else name


@pytest.fixture(scope="module")
def graph() -> Graph:
    return {name: imports(name, path) for name, path in MODULES.items() if name != "turboprefill"}


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def reachable(graph: Graph, starts: set[str]) -> set[str]:
    found, todo = set(), list(starts)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo.extend(graph.get(name, ()))
    return found


def test_imports_are_found(graph: Graph) -> None:
    assert "turboprefill.model" in graph["turboprefill.calibration"]
    assert NATIVE in graph["turboprefill.native"]
    assert "turboprefill.device" in graph["turboprefill.planner.resolve"]  # inside a function
    assert "turboprefill.planner" in graph["turboprefill.model"]  # around what it imports
    assert "turboprefill.cli" not in graph["turboprefill.cli.plan"]
    assert {"turboprefill.tools", "turboprefill.planner", "turboprefill.demo"} <= set(map(room, graph))


def test_a_cycle_is_found_that_a_lazy_name_hides(tmp_path: Path) -> None:
    file = tmp_path / "hidden.py"
    file.write_text("def f():\n    import turboprefill\n    return turboprefill.devices()\n")
    assert imports("turboprefill.hidden", file) == {"turboprefill.device"}
    file.write_text("def f():\n    from turboprefill import Model, calibration\n")
    assert imports("turboprefill.hidden", file) == {"turboprefill.model", "turboprefill.calibration"}
    file.write_text("if TYPE_CHECKING:\n    from turboprefill import Model\nelse:\n    import turboprefill.rpc\n")
    assert imports("turboprefill.hidden", file) == {"turboprefill.rpc"}
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}})


def test_no_module_imports_itself_by_way_of_others(graph: Graph) -> None:
    assert cycle(graph) == []


def test_no_subpackage_imports_itself_by_way_of_others(graph: Graph) -> None:
    rooms: Graph = {}
    for name, others in graph.items():
        rooms.setdefault(room(name), set()).update({room(other) for other in others} - {room(name)})
    assert cycle(rooms) == []


def test_tools_need_neither_the_native_module_nor_what_is_built_upon_it(graph: Graph) -> None:
    tools = {name for name in graph if room(name) == "turboprefill.tools"}
    needed = reachable(graph, tools)
    assert NATIVE not in needed
    rooms = {room(name) for name in needed}
    assert rooms.isdisjoint({"turboprefill.planner", "turboprefill.demo", "turboprefill.model", "turboprefill.cli"})
