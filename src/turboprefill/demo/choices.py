"""From what the user asked for to what the demo measures: devices, model, prompt, layer split and ubatches."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from turboprefill.demo import prompt, settings, virtual_devices
from turboprefill.demo.measure import Note, Result, Workload
from turboprefill.options import DEFAULT_UBATCH

__all__ = ["Options", "choose_workload", "needs_workers", "remarks"]

_UBATCH = 256  # where there is no plan


@dataclass(frozen=True)
class Options:
    """What the user asked for; None leaves the choice to the demo.

    Attributes:
        model: GGUF file.
        prompt_file: text to read.
        n_prompt: tokens to read.
        ubatch: tokens per ubatch.
        n_batch: tokens per ``llama_decode`` call.
        repeats: timed runs of each path.
        devices: names, separated by commas.
        rpc: endpoints of RPC servers, separated by commas.
        virtual: specification of virtual devices.
        tensor_split: shares, separated by commas.
    """

    model: Path | None = None
    prompt_file: Path | None = None
    n_prompt: int | None = None
    ubatch: int | None = None
    n_batch: int = 2048
    repeats: int = 3
    devices: str | None = None
    rpc: str | None = None
    virtual: str | None = None
    tensor_split: str | None = None

    def check(self) -> None:
        """Check what costs no time: a wrong file name should not cost the time to start anything.

        Raises:
            DemoError: the prompt cannot be read, or the shares are not numbers.
        """
        prompt.read_text(self.prompt_file)
        settings.split_ratios(self.tensor_split)


@dataclass(frozen=True)
class _Usual:
    """What a kind of device gets unless the user asks for something else."""

    preset: str
    n_prompt: int | None = None
    n_ubatch: int | None = None


_ON_GPUS = _Usual("demo-gpu")
_ON_CPU = _Usual("demo", 2560, 128)  # as many tokens as two CPU workers read in a few seconds
_ON_VIRTUAL = _Usual(virtual_devices.PRESET, virtual_devices.TOKENS, virtual_devices.UBATCH)


@dataclass(frozen=True)
class _Cut:
    """How layers and prompt are cut; `shipped_ubatch` as in :class:`Workload`."""

    split: list[float] | None
    n_ubatch: int
    shipped_ubatch: int | None = None


def needs_workers(options: Options) -> bool:
    """Whether there is nothing to run on: no devices were given, and this machine has fewer than two GPUs."""
    given = options.virtual is not None or options.rpc or options.devices
    return not given and len(settings.gpu_names()) < 2


def choose_workload(options: Options, note: Note = lambda _: None) -> Workload:
    """Choose what the options leave open; may write a synthetic model, and makes virtual devices.

    Raises:
        TurboPrefillError: a device, the model or the prompt cannot be used.
    """
    endpoints, names = settings.split_list(options.rpc), settings.split_list(options.devices)
    usual = _ON_CPU if settings.is_loopback(endpoints) else _ON_GPUS
    if options.virtual is not None:
        names, usual = virtual_devices.load(options.virtual), _ON_VIRTUAL
    model = options.model or settings.synthetic_model(usual.preset, note)
    n_prompt = options.n_prompt or usual.n_prompt
    # both paths get the same split and the same ubatches, whatever the environment says
    os.environ["TURBOPREFILL_SPLIT"] = "off"
    os.environ["TURBOPREFILL_UBATCH"] = "off"
    cut = _cut(options, usual, model, names, endpoints, n_prompt or settings.USUAL_PROMPT, note)
    return Workload(
        model=str(model),
        text=prompt.read_text(options.prompt_file),
        n_prompt=n_prompt,
        n_ubatch=cut.n_ubatch,
        n_batch=max(options.n_batch, cut.n_ubatch),
        repeats=options.repeats,
        devices=names,
        rpc_servers=endpoints,
        tensor_split=cut.split,
        n_threads=1 if options.virtual is not None else settings.host_threads(endpoints),
        shipped_ubatch=cut.shipped_ubatch,
    )


def _cut(
    options: Options,
    usual: _Usual,
    model: Path,
    names: list[str] | None,
    endpoints: list[str] | None,
    n_prompt: int,
    note: Note,
) -> _Cut:
    split, n_ubatch = settings.split_ratios(options.tensor_split), options.ubatch or usual.n_ubatch
    choice = settings.planned(model, names, endpoints, n_prompt, note) if split is None else None
    if choice is None:
        return _Cut(split, n_ubatch or _UBATCH)
    n_ubatch = n_ubatch or choice.n_ubatch
    # virtual devices take a configured time for a graph, whatever its layers and its ubatch are
    compare = options.virtual is None and (choice.differs or n_ubatch != DEFAULT_UBATCH)
    return _Cut(choice.split, n_ubatch, (options.ubatch or DEFAULT_UBATCH) if compare else None)


def remarks(options: Options, result: Result) -> list[str]:
    """How to read the numbers of devices that are not real ones, in sentences."""
    if options.virtual is not None:
        return virtual_devices.explain(options.virtual)
    if result.workload.n_threads == 1:
        return ["Local CPU workers share this machine's cores: look at the speedup, not at tok/s."]
    return []
