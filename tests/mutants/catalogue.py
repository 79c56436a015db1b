"""The catalogues: which text of which file is replaced by what, and which tests have to notice it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "Mutant", "MutantError", "catalogue_path", "load"]

ROOT = Path(__file__).resolve().parents[2]


class MutantError(Exception):
    """A mutant, or a catalogue, that cannot be used."""


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        id: unique in its catalogue.
        file: path in the repository.
        find: text that the file contains exactly once.
        replace: what takes its place.
        tests: what to run: files, node ids, and "-k EXPRESSION".
        quick: part of the short selection that continuous integration runs.
        survives: why no test can notice it; empty where one must.
    """

    id: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...]
    quick: bool = False
    survives: str = ""

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Mutant:
        """An entry of a catalogue.

        Raises:
            MutantError: a key is missing or unknown.
        """
        try:
            return cls(**{**entry, "tests": tuple(entry["tests"])})
        except (KeyError, TypeError) as error:
            raise MutantError(f"mutant {entry.get('id', entry)!r} cannot be read: {error}") from error

    def mutated(self, root: Path = ROOT) -> str:
        """The whole file with the change in it.

        Raises:
            MutantError: the file is missing, or does not contain the text exactly once.
        """
        try:
            text = (root / self.file).read_text(encoding="utf-8")
        except OSError as error:
            raise MutantError(f"mutant {self.id}: cannot read {self.file}: {error.strerror}") from error
        if (n := text.count(self.find)) != 1:
            raise MutantError(f"mutant {self.id}: {self.file} contains {self.find!r} {n} times; expected exactly once")
        return text.replace(self.find, self.replace)


def catalogue_path(name: str) -> Path:
    """The file of a catalogue, which has one object a line."""
    return Path(__file__).with_name(f"{name}.json")


def load(name: str) -> list[Mutant]:
    """All mutants of a catalogue.

    Raises:
        MutantError: it cannot be read, or two mutants have the same id.
    """
    path = catalogue_path(name)
    try:
        mutants = [Mutant.from_json(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError) as error:
        raise MutantError(f"cannot read {path}: {error}") from error
    ids = [mutant.id for mutant in mutants]
    if twice := sorted({each for each in ids if ids.count(each) > 1}):
        raise MutantError(f"{path} has several mutants called {', '.join(twice)}; expected different ids")
    return mutants
