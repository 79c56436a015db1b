"""Copies of the Python package that can be changed: the sources, with the native parts linked beside them."""

from __future__ import annotations

import compileall
import shutil
import site
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mutants.catalogue import ROOT, Mutant, MutantError

__all__ = ["Workspace"]

_PACKAGE = "src/turboprefill"
_NATIVE = ("_core*.so", "lib", "bin")


class Workspace:
    """A folder with an unchanged copy of the package, from which changed ones are made.

    Args:
        folder: an empty folder.

    Raises:
        MutantError: there is no native module.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self._original = folder / "original"
        package = self._original / _PACKAGE
        native = _native_folder()
        shutil.copytree(ROOT / _PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", *_NATIVE))
        for pattern in _NATIVE:
            for path in native.glob(pattern):
                (package / path.name).symlink_to(path.resolve())
        (self._original / "overlay").symlink_to(ROOT / "overlay")
        # once for all copies; a copy keeps the times by which Python knows that they are up to date
        compileall.compile_dir(package, quiet=2)

    @contextmanager
    def copy(self, name: str, mutant: Mutant | None = None) -> Iterator[Path]:
        """A folder like the repository's root, with ``src``, for one run; with this change in it, if there is one.

        Raises:
            MutantError: the change cannot be made.
        """
        root = self.folder / name
        shutil.copytree(self._original, root, symlinks=True)
        try:
            if mutant is not None:
                path = root / mutant.file
                path.write_text(mutant.mutated(root), encoding="utf-8")
                for stale in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
                    stale.unlink()
            yield root
        finally:
            shutil.rmtree(root, ignore_errors=True)


def _native_folder() -> Path:
    """Where the native module is: in the source tree, or in the installed package."""
    installed = [*site.getsitepackages(), sysconfig.get_path("platlib")]
    places = [ROOT / _PACKAGE, *(Path(folder) / "turboprefill" for folder in installed)]
    found = next((place for place in places if any(place.glob("_core*.so"))), None)
    if found is None:
        raise MutantError(f"there is no native module in {' or '.join(map(str, places))}: run scripts/test first")
    return found
