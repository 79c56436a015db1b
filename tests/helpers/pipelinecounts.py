"""Assertions that prompts were pipelined, so that a test does not compare the standard path with itself."""

from __future__ import annotations

from collections.abc import Sequence

from turboprefill import Context, Stats

__all__ = ["assert_pipelined", "pipeline_once"]


def assert_pipelined(
    context: Context,
    exactly: int | None = None,
    *,
    at_least: int = 1,
    standard: int | None = None,
    since: Stats | None = None,
) -> None:
    """Fail unless so many ubatches of this context were pipelined.

    Args:
        context: made with ``turboprefill=True``.
        exactly: ubatches that must have been pipelined; None for any number from ``at_least`` on.
        at_least: the fewest.
        standard: ubatches that must have taken the standard path; None for any number.
        since: counts from then on; None counts from the start of the context or its last ``reset_stats``.

    Raises:
        AssertionError: another number was, with both counts and the reason for the standard path.
    """
    stats = context.stats()
    n_pipelined = stats.n_ubatches_pipelined - (since.n_ubatches_pipelined if since else 0)
    n_standard = stats.n_ubatches_standard - (since.n_ubatches_standard if since else 0)
    counts = f"n_ubatches_pipelined is {n_pipelined}, n_ubatches_standard {n_standard} (reason: {stats.reason!r})"
    if exactly is not None:
        assert n_pipelined == exactly, f"{counts}; expected exactly {exactly} pipelined"
    assert n_pipelined >= (at_least if exactly is None else exactly), f"{counts}; expected {at_least} or more pipelined"
    if standard is not None:
        assert n_standard == standard, f"{counts}; expected {standard} on the standard path"


def pipeline_once(context: Context, prompt: Sequence[int], n_ubatches: int) -> None:
    """Pipeline a prompt and forget it: what a test does next would fail, or wait, in another way without a pipeline.

    Raises:
        AssertionError: not all of its ubatches were pipelined.
    """
    context.decode_batch(prompt)
    context.synchronize()
    assert_pipelined(context, n_ubatches, standard=0)
    context.memory.clear()
    context.reset_stats()
