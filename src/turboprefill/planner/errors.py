"""What can go wrong while planning."""

from __future__ import annotations

from turboprefill.errors import TurboPrefillError

__all__ = ["DescribedDevicesError", "DoesNotFitError", "PlanError"]


class PlanError(TurboPrefillError, ValueError):
    """A model file, a description of devices or a measurement cannot be planned with."""


class DescribedDevicesError(PlanError):
    """Devices that are only described were to be measured, or to be those of RPC servers."""


class DoesNotFitError(PlanError):
    """No split of whole layers fits into the memory of the devices.

    Attributes:
        missing: bytes that the best split is short, summed over its devices.
        lacking: for each device that is too small in that split, its name and the bytes it is short.
    """

    def __init__(self, message: str, *, missing: int, lacking: tuple[tuple[str, int], ...] = ()) -> None:
        super().__init__(message)
        self.missing = missing
        self.lacking = lacking
