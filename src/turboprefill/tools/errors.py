"""Errors of the command line tools, each with the exit code that the command line gives it."""

from __future__ import annotations

from turboprefill.errors import TurboPrefillError

__all__ = ["BuildError", "DownloadError", "RefusedError", "ToolError"]


class ToolError(TurboPrefillError):
    """A tool could not complete its work."""

    exit_code = 1


class RefusedError(ToolError):
    """A tree was left unchanged because something in it does not fit."""

    exit_code = 3


class DownloadError(ToolError):
    """A network source could not be reached, or delivered something unexpected."""

    exit_code = 4


class BuildError(ToolError):
    """CMake or the compiler failed."""

    exit_code = 5
