"""Runs the sanitizers' driver without a sanitizer: python -m nativecoverage.drive LLAMA_BIN NATIVE WORK."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sanitize.models import write_models
from turboprefill.demo.workers import RpcWorkers


def main(llama_bin: Path, native: Path, work: Path) -> int:
    models = write_models(work / "models")
    with RpcWorkers(2, binary=llama_bin / "ggml-rpc-server") as workers:
        command = [str(native / "driver"), str(native / "libturboprefill-virtual.so"), str(models)]
        return subprocess.run([*command, "--rpc", ",".join(workers.endpoints)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:4])))
