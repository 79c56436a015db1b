"""Draws the demo's picture: as PNG or as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from turboprefill import plots
from turboprefill.demo import timeline_html, timeline_png
from turboprefill.demo.picture import picture_of

if TYPE_CHECKING:
    from turboprefill import Span

__all__ = ["check", "default_path", "draw"]

_HTML = (".html", ".htm")


def default_path() -> Path:
    """Where the demo draws if nothing else is asked for: a PNG where matplotlib is installed, else an HTML file."""
    return Path("turboprefill-demo.png" if plots.available() else "turboprefill-demo.html")


def check(path: Path) -> None:
    """Check, before any work is done, that `path` can be drawn.

    Raises:
        PlotsMissingError: it is not an HTML file, and matplotlib is not installed.
    """
    if path.suffix.lower() not in _HTML:
        plots.require(path)


def draw(path: Path, standard: Sequence[Span], turbo: Sequence[Span], title: str) -> None:
    """Write the standard path's timeline above TurboPrefill's: as HTML if `path` says so, otherwise as a PNG.

    Raises:
        OSError: the file cannot be written.
        PlotsMissingError: a PNG is wanted, and matplotlib is not installed.
    """
    write = timeline_html.write if path.suffix.lower() in _HTML else timeline_png.write
    write(path, picture_of(standard, turbo, title))
