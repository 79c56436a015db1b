"""Lists as users type them."""

from __future__ import annotations

__all__ = ["split_list"]


def split_list(text: str | None) -> list[str]:
    """The parts of a comma-separated list, without spaces around them; empty parts are left out.

    ``"a, b,"`` gives ``["a", "b"]``; None and "" give an empty list.
    """
    return [part.strip() for part in (text or "").split(",") if part.strip()]
