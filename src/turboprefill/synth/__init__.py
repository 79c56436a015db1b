"""Synthetic GGUF models: random weights in the shape of real ones, with a tokenizer that reads English.

They answer nonsense, but they load, run and fill caches like the models whose shape they have, need no download,
and give different logits for different prompts, so a wrong result shows.
"""

from turboprefill.synth.archs import Shape
from turboprefill.synth.presets import PRESETS, PresetError, shape_of
from turboprefill.synth.write import model_size, write_model

__all__ = ["PRESETS", "PresetError", "Shape", "model_size", "shape_of", "write_model"]
