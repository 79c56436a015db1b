"""The size of ubatches that reads a prompt fastest.

Small ubatches fill a pipeline sooner and waste more on what every ubatch costs; large ones the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence

from turboprefill.planner.cost import Cost, pipeline_seconds, prompt_seconds
from turboprefill.planner.errors import PlanError

__all__ = ["SIZES", "choose_ubatch", "ubatch_seconds"]

# Powers of two, and up to 256 the size half-way between two of them: on an H200, 384 was slower than 256 and 512.
# overlay/src/turboprefill-ubatch.cpp has the same ones.
SIZES = (32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096)


def ubatch_seconds(costs: Sequence[Cost], n_tokens: int, n_stages: int, n_ubatch: int) -> float:
    """Time of a prompt in a pipeline: Σ t_i + (S - 1) max t_i, by the stage for which that is longest."""
    return max(pipeline_seconds(prompt_seconds(cost, n_tokens, n_ubatch), n_stages) for cost in costs)


def choose_ubatch(costs: Sequence[Cost], n_tokens: int, n_stages: int, n_ubatch_max: int) -> int:
    """The size out of :data:`SIZES`, or `n_ubatch_max` itself, with which a prompt is read fastest.

    Args:
        costs: of each stage, or of one of several equal ones.
        n_tokens: length of the prompt.
        n_stages: devices that work on it.
        n_ubatch_max: no ubatch is larger. If it is below 32 it is the answer.

    Raises:
        PlanError: there are no costs, or a number is below 1.
    """
    if not costs or min(n_tokens, n_stages, n_ubatch_max) < 1:
        raise PlanError(
            f"cannot choose a ubatch for {n_tokens} tokens, {n_stages} stages, {len(costs)} costs and at most "
            f"{n_ubatch_max} tokens: expected at least 1 of each"
        )
    sizes = sorted({n_ubatch_max, *(size for size in SIZES if size < n_ubatch_max)}, reverse=True)
    # of equally fast ones the largest: fewer ubatches are less work for the host
    return min(sizes, key=lambda size: ubatch_seconds(costs, n_tokens, n_stages, size))
