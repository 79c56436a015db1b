"""The stub of the native module against the module itself."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import turboprefill
from turboprefill.native import core

STUB = ast.parse((Path(turboprefill.__file__).parent / "_core.pyi").read_text(encoding="utf-8"))
CLASSES = {node.name: node for node in STUB.body if isinstance(node, ast.ClassDef)}
IGNORED = {"name", "value"}  # what pybind11 adds to enumerations


def public(names):
    return {name for name in names if not name.startswith("_")}


def defined(body):
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.AnnAssign):
            yield node.target.id


def parameters(node):
    names = [arg.arg for arg in [*node.args.posonlyargs, *node.args.args]]
    return names + (["*"] if node.args.kwonlyargs else []) + [arg.arg for arg in node.args.kwonlyargs]


def native_parameters(function):
    """Names from the first line of a pybind11 docstring: `f(self: X, a: int, *, b: list[int]) -> None`."""
    inside = re.match(r"\w+\((.*)\) ->", function.__doc__.splitlines()[0]).group(1)
    while (flat := re.sub(r"\[[^\[\]]*\]|\([^()]*\)|<[^<>]*>", "", inside)) != inside:
        inside = flat
    return [part.split(":")[0].strip() for part in inside.split(",") if part.strip()]


def test_the_stub_has_the_names_of_the_module():
    assert public(defined(STUB.body)) == public(dir(core))


@pytest.mark.parametrize("name", CLASSES)
def test_the_stub_has_the_members_of_each_class(name):
    native = public(dir(getattr(core, name))) - (IGNORED if name == "OutputKind" else set())
    assert public(defined(CLASSES[name].body)) == native


SIGNATURES = [("", node) for node in STUB.body if isinstance(node, ast.FunctionDef)] + [
    (name, node)
    for name, cls in CLASSES.items()
    for node in cls.body
    if isinstance(node, ast.FunctionDef) and not node.decorator_list
]


@pytest.mark.parametrize(("owner", "node"), SIGNATURES, ids=[f"{o}.{n.name}" for o, n in SIGNATURES])
def test_the_stub_has_the_parameters_of_each_function(owner, node):
    scope = getattr(core, owner) if owner else core
    # unnamed parameters of lambdas show as arg0; only the receiver may be one
    native = ["self" if n == "arg0" else n for n in native_parameters(getattr(scope, node.name))]
    assert parameters(node) == native


@pytest.mark.parametrize("name", [n for n in CLASSES if n not in {"Model", "Context", "OutputKind"}])
def test_attributes_are_read_only_where_the_stub_says_so(name):
    for node in CLASSES[name].body:
        if isinstance(node, ast.AnnAssign):
            assert getattr(core, name).__dict__[node.target.id].fset is not None
        elif node.decorator_list:
            assert getattr(core, name).__dict__[node.name].fset is None
