"""The checks on a build that is there: python -m llamaserver.on LLAMA_BIN NATIVE WORK."""

from __future__ import annotations

import sys
from pathlib import Path

from llamaserver.__main__ import run_checks
from llamaserver.lab import Lab


def main(llama_bin: Path, native: Path, work: Path) -> int:
    work.mkdir(parents=True, exist_ok=True)
    return int(run_checks(Lab(llama_bin, native / "libturboprefill-virtual.so", work)) > 0)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:4])))
