"""Writes the README's results table from the committed results: `python3 benchmarks/gpu/readme_table.py [--check]`.

`--check` changes nothing and exits with 1 if the README says something else.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from results import Record, find

_ROOT = Path(__file__).resolve().parents[2]
_README = _ROOT / "README.md"
_HEAD = """\
| model (synthetic weights), GPUs | prompt | ubatch | stock | tuned | TurboPrefill, same split \
| TurboPrefill, equal layers | speedup over stock |
|---|---:|---:|---:|---:|---:|---:|---:|
"""
_EIGHT, _FOUR = "2026-11-21-8xH200", "2026-11-21-4xH200-models"
_ARMS = ("upstream", "tuned", "turbo", "turbo-balanced")
_WITHOUT_PEER = ("nopeer-upstream", "", "", "nopeer-turbo")


@dataclass(frozen=True)
class _Row:
    """A line of the table; `arms` are those of its four columns of throughputs, "" for none."""

    label: str
    file: str
    case: str
    arms: tuple[str, ...] = _ARMS


_ROWS = (
    _Row("dense, 32 layers of Llama-70B's shape, 8 GPUs", _EIGHT, "dense pp16384 ub512"),
    _Row("", _EIGHT, "dense pp16384 ub256"),
    _Row("", _EIGHT, "dense pp16384 ub128"),
    _Row("", _EIGHT, "dense pp4096 ub256"),
    _Row("", _EIGHT, "dense pp65536 ub512"),
    _Row("the same, build without peer copies", _EIGHT, "dense pp16384 ub512", _WITHOUT_PEER),
    _Row("", _EIGHT, "dense pp16384 ub128", _WITHOUT_PEER),
    _Row("the dense model on 4 GPUs", _FOUR, "dense pp32768 ub512"),
    _Row("the same, first prompt of a process", _FOUR, "dense pp2500 ub128 b1000"),
    _Row("MoE, 24 layers of gpt-oss-120b's shape, 4 GPUs", _FOUR, "moe pp16384 ub512"),
    _Row("", _FOUR, "moe pp16384 ub128"),
    _Row("sliding window, Gemma-3-12B's shape, 4 GPUs", _FOUR, "swa pp16384 ub512"),
    _Row("", _FOUR, "swa pp16384 ub128"),
    _Row("hybrid, Granite-4-H-Micro's shape, 4 GPUs", _FOUR, "hybrid pp16384 ub512"),
    _Row("", _FOUR, "hybrid pp16384 ub128"),
)


def table() -> str:
    """The table in Markdown, from the results files."""
    return _HEAD + "".join(map(_line, _ROWS))


def written(readme: str) -> str:
    """The table that the README has now; "" if there is none with these columns."""
    _, head, after = readme.partition(_HEAD)
    return head + after.partition("\n\n")[0] + "\n" if head else ""


def _line(row: _Row) -> str:
    records = [find(_records(row.file), row.case, arm) if arm else None for arm in row.arms]
    stock, best = records[0], records[-1]
    if stock is None or best is None:
        raise ValueError(f"{row.file}.json has no {row.case} with {row.arms[0]} and {row.arms[-1]}")
    speeds = [f"{record['median_ts']:,.0f}" if record else "" for record in records]
    ratio = f"{best['median_ts'] / stock['median_ts']:.2f}×"
    cells = (row.label, _tokens(stock["n_prompt"]), str(stock["n_ubatch"]), *speeds, ratio)
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|\n"


def _tokens(n: int) -> str:
    return f"{n // 1024}k" if n % 1024 == 0 else f"{n / 1000:g}k"


@cache
def _records(name: str) -> list[Record]:
    path = _ROOT / "benchmarks" / "results" / f"{name}.json"
    records: list[Record] = json.loads(path.read_text(encoding="utf-8"))["results"]
    return records


def main() -> None:
    """The command line."""
    readme = _README.read_text(encoding="utf-8")
    old, new = written(readme), table()
    if not old:
        sys.exit(f"{_README} has no results table with the columns of this script")
    if sys.argv[1:] == ["--check"]:
        sys.exit(f"{_README}: the results table is out of date: run {Path(__file__).name}" if old != new else 0)
    _README.write_text(readme.replace(old, new), encoding="utf-8")


if __name__ == "__main__":
    main()
