"""The models that the driver's scenarios load."""

from __future__ import annotations

from pathlib import Path

from sanitize import adapters
from turboprefill import synth

__all__ = ["write_models"]

PRESETS = (
    "tiny",
    "moe-tiny",
    "mtp-tiny",
    "gptoss-tiny",
    "gemma3-tiny",
    "mamba-tiny",
    "jamba-tiny",
    "granite-hybrid-tiny",
)
ADAPTED = ("tiny", "gemma3-tiny")  # those that the scenario in-flight uses


def write_models(folder: Path) -> Path:
    """Write those that are missing, with adapters; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for preset in PRESETS:
        path = folder / f"{preset}.gguf"
        if not path.exists():
            synth.write_model(path, preset)
    for preset in ADAPTED:
        adapters.write_lora(folder / f"{preset}-lora.gguf", folder / f"{preset}.gguf")
    return folder
