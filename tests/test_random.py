"""Random sequences of calls on a pipelined and on a standard context, side by side; no outcome may differ.

The normal run makes the same few examples every time. `scripts/random_tests SECONDS SEED` makes others for as long as
it is told. The example at hand is in .pytest_cache/d/random/example.txt, for when the process ends in it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

import randomsteps as rs
from turboprefill import Context, Model, TurboPrefillError
from turboprefill.errors import AbortedError, DecodeError

PRESETS = ["tiny", "gptoss-tiny", "gemma3-tiny", "mamba-tiny", "jamba-tiny"]
RECURRENT = ("mamba-tiny", "jamba-tiny")
N_EXAMPLES = 10  # of each preset, in a normal run
N_STEPS = 30


class CallbackError(Exception):
    """Raised by an abort callback."""


def outcome(call: Callable[[], object]) -> object:
    """What a call returned or how it failed."""
    try:
        return call()
    except DecodeError as error:
        return type(error), error.code, error.n_decoded
    except (TurboPrefillError, CallbackError) as error:
        return type(error)


def difference(standard: object, pipelined: object) -> str:
    """In words; of bytes only where they are."""
    if isinstance(standard, bytes) and isinstance(pipelined, bytes) and len(standard) == len(pipelined):
        where = [i for i, (a, b) in enumerate(zip(standard, pipelined, strict=True)) if a != b]
        return f"{len(where)} of {len(standard)} bytes differ, from {where[0]} to {where[-1]}"
    return f"standard: {standard!r:.200}, pipelined: {pipelined!r:.200}"


class Rig:
    """Both contexts, and what else the steps need."""

    def __init__(self, model: Model, preset: str, options: rs.Options, reference: dict[rs.Options, object]) -> None:
        self.preset = preset
        self.model = model
        self.sizes = {**vars(options), "n_seq_max": rs.N_SEQ, "n_threads": 1, "n_threads_batch": 1, "swa_full": False}
        self.standard, self.turbo = (model.context(**self.sizes, turboprefill=on) for on in (False, True))
        self.saved: dict[int, bytes] = {}
        self.siblings: list[Context] = []
        self.options, self.reference = options, reference
        self.n_pipelined = self.n_standard = 0

    def same(self, call: Callable[[Context], object]) -> object:
        results = [outcome(lambda ctx=ctx: call(ctx)) for ctx in (self.standard, self.turbo)]
        assert results[0] == results[1], difference(*results)
        return results[0]

    def step(self, step: object) -> None:
        match step:
            case rs.Abort():
                self.abort(step)
            case rs.Save():
                state = self.same(Context.state)
                if isinstance(state, bytes):
                    self.saved[step.slot] = state
            case rs.Load():
                state = self.saved.get(step.slot, b"")
                self.same(lambda ctx: ctx.load_state(state[:-9] if step.damaged else state))
            case rs.Switch():
                self.turbo.turboprefill = step.on
            case rs.ResetStats():
                self.count()
                self.turbo.reset_stats()
            case rs.Sibling():
                self.sibling(step.what)
            case rs.Check():
                self.check()
            case _:
                self.same(step)

    def check(self) -> None:
        for look in (rs.Positions(), rs.Logits(), Context.state):
            self.same(look)

    def count(self) -> None:
        assert self.standard.stats().n_ubatches_pipelined == 0
        stats = self.turbo.stats()
        self.n_pipelined += stats.n_ubatches_pipelined
        self.n_standard += stats.n_ubatches_standard

    def sibling(self, what: str) -> None:
        if what == "make" and len(self.siblings) < 2:
            self.siblings.append(self.model.context(**self.sizes))
        elif what == "close" and self.siblings:
            self.siblings.pop().close()
        elif self.siblings:
            prompt = rs.Decode(n=40, seqs=(0,))
            if self.options not in self.reference:
                with self.model.context(**self.sizes, turboprefill=False) as ctx:
                    prompt(ctx)
                    self.reference[self.options] = rs.Logits()(ctx)
            self.siblings[-1].memory.clear()
            prompt(self.siblings[-1])
            assert rs.Logits()(self.siblings[-1]) == self.reference[self.options]

    def abort(self, step: rs.Abort) -> None:
        """The standard context would stop at another ubatch: it is brought to what the pipelined one has kept."""
        questions = 0

        def stop() -> bool:
            nonlocal questions
            questions += 1
            if questions > step.allowed and step.raises:
                raise CallbackError
            return questions > step.allowed

        before = self.turbo.memory.seq_pos_max(step.decode.seqs[0])
        n_standard = self.turbo.stats().n_ubatches_standard
        self.turbo.set_abort_callback(stop, interval_s=0)
        result = outcome(lambda: step.decode(self.turbo))
        self.turbo.set_abort_callback(None)
        if result is not CallbackError and (not isinstance(result, tuple) or result[0] is not AbortedError):
            assert outcome(lambda: step.decode(self.standard)) == result
            return

        seqs = step.decode.seqs
        end = self.turbo.memory.seq_pos_max(seqs[0])
        pipelined = self.turbo.turboprefill and self.turbo.stats().n_ubatches_standard == n_standard
        # llama.cpp itself leaves recurrent states as they are, with the positions of what was not computed
        if len(seqs) == 1 and (pipelined or self.preset not in RECURRENT):
            assert before <= end < before + step.decode.n or end == -1
            if end < before:  # a recurrent state or a window cannot go back, then the whole sequence is gone
                assert self.preset != "tiny"
                self.standard.memory.seq_rm(seqs[0])
            elif end > before:
                step.decode(self.standard, end - before)
        else:
            for seq in seqs:
                self.same(lambda ctx, seq=seq: ctx.memory.seq_rm(seq))
        self.same(rs.Decode(1, seqs[:1]))  # does what was put off on the standard one too: shifts, copies
        self.same(rs.Logits())
        if self.preset == "tiny":
            self.same(Context.state)
        self.same(lambda ctx: [ctx.memory.seq_pos_max(seq) for seq in range(rs.N_SEQ)])
        state = self.turbo.state()  # the same cells on both
        self.same(lambda ctx: ctx.load_state(state))

    def close(self) -> None:
        for ctx in (*self.siblings, self.standard, self.turbo):
            ctx.close()


def run(model: Model, preset: str, log: Path, n_examples: int, seed: int) -> tuple[int, int]:
    """Ubatches that were pipelined and that were not."""
    logging.getLogger(__name__).info("seed %d", seed)
    counts = [0, 0]
    reference: dict[rs.Options, object] = {}

    @hypothesis.seed(f"{preset} {seed}")
    @hypothesis.settings(
        max_examples=n_examples, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(rs.options, st.lists(rs.steps, min_size=8, max_size=N_STEPS))
    def example(options: rs.Options, steps: list[object]) -> None:
        log.write_text(f"{preset!r}, {options!r},\n{steps!r}\n", encoding="utf-8")
        rig = Rig(model, preset, options, reference)
        with ExitStack() as stack:
            stack.callback(rig.close)
            for step in steps:
                rig.step(step)
            rig.check()
            rig.count()
        counts[0] += rig.n_pipelined
        counts[1] += rig.n_standard

    example()
    return counts[0], counts[1]


@pytest.mark.parametrize("preset", PRESETS)
def test_any_sequence_of_calls(
    preset: str,
    model_file,
    rpc_workers,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(logging.getLogger("turboprefill.llama"), "disabled", True)  # thousands of lines
    seconds, seed = (request.config.getoption(name) for name in ("--random-seconds", "--random-seed"))
    names = request.config.getoption("--devices")
    cache = getattr(request.config, "cache", None)  # none with -p no:cacheprovider
    log = (cache.mkdir("random") if cache else tmp_path) / "example.txt"
    where = {"devices": names.split(",")[:2]} if names else {"rpc_servers": rpc_workers(2)}
    end = time.monotonic() + seconds / len(PRESETS)
    with Model(model_file(preset), **where) as model:
        n_pipelined, n_standard = run(model, preset, log, N_EXAMPLES, seed)
        while time.monotonic() < end:
            seed += 1
            n_pipelined, n_standard = (
                a + b for a, b in zip((n_pipelined, n_standard), run(model, preset, log, N_EXAMPLES, seed), strict=True)
            )
    logging.getLogger(__name__).info("%d ubatches pipelined, %d not", n_pipelined, n_standard)
    assert n_pipelined > n_standard
