"""Run as a program by tests/test_overlay_lost_events.py: contexts that wait for an event that never comes.

It prints a line of JSON for each case. A case that hangs is ended by who runs it.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable

from pipelinecounts import assert_pipelined
from turboprefill import ClosedError, Model, virtual
from virtualdevices import ALIVE, OPTIONS, N, alive, configure, only, result, tokens

N_UBATCH = 8
UBATCH = 6  # the event that is lost belongs to it; counted from 0
N_UBATCHES = 25
PROMPT = tokens(N_UBATCHES * N_UBATCH)
QUIET_S = 0.2  # so long nothing was given to a device


def graphs() -> list[int]:
    return [numbers["graphs"] for numbers in virtual.numbers()]


def until_quiet(n_faults: int) -> None:
    """Wait until the event was lost, and then as long as anything is given to a device."""
    seen, since = graphs(), time.monotonic()
    while time.monotonic() - since < QUIET_S or virtual.counters()["faults"] < n_faults:
        time.sleep(QUIET_S / 10)
        if graphs() != seen:
            seen, since = graphs(), time.monotonic()


def start(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def run(model: Model, want: tuple[bytes, bytes], device: int, event: int, *, turboprefill: bool, close: bool) -> dict:
    """Lose an event, look at what stands still, let it go, look at the results."""
    asked: list[int] = []
    with model.context(**OPTIONS, n_ubatch=N_UBATCH, turboprefill=turboprefill) as context:
        context.set_abort_callback(lambda: bool(asked.append(0)), interval_s=0)
        configure(f"lost_event={only(device, event)}")
        n_faults = virtual.counters()["faults"] + 1

        got: list[tuple[bytes, bytes]] = []

        def compute() -> None:
            with contextlib.suppress(ClosedError):
                context.decode_batch(PROMPT)
                got.append(result(context))

        decode = start(compute)
        until_quiet(n_faults)
        report = {"stuck": decode.is_alive(), "graphs": graphs(), "slots": 0, "health": ""}
        if turboprefill:
            while context.health().ok:
                time.sleep(QUIET_S / 10)
            report["health"] = context.health().text
        n_asked = len(asked)

        # the others are not concerned
        with model.context(**OPTIONS, n_ubatch=N_UBATCH, turboprefill=turboprefill) as sibling:
            sibling.decode_batch(PROMPT)
            report["sibling_is_right"] = result(sibling) == want

        closing = start(context.close) if close else None
        until_quiet(n_faults)
        report["stays_stuck"] = decode.is_alive() and (closing is None or closing.is_alive())
        report["asked_while_stuck"] = len(asked) - n_asked

        report["released"] = virtual.release()
        decode.join()
        if closing is not None:
            closing.join()
            return report
        report["right"] = got == [want]
        report["slots"] = context.stats().n_slots
        context.memory.clear()
        configure()
        context.decode_batch(PROMPT)
        report["works_afterwards"] = result(context) == want
    return report


def main(path: str, device: int, turboprefill: bool) -> None:
    with Model(path, devices=virtual.load(str(N))) as model:
        with model.context(**OPTIONS, n_ubatch=N_UBATCH, turboprefill=False) as context:
            context.decode_batch(PROMPT)
            want = result(context)
        with model.context(**OPTIONS, n_ubatch=N_UBATCH, turboprefill=turboprefill) as context:
            configure()
            context.decode_batch(PROMPT)
            context.synchronize()
            if turboprefill:
                assert_pipelined(context, N_UBATCHES, standard=0)
            n_events = virtual.numbers()[device]["events"] // N_UBATCHES  # that the device records for a ubatch
        for number in range(n_events):
            event = UBATCH * n_events + number + 1
            close = turboprefill and number == n_events - 1
            report = run(model, want, device, event, turboprefill=turboprefill, close=close)
            print(json.dumps({"number": number, "close": close, **report}), flush=True)  # noqa: T201 - a program
    assert alive() == dict.fromkeys(ALIVE, 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1")
