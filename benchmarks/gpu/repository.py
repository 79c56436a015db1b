"""This repository, with its Python package on the path: it need not be installed on a machine that is measured.

The benchmark uses only those parts of the package that work without the native module.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["REPOSITORY"]

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "src"))
