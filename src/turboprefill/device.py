"""The devices that llama.cpp can compute on."""

from __future__ import annotations

from dataclasses import dataclass

from turboprefill import log, rpc
from turboprefill.native import core

__all__ = ["Device", "devices"]


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        name: what ``Model(devices=[...])`` takes, such as ``CUDA0`` or ``RPC0``.
        description: the maker's name, or the endpoint of an RPC device.
        type: ``cpu``, ``gpu``, ``igpu``, ``accel`` or ``other``.
        backend: llama.cpp's name of the backend.
        memory_free: bytes, when asked; 0 if unknown, as of an RPC server that has ended.
        memory_total: bytes; 0 if unknown.
    """

    name: str
    description: str
    type: str
    backend: str
    memory_free: int
    memory_total: int


def devices() -> tuple[Device, ...]:
    """All devices of this process: those of the machine, then those of the RPC servers that models have used."""
    with log.collect():
        found = core.devices(rpc.silent_servers())
    return tuple(Device(d.name, d.description, d.type, d.backend, d.memory_free, d.memory_total) for d in found)
