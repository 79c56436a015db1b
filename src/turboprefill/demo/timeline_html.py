"""The demo's picture as an HTML file with inline SVG: nothing to install, and the file loads nothing."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree as ET

from turboprefill.demo.picture import Bar, Panel, Picture

__all__ = ["write"]

# Pixels.
_PLOT = 1000  # width of the time axis
_ROW, _BAR = 30, 24  # height of a device's row, and of the bars in it
_TITLE, _GAP, _AXIS, _LEGEND = 24, 16, 40, 40
_CHARACTER, _MARGIN = 7, 16

_TICKS = 8  # at most about so many
_VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # from the first to the last
_STYLE = """
body { font: 13px sans-serif; color: #222; background: #fff; margin: 24px; }
h1 { font-size: 16px; font-weight: normal; }
svg text { font: 12px sans-serif; fill: #222; }
svg .bar { stroke: #222; stroke-width: 0.4; }
svg .bar:hover { stroke-width: 2; }
svg .grid { stroke: #ccc; stroke-width: 0.5; }
svg .frame { fill: none; stroke: #222; stroke-width: 0.7; }
"""


def write(path: Path, picture: Picture) -> None:
    """Draw `picture`.

    Raises:
        OSError: the file cannot be written.
    """
    page = ET.Element("html", lang="en")
    head = ET.SubElement(page, "head")
    ET.SubElement(head, "meta", charset="utf-8")
    ET.SubElement(head, "title").text = f"TurboPrefill: {picture.title}"
    ET.SubElement(head, "style").text = _STYLE
    body = ET.SubElement(page, "body")
    ET.SubElement(body, "h1").text = picture.title
    body.append(_svg(picture))
    text = ET.tostring(page, encoding="unicode", method="html")
    path.write_text(f"<!DOCTYPE html>\n{text}\n", encoding="utf-8")


def _svg(picture: Picture) -> ET.Element:
    left = _MARGIN + _CHARACTER * max((len(device) for device in picture.devices), default=0)
    rows = _ROW * max(1, len(picture.devices))
    step = _TITLE + rows + _GAP
    height = len(picture.panels) * step + _AXIS + _LEGEND
    svg = ET.Element("svg", width=str(left + _PLOT + _MARGIN), height=str(height), role="img")
    for i, panel in enumerate(picture.panels):
        group = ET.SubElement(svg, "g", transform=f"translate({left} {i * step + _TITLE})")
        _draw_panel(group, panel, picture, rows)
    bottom = len(picture.panels) * step - _GAP
    _draw_axis(ET.SubElement(svg, "g", transform=f"translate({left} {bottom})"), picture.length_ms)
    _draw_legend(ET.SubElement(svg, "g", transform=f"translate({left} {bottom + _AXIS})"), picture)
    return svg


def _draw_panel(group: ET.Element, panel: Panel, picture: Picture, rows: int) -> None:
    _text(group, 0, -8, panel.title)
    for tick in _ticks(picture.length_ms):
        x = f"{tick * _scale(picture.length_ms):.2f}"
        ET.SubElement(group, "line", {"class": "grid", "x1": x, "x2": x, "y1": "0", "y2": str(rows)})
    for row, device in enumerate(picture.devices):
        middle = _ROW * row + _ROW / 2
        _text(group, -8, middle + 4, device, anchor="end")
        for bar in panel.bars:
            if bar.device == device:
                _draw_bar(group, bar, panel, middle - _BAR / 2, _scale(picture.length_ms))
    ET.SubElement(group, "rect", {"class": "frame", "x": "0", "y": "0", "width": str(_PLOT), "height": str(rows)})


def _draw_bar(group: ET.Element, bar: Bar, panel: Panel, y: float, scale: float) -> None:
    length = bar.end_ms - bar.start_ms
    rect = ET.SubElement(
        group,
        "rect",
        {
            "class": "bar",
            "x": f"{bar.start_ms * scale:.2f}",
            "y": f"{y:g}",
            "width": f"{length * scale:.2f}",
            "height": str(_BAR),
            "fill": _colour(bar.ubatch / max(1, panel.n_ubatches - 1)),
        },
    )
    hover = f"{bar.device}, ubatch {bar.ubatch}: {bar.start_ms:,.2f} to {bar.end_ms:,.2f} ms ({length:,.2f} ms)"
    ET.SubElement(rect, "title").text = hover


def _draw_axis(group: ET.Element, length_ms: float) -> None:
    for tick in _ticks(length_ms):
        _text(group, tick * _scale(length_ms), 16, f"{tick:g}", anchor="middle")
    _text(group, _PLOT / 2, 34, "time, ms", anchor="middle")


def _draw_legend(group: ET.Element, picture: Picture) -> None:
    gradient = ET.SubElement(ET.SubElement(group, "defs"), "linearGradient", id="ubatches")
    for i in range(len(_VIRIDIS)):
        share = i / (len(_VIRIDIS) - 1)
        ET.SubElement(gradient, "stop", {"offset": f"{share:.0%}", "stop-color": _colour(share)})
    last = max(0, *(panel.n_ubatches - 1 for panel in picture.panels))
    _text(group, 0, 20, "one colour per ubatch: 0")
    scale = {"class": "legend", "x": "150", "y": "8", "width": "200", "height": "16", "fill": "url(#ubatches)"}
    ET.SubElement(group, "rect", scale)
    _text(group, 358, 20, str(last))


def _text(group: ET.Element, x: float, y: float, text: str, anchor: str = "start") -> None:
    ET.SubElement(group, "text", {"x": f"{x:.2f}", "y": f"{y:.2f}", "text-anchor": anchor}).text = text


def _scale(length_ms: float) -> float:
    """Pixels per millisecond."""
    return _PLOT / (length_ms * 1.01)


def _ticks(length_ms: float) -> list[float]:
    """Round numbers of milliseconds from 0 to the end of the axis."""
    rough = length_ms / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next((n for n in (1, 2, 5) if n * power >= rough), 10)
    return [i * step for i in range(int(length_ms / step) + 1)]


def _colour(share: float) -> str:
    """A colour between the first ubatch's (0) and the last one's (1)."""
    position = share * (len(_VIRIDIS) - 1)
    index = min(int(position), len(_VIRIDIS) - 2)
    rest = position - index
    pairs = zip(_VIRIDIS[index], _VIRIDIS[index + 1], strict=True)
    return "#" + "".join(f"{round(a + (b - a) * rest):02x}" for a, b in pairs)
