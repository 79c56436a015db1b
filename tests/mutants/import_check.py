"""A pytest plugin: the changed module must import, or what the tests say about it means nothing."""

from __future__ import annotations

import importlib
import os

import pytest

__all__ = ["CANNOT_IMPORT", "VARIABLE"]

VARIABLE = "TURBOPREFILL_MUTANT_MODULE"
CANNOT_IMPORT = 70  # pytest's own exit codes are small


def pytest_sessionstart() -> None:
    """Import the module before the first test is looked for."""
    name = os.environ.pop(VARIABLE, "")
    try:
        if name:
            importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - whatever a mistake raises
        pytest.exit(f"{name} does not import: {error!r}", returncode=CANNOT_IMPORT)
