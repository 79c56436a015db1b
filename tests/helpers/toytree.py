"""A llama.cpp tree of a few lines, an overlay for it and pins that know it: everything offline and in milliseconds."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

from turboprefill.tools.overlay import Overlay, load_overlay
from turboprefill.tools.pins import Base, Pins, Sdist

CONTEXT = b'#include "llama-context.h"\n\nint decode() {\n    // the ubatch loop\n    return 0;\n}\n'
BACKEND = b"// backend\nvoid compute() {\n    run();\n}\n"
FILES = {
    "CMakeLists.txt": b'project("llama.cpp" C CXX)\n',
    "include/llama.h": b"#pragma once\n",
    "src/CMakeLists.txt": b"add_library(llama\n    llama-context.cpp\n    )\n",
    "src/llama-context.cpp": CONTEXT,
    "ggml/CMakeLists.txt": b'project("ggml")\n',
    "ggml/src/ggml-backend.cpp": BACKEND,
}
HOOKED = ("src/CMakeLists.txt", "src/llama-context.cpp", "ggml/src/ggml-backend.cpp")
HOOKS = [
    {"file": HOOKED[0], "anchor": "llama-context.cpp", "where": "after", "lines": ["    turboprefill.cpp"], "why": "w"},
    {
        "file": HOOKED[1],
        "anchor": '#include "llama-context.h"',
        "where": "after",
        "lines": ['#include "turboprefill.h"'],
        "why": "w",
    },
    {
        "file": HOOKED[1],
        "anchor": "// the ubatch loop",
        "where": "before",
        "lines": ["    a();", "    b();"],
        "why": "w",
    },
    {"file": HOOKED[2], "anchor": "", "where": "end", "lines": ['#include "turboprefill.inc"'], "why": "w"},
]
OWN = {
    "include/turboprefill.h": '#define TURBOPREFILL_VERSION "{version}"\n',
    "src/turboprefill.cpp": "int answer = 42;\n",
    "ggml/src/turboprefill/turboprefill.inc": "// included\n",
}
COMMIT = "1" * 40


def make_tree(root: Path, files: dict[str, bytes] | None = None) -> Path:
    """Write the toy tree, or the given files, below ``root``."""
    for name, data in (FILES if files is None else files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def make_overlay(
    folder: Path,
    version: str = "1.0.0",
    hooks: list[dict[str, object]] | None = None,
    own: dict[str, str] | None = None,
) -> Overlay:
    """Write and load an overlay."""
    own = OWN if own is None else own
    for name, text in own.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{version}", version))
    index = {"hooks": HOOKS if hooks is None else hooks}
    (folder / "hooks.json").write_text(json.dumps(index))
    return load_overlay(folder)


def make_pins(sdist: Sdist | None = None, repository: str = "https://upstream.invalid/llama.cpp") -> Pins:
    """Pins whose default is the toy tree."""
    hashes = {name: hashlib.sha256(FILES[name]).hexdigest() for name in HOOKED}
    base = Base("b1", COMMIT, "0.1.0", sdist, hashes)
    return Pins(repository, base, (base,))


def snapshot(root: Path) -> dict[str, tuple[bytes, int]]:
    """Content and mode of every file below ``root``, without git's."""
    return {
        path.relative_to(root).as_posix(): (path.read_bytes(), path.stat().st_mode)
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".git" not in path.relative_to(root).parts
    }


def make_archive(folder: Path) -> Path:
    """Write a gzipped archive of the toy tree, with a file of 100 kB in it."""
    path = folder / "llama.cpp.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(make_tree(folder / "source", {**FILES, "big.txt": b"0123456789" * 10000}), "llama.cpp")
    return path
