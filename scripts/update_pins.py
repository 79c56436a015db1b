#!/usr/bin/env python3
"""Bring the file hashes in pins.json up to date with the hooks.

Run it after a hook was added to another file, or a base to pins.json (name, commit, ggml version and archive by
hand, "files" empty). It takes each base's archive, checks the commit that the archive names, and hashes every file
that overlay/hooks.json touches.

    scripts/update_pins.py            rewrite src/turboprefill/pins.json
    scripts/update_pins.py --check    change nothing, exit with 1 if it is out of date
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from turboprefill.cli.console import Lines  # noqa: E402 (needs the path above)
from turboprefill.paths import pins_file  # noqa: E402 (needs the path above)
from turboprefill.tools.download import fetch_sdist  # noqa: E402 (needs the path above)
from turboprefill.tools.hooktext import sha256_lf  # noqa: E402 (needs the path above)
from turboprefill.tools.pins import Sdist  # noqa: E402 (needs the path above)

# The module directory that a recursive git checkout leaves in the archive: names the exact commit.
COMMIT_FILE = ".git/modules/vendor/llama.cpp/HEAD"


def hashes(base: dict[str, Any], files: list[str]) -> dict[str, str]:
    """Hashes of ``files`` in one base, without those that this base does not have."""
    sdist = Sdist(**base["sdist"])
    archive = fetch_sdist(sdist, Lines())
    top = sdist.filename.removesuffix(".tar.gz")
    wanted = {f"{top}/{sdist.subtree}/{name}": name for name in files}
    found = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.name == f"{top}/{COMMIT_FILE}":
                commit = read(tar, member).decode().strip()
                if commit != base["commit"]:
                    raise SystemExit(f"{sdist.filename} holds commit {commit}, pins.json says {base['commit']}")
            if member.name in wanted:
                found[wanted[member.name]] = sha256_lf(read(tar, member))
    return {name: found[name] for name in files if name in found}


def read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Content of a regular file of an archive."""
    file = tar.extractfile(member)
    if file is None:
        raise SystemExit(f"{member.name} is not a regular file")
    return file.read()


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare")
    options = parser.parse_args()
    hooks = json.loads((ROOT / "overlay" / "hooks.json").read_text(encoding="utf-8"))["hooks"]
    files = sorted({hook["file"] for hook in hooks})
    before = pins_file().read_text(encoding="utf-8")
    pins = json.loads(before)
    for base in pins["bases"]:
        base["files"] = hashes(base, files)
    after = json.dumps(pins, indent=2) + "\n"
    if after == before:
        return 0
    if options.check:
        sys.stderr.write(f"{pins_file()} is out of date: run scripts/update_pins.py\n")
        return 1
    pins_file().write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
