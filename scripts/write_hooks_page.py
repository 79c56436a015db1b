#!/usr/bin/env python3
"""Write docs/hooks.md, the table of every line that the overlay inserts, from overlay/hooks.json.

scripts/write_hooks_page.py            rewrite the page
scripts/write_hooks_page.py --check    change nothing, exit with 1 if it is out of date
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/hooks.md"
INTRODUCTION = """\
# Inserted lines

Every line that TurboPrefill inserts into llama.cpp's files, in the order of the source, and why.
`scripts/write_hooks_page.py` writes this page from `overlay/hooks.json`; see [the overlay](../overlay/README.md).
"""


def page(hooks: list[dict[str, Any]]) -> str:
    """The text of the page for the hooks of ``hooks.json``."""
    parts = [INTRODUCTION]
    for file, of_file in groupby(hooks, lambda hook: hook["file"]):
        rows = ["| in | inserted | why |", "|---|---|---|", *(_row(hook) for hook in of_file)]
        parts.append(f"## `{file}`\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _row(hook: dict[str, Any]) -> str:
    place = f"`{hook['in']}`" if "in" in hook else "end of the file" if hook["where"] == "end" else "file"
    lines = "<br>".join(f"`{line.strip().replace('|', chr(92) + '|')}`" for line in hook["lines"])
    optional = f" (optional: {hook['optional']})" if "optional" in hook else ""
    return f"| {place} | {lines} | {hook['why']}{optional} |"


def main() -> None:
    text = page(json.loads((ROOT / "overlay/hooks.json").read_text(encoding="utf-8"))["hooks"])
    if sys.argv[1:] == ["--check"]:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit(f"{PAGE} is out of date: run scripts/write_hooks_page.py")
    else:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
