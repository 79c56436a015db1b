"""Devices that do not answer: the watchdog says who, everybody may ask, and the work goes on when they do again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import dyingserver
from pipelinecounts import assert_pipelined, pipeline_once
from turboprefill import Context, Model
from turboprefill.demo.workers import RpcWorkers
from turboprefill.stats import Health
from virtualdevices import OPTIONS, N, configure, only, result, tokens

N_UBATCH = 8
PROMPT = tokens(12 * N_UBATCH)
SETTINGS = {**OPTIONS, "n_ubatch": N_UBATCH}
DYING = dyingserver.__file__

pytestmark = [pytest.mark.timeout(120), pytest.mark.pipelined]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBOPREFILL_WATCHDOG_S", "0.3")


@pytest.fixture
def repaired(virtual_names: list[str]) -> Iterator[None]:
    yield
    configure()


def until(context: Context, wanted: Callable[[Health], bool]) -> Health:
    deadline = time.monotonic() + 60
    while not wanted(context.health()):
        assert time.monotonic() < deadline, f"{context.health()}"
        time.sleep(0.02)
    return context.health()


def computing(context: Context) -> tuple[threading.Thread, list[tuple[bytes, bytes]]]:
    """A thread that decodes the prompt, and the list that will have its result."""
    got: list[tuple[bytes, bytes]] = []

    def compute() -> None:
        context.decode_batch(PROMPT)
        got.append(result(context))

    thread = threading.Thread(target=compute)
    thread.start()
    return thread, got


def expected(model: Model) -> tuple[bytes, bytes]:
    with model.context(**SETTINGS, turboprefill=False) as context:
        context.decode_batch(PROMPT)
        return result(context)


@pytest.mark.usefixtures("watched", "repaired", "peer_copies")
@pytest.mark.parametrize("device", [0, 1, N - 1])
def test_a_device_that_stalls_is_named_until_it_goes_on(model_file, virtual_names, caplog, device: int) -> None:
    with Model(model_file("tiny"), devices=virtual_names) as model:
        want = expected(model)
        with model.context(**SETTINGS, turboprefill=True) as context:
            pipeline_once(context, PROMPT, 12)
            assert context.health() == Health(ok=True, stuck_s=0.0, text="")
            configure(f"stall_graph={only(device, 5)}", f"stall_ms={only(device, 2000)}")
            thread, got = computing(context)
            stuck = until(context, lambda health: not health.ok)
            assert stuck.stuck_s >= 0.3
            # the device has been given the graph, or its worker is at it: it comes first, before those who wait
            assert re.match(rf"VIRT{device}\b", stuck.text), stuck.text
            assert "the caller waits" in stuck.text
            thread.join()
            assert until(context, lambda health: health.ok).text == ""
            assert got == [want]
            context.synchronize()
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "no progress for" in said
    assert "progress again after" in said


@pytest.mark.usefixtures("watched", "repaired")
def test_a_device_that_does_not_take_its_graph_is_described(model_file, virtual_names) -> None:
    """The worker itself does not come back from handing over: what it was handing over is known."""
    with Model(model_file("tiny"), devices=virtual_names) as model:
        want = expected(model)
        with model.context(**SETTINGS, turboprefill=True) as context:
            pipeline_once(context, PROMPT, 12)
            configure(f"launch_us={only(1, 900_000)}")
            thread, got = computing(context)
            stuck = until(context, lambda health: not health.ok)
            assert re.match(r"VIRT1 does not answer: ubatch \d+, .*\(\d+ nodes, [\d.]+ KiB of inputs\)", stuck.text), (
                stuck.text
            )
            configure()
            thread.join()
            assert got == [want]


@pytest.mark.usefixtures("repaired")
def test_no_watchdog_says_nothing(model_file, virtual_names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBOPREFILL_WATCHDOG_S", "0")
    with (
        Model(model_file("tiny"), devices=virtual_names) as model,
        model.context(**SETTINGS, turboprefill=True) as context,
    ):
        configure(f"stall_graph={only(1, 5)}", f"stall_ms={only(1, 1000)}")
        context.decode_batch(PROMPT)
        context.synchronize()
        assert_pipelined(context, 12, standard=0)
        assert context.health().ok


@pytest.mark.usefixtures("watched")
def test_a_server_that_is_stopped_is_named_until_it_goes_on(model_file) -> None:
    with RpcWorkers(2) as workers, Model(model_file("tiny"), rpc_servers=workers.endpoints) as model:
        want = expected(model)
        with model.context(**SETTINGS, turboprefill=True) as context:
            pipeline_once(context, PROMPT, 12)
            os.kill(workers.pids[1], signal.SIGSTOP)
            try:
                thread, got = computing(context)
                stuck = until(context, lambda health: not health.ok)
            finally:
                os.kill(workers.pids[1], signal.SIGCONT)
            assert workers.endpoints[1] in stuck.text or "RPC" in stuck.text
            thread.join()
            until(context, lambda health: health.ok)
            assert got == [want]


def test_a_server_that_ends_is_named_before_the_process_ends(model_file) -> None:
    with RpcWorkers(2) as workers:
        endpoints = workers.endpoints
        command = [sys.executable, DYING, str(model_file("tiny")), str(workers.pids[1]), *endpoints]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert "n_ubatches_pipelined is 0" not in done.stderr, done.stderr
    assert done.returncode == -signal.SIGABRT, done.stdout + done.stderr
    assert f"TurboPrefill: RPC server {endpoints[1]} does not answer any more" in done.stderr
    assert re.search(r"TurboPrefill: the process ends with ubatches \d+ to \d+ in flight: ", done.stderr)
    assert "Remote RPC server crashed" in done.stderr  # llama.cpp's own message stays
