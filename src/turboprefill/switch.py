"""Enabling and disabling the pipeline of a context, which may lack the memory for it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from turboprefill import log

if TYPE_CHECKING:
    from turboprefill.native import core

__all__ = ["switch"]

_logger = logging.getLogger("turboprefill.context")


def switch(native: core.Context, *, enabled: bool) -> None:
    """Enable or disable the pipeline, or log a warning with the reason and leave it as it is. Waits for the devices.

    Raises:
        ClosedError: the context is closed.
    """
    with log.collect() as messages:
        native.turboprefill = enabled
    if native.turboprefill != enabled:
        wanted, is_now = ("enabled", "disabled") if enabled else ("disabled", "enabled")
        _logger.warning(
            "TurboPrefill could not be %s and stays %s in this context: %s. Free memory on the devices, or use a "
            "smaller n_ctx or n_ubatch, and set context.turboprefill again",
            wanted,
            is_now,
            messages.reason,
        )
