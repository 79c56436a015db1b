"""Ways between devices by name. Four fifths of what the standard says: what transfers of megabytes reach."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from turboprefill.planner.descriptions import read_table
from turboprefill.planner.errors import PlanError
from turboprefill.planner.simulate import Link

__all__ = ["LINKS", "find_link", "link_from", "link_from_table"]

_REACHED = 0.8
_PCIE = {3: 0.985e9, 4: 1.969e9, 5: 3.938e9}  # bytes per second of a lane
_LANES = re.compile(r"pcie([345])(?:\.0)?x(1|2|4|8|16)")
_NETWORK = re.compile(r"([\d.]+)gbit(?:/s)?|([\d.]+)gbps")
_BYTES = re.compile(r"([\d.]+)gb/s")
_DEFAULT = "pcie4x16"
LINKS = ("nvlink", "pcie3x4 ... pcie5x16", "100Gbit (a network)", "25GB/s")


def find_link(
    text: str | None, devices: str | None, latency_us: float | None = None, staged: bool | None = None
) -> Link:
    """The link that `text` names; without a name, that of the table of devices if there is one, else PCIe 4.0 x16.

    Args:
        text: as for :func:`link_from`.
        devices: what was given as devices, perhaps the name of a file with a table.
        latency_us, staged: as for :func:`link_from`; a table's link has its own.

    Raises:
        PlanError: the name cannot be understood, or the table is wrong.
    """
    if text is None and devices and Path(devices).is_file():
        link = link_from_table(read_table(Path(devices)))
        if link is not None:
            return link
    return link_from(text or _DEFAULT, latency_us, staged)


def link_from(text: str, latency_us: float | None = None, staged: bool | None = None) -> Link:
    """A link by name: ``nvlink`` (of the H200), ``pcie4x4``, ``100Gbit``, ``25GB/s``.

    PCIe and networks go through host memory unless `staged` says otherwise; NVLink does not.

    Args:
        text: the name, spaces and upper case as one likes.
        latency_us: microseconds of each transfer; by default 10, and 50 over a network.
        staged: whether a transfer goes through host memory.

    Raises:
        PlanError: it cannot be understood.
    """
    name = text.strip().lower().replace(" ", "")
    bandwidth, through_host, latency = 0.0, True, 10.0
    if name == "nvlink":
        bandwidth, through_host = 450e9, False
    elif match := _LANES.fullmatch(name):
        bandwidth = _PCIE[int(match[1])] * int(match[2])
    elif match := _BYTES.fullmatch(name):
        bandwidth = float(match[1]) * 1e9 / _REACHED  # said, so reached
    elif match := _NETWORK.fullmatch(name):
        bandwidth, latency = float(match[1] or match[2]) * 1e9 / 8, 50.0
    if bandwidth <= 0:
        raise PlanError(f"the link is {text!r}: expected one of {', '.join(LINKS)}")
    return Link(
        bandwidth=_REACHED * bandwidth,
        latency=(latency if latency_us is None else latency_us) / 1e6,
        staged=through_host if staged is None else staged,
    )


def link_from_table(data: Any) -> Link | None:
    """The link of a table of devices, as ``"link": {"bandwidth_gbs": 25, "latency_us": 10, "staged": true}``.

    Raises:
        PlanError: something is missing or wrong.
    """
    row = data.get("link") if isinstance(data, Mapping) else None
    if row is None:
        return None
    try:
        bandwidth, latency = float(row["bandwidth_gbs"]) * 1e9, float(row.get("latency_us", 10)) / 1e6
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlanError(
            f"the link in the table is {row!r}: expected bandwidth_gbs, and perhaps latency_us and staged"
        ) from error
    if bandwidth <= 0 or latency < 0:
        raise PlanError(f"the link in the table is {row!r}: expected a bandwidth above 0 and a latency of at least 0")
    return Link(bandwidth, latency, bool(row.get("staged", True)))
