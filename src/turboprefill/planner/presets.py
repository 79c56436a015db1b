"""Facts of the synthetic models' shapes, without writing them: for predictions about models that are not here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from turboprefill import synth
from turboprefill.planner.facts import ModelFacts
from turboprefill.planner.gguf_facts import facts_of, read_facts
from turboprefill.synth import archs, weights

__all__ = ["PRESETS", "load_facts", "preset_facts"]

PRESETS = tuple(synth.PRESETS)


def load_facts(model: str) -> ModelFacts:
    """The facts of a model file, or of a preset if there is no such file.

    Raises:
        PlanError: the file cannot be read, or is not a model.
    """
    if model in PRESETS and not Path(model).exists():
        return preset_facts(model)
    return read_facts(model)


def preset_facts(preset: str, n_layers: int | None = None) -> ModelFacts:
    """The facts of ``turboprefill make-model PRESET``.

    Raises:
        PresetError: there is no such preset.
    """
    import gguf

    shape = synth.shape_of(preset, n_layers=n_layers)
    writer = gguf.GGUFWriter(None, shape.arch)
    archs.add_metadata(writer, shape)
    fields: dict[str, Any] = {name: field.value for name, field in writer.kv_data[0].items()}
    tensors = [(t.name, tuple(reversed(t.shape)), weights.nbytes(t.shape, t.kind)) for t in archs.tensors(shape)]
    return facts_of(preset, fields, tensors)
