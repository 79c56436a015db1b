"""Access to matplotlib, an optional dependency: it draws the PNG files, and nothing else needs it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turboprefill.errors import TurboPrefillError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PlotsMissingError", "available", "new_figure", "require"]

_DPI = 150


class PlotsMissingError(TurboPrefillError):
    """A PNG was asked for, and matplotlib is not installed."""


def available() -> bool:
    """Whether matplotlib is installed; does not import it."""
    return importlib.util.find_spec("matplotlib") is not None


def require(path: Path) -> None:
    """Check, before any work is done, that `path` can be drawn as a PNG.

    Raises:
        PlotsMissingError: matplotlib is not installed.
    """
    if not available():
        raise PlotsMissingError(
            f"cannot draw {path}: PNG files need matplotlib, which is not installed. "
            "Install it with: pip install 'turboprefill[plots]'"
        )


def new_figure(path: Path, width: float, height: float) -> tuple[Any, Callable[[], None]]:
    """An empty matplotlib figure of this size in inches, and a function that writes it to `path` as a PNG.

    Raises:
        PlotsMissingError: matplotlib is not installed.
    """
    require(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, lambda: figure.savefig(path, format="png")
