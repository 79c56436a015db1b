"""The demo on virtual devices: a timed schedule that any machine can reproduce."""

from __future__ import annotations

from turboprefill import virtual

__all__ = ["PRESET", "TOKENS", "UBATCH", "explain", "load", "specification"]

PRESET = "tiny"  # small: its computation must fit into the devices' configured time
TOKENS, UBATCH = 1280, 64
_SAWTOOTH = "peer=refused,split_us=2000,us_per_token=300"


def specification(text: str) -> str:
    """The full specification; a bare number means devices that refuse copies, slow enough for a busy machine."""
    return f"{text},{_SAWTOOTH}" if text.strip().isdigit() else text


def load(text: str) -> list[str]:
    """Make the devices; their names.

    Raises:
        InvalidInputError: the specification is wrong.
        NativeModuleError: the backend is not installed, or does not load.
    """
    return virtual.load(specification(text))


def explain(text: str) -> list[str]:
    """What the numbers mean, in sentences."""
    spec = specification(text)
    lines = [f"Virtual devices ({spec}): their timings are configured, so compare the schedules, not tok/s."]
    if "events=off" in spec or "peer=refused" in spec or "peer=blocking" in spec:
        why = "Without events" if "events=off" in spec else "Where copies between devices do not queue"
        lines.append(
            f"{why}, llama.cpp's standard path waits for every device but the last before it goes on: "
            "a sawtooth, with three or more devices."
        )
    else:
        lines.append("With events and queued copies, llama.cpp's standard path may overlap devices too.")
    lines.append("TurboPrefill hands ubatches from device to device in its own threads, which avoids this.")
    return lines
