"""Fixtures for all tests: synthetic models and local RPC workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import virtualdevices
from turboprefill import synth
from turboprefill.demo.workers import RpcWorkers

ModelFile = Callable[..., Path]
Endpoints = Callable[[int], list[str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of our own."""
    parser.addoption("--devices", help="devices for tests/test_overlay_equivalence.py, such as CUDA0,CUDA1,CUDA2")
    parser.addoption("--random-seconds", type=float, default=0, help="how long test_overlay_random.py makes examples")
    parser.addoption("--random-seed", type=int, default=0, help="the seed that test_overlay_random.py begins with")


def pytest_configure() -> None:
    """`TURBOPREFILL_VIRTUAL=3 pytest --devices VIRT0,VIRT1,VIRT2`."""
    if spec := os.environ.get("TURBOPREFILL_VIRTUAL"):
        from turboprefill import virtual

        virtual.load(spec)


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    """`model_file(preset, **sizes)`: path of a synthetic model, written once per session."""
    folder = tmp_path_factory.mktemp("models")

    def make(preset: str = "tiny", **sizes: int) -> Path:
        name = "-".join([preset, *(f"{key}{value}" for key, value in sorted(sizes.items()))])
        path = folder / f"{name}.gguf"
        return path if path.exists() else synth.write_model(path, preset, **sizes)

    return make


@pytest.fixture(scope="session")
def rpc_workers() -> Iterator[Endpoints]:
    """`rpc_workers(n)`: endpoints of n local workers of one thread, the same ones for the whole session.

    A worker serves one process at a time: tests that start processes give those workers of their own.
    """
    running: list[RpcWorkers] = []
    with ExitStack() as stack:

        def start(n: int) -> list[str]:
            for worker in running:
                worker.check()
            if (missing := n - len(running)) > 0:
                running.extend(stack.enter_context(RpcWorkers(1)) for _ in range(missing))
            return [worker.endpoints[0] for worker in running[:n]]

        yield start


@pytest.fixture(scope="session")
def virtual_names() -> list[str]:
    """Names of the four virtual devices that this process has; skips if it has another number."""
    from turboprefill import virtual

    known = virtual.loaded()
    if known and len(known) != virtualdevices.N:
        pytest.skip(f"this process has {len(known)} virtual devices already")
    return virtual.load(str(virtualdevices.N))


@pytest.fixture
def configure(virtual_names: list[str]) -> Iterator[Callable[..., None]]:
    """`configure("peer=refused", ...)`: give the virtual devices these properties for one test."""
    yield virtualdevices.configure
    virtualdevices.configure()


@pytest.fixture
def peer_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contexts of this test copy from device to device, where devices do not refuse it."""
    monkeypatch.setenv("TURBOPREFILL_TRANSPORT", "peer")


@pytest.fixture
def text() -> str:
    """Readable English, the demo's own prompt."""
    from turboprefill.demo.prompt import read_text

    return read_text(None)
