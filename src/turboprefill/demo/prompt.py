"""The text that the demo reads: its own, or a file's. Needs no native module."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from turboprefill.errors import TurboPrefillError

__all__ = ["DemoError", "read_text"]


class DemoError(TurboPrefillError):
    """The demo cannot run with what was asked for or found."""


def read_text(path: Path | None) -> str:
    """The prompt: the file's text, or our own.

    Raises:
        DemoError: the file cannot be read as UTF-8 text, or is empty.
    """
    if path is None:
        return resources.files(__package__).joinpath("prompt.txt").read_text(encoding="utf-8")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DemoError(f"cannot read the prompt from {path}: {error}. Give a UTF-8 text file.") from error
    if not text.strip():
        raise DemoError(f"the prompt file {path} is empty: expected some text")
    return text
