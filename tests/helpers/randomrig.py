"""A standard and a pipelined context for tests/test_overlay_random.py: makes each step on both, and compares."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

import randomsteps as rs
from turboprefill import Context, Model, TurboPrefillError, virtual
from turboprefill.errors import AbortedError, DecodeError, FatalDecodeError

RECURRENT = ("mamba-tiny", "jamba-tiny", "granite-hybrid-tiny")
WINDOWS = ("gemma3-tiny", "gptoss-tiny")
DENSE = ("tiny", "moe-tiny")  # memory that can always be cut off behind any token
N_VIRTUAL = 4  # one for the standard context, the others for the pipelined one


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


def is_failure(result: object, kind: type[DecodeError]) -> bool:
    return isinstance(result, tuple) and result[0] is kind


def difference(standard: object, pipelined: object) -> str:
    """In words; of bytes only where they are."""
    if isinstance(standard, bytes) and isinstance(pipelined, bytes) and len(standard) == len(pipelined):
        where = [i for i, (a, b) in enumerate(zip(standard, pipelined, strict=True)) if a != b]
        return f"{len(where)} of {len(standard)} bytes differ, from {where[0]} to {where[-1]}"
    return f"standard: {standard!r:.200}, pipelined: {pipelined!r:.200}"


class Rig:
    """Both contexts, and what else the steps need.

    Args:
        models: of the standard and of the pipelined context; the same one, or on devices of their own, which makes
            faults possible.
        reference: logits that were computed before, of siblings with the same options.
    """

    def __init__(
        self,
        models: tuple[Model, Model],
        preset: str,
        options: rs.Options,
        properties: rs.Properties | None,
        reference: dict[rs.Options, object],
    ) -> None:
        self.preset = preset
        self.models = models
        self.sizes = {**vars(options), "n_seq_max": rs.N_SEQ, "n_threads_batch": options.n_threads}
        self.properties = properties
        self.peer = properties.peer if properties else ""
        self.repair()
        self.alive = self.handles()
        self.standard = models[0].context(**self.sizes, turboprefill=False)
        self.turbo = models[1].context(**self.sizes, turboprefill=True)
        self.saved: dict[int, bytes] = {}
        self.siblings: list[Context] = []
        self.options, self.reference = options, reference
        self.n_pipelined = self.n_standard = self.n_failures = 0
        self.loaded = False  # a state, ever

    def switch(self, on: bool) -> None:
        """Between direct copies llama.cpp's own pipeline does not wait for a device that is four ubatches late.

        It then overwrites what that one still reads. So there are no such copies while it is at work.
        """
        self.turbo.turboprefill = on
        if self.properties is not None:
            self.standard.synchronize()
            self.properties = replace(self.properties, peer=self.peer if on else "refused")
            self.repair()

    def repair(self) -> None:
        """Give the virtual devices their properties, without a fault."""
        if self.properties is not None:
            os.environ["TURBOPREFILL_TRANSPORT"] = self.properties.transport  # of contexts made from now on
            virtual.load(f"{N_VIRTUAL},{self.properties}")

    def break_device(self, step: rs.Fault) -> None:
        numbers = "/".join(str(step.number if i == step.device + 1 else 0) for i in range(N_VIRTUAL))
        virtual.load(f"{N_VIRTUAL},{self.properties},fail_{step.what}={numbers}")

    def handles(self) -> list[int]:
        if self.properties is None:
            return []
        counters = virtual.counters()
        return [counters[name] for name in ("events", "buffers", "bytes", "streams", "threads")]

    def same(self, call: Callable[[Context], object]) -> object:
        results = [outcome(lambda ctx=ctx: call(ctx)) for ctx in (self.standard, self.turbo)]
        assert results[0] == results[1], difference(*results)
        return results[0]

    def step(self, step: object) -> None:
        match step:
            case rs.Abort():
                self.abort(step)
            case rs.Fault():
                self.fault(step)
            case rs.Save():
                state = self.same(Context.state)
                if isinstance(state, bytes):
                    self.saved[step.slot] = state
            case rs.Load():
                state = self.saved.get(step.slot, b"")
                self.same(lambda ctx: ctx.load_state(state[:-9] if step.damaged else state))
                self.loaded = True
            case rs.Switch():
                self.switch(step.on)
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
        for look in (rs.Positions(), rs.Logits(), rs.Embeddings(), Context.state):
            self.same(look)

    def count(self) -> None:
        assert self.standard.stats().n_ubatches_pipelined == 0
        stats = self.turbo.stats()
        self.n_pipelined += stats.n_ubatches_pipelined
        self.n_standard += stats.n_ubatches_standard

    def sibling(self, what: str) -> None:
        if what == "make" and len(self.siblings) < 2:
            self.siblings.append(self.models[1].context(**self.sizes, turboprefill=True))
        elif what == "close" and self.siblings:
            self.siblings.pop().close()
        elif self.siblings:
            prompt = rs.Decode(n=40, seqs=(0,))
            if self.options not in self.reference:
                with self.models[0].context(**self.sizes, turboprefill=False) as ctx:
                    prompt(ctx)
                    self.reference[self.options] = rs.Logits()(ctx)
            self.siblings[-1].memory.clear()
            prompt(self.siblings[-1])
            assert rs.Logits()(self.siblings[-1]) == self.reference[self.options]

    def abort(self, step: rs.Abort) -> None:
        questions = 0

        def stop() -> bool:
            nonlocal questions
            questions += 1
            if questions > step.allowed and step.raises:
                raise CallbackError
            return questions > step.allowed

        before, n_standard = self.ends(), self.turbo.stats().n_ubatches_standard
        self.turbo.set_abort_callback(stop, interval_s=0)
        result = outcome(lambda: step.decode(self.turbo))
        self.turbo.set_abort_callback(None)
        if result is CallbackError or is_failure(result, AbortedError):
            self.reconcile([step.decode], before, n_standard)
        else:
            assert outcome(lambda: step.decode(self.standard)) == result

    def fault(self, step: rs.Fault) -> None:
        """A decode that finds the fault ends the decodes; else waiting for the devices tells of it."""
        self.same(rs.Decode(1, step.decodes[0].seqs))  # not a shift or a copy of cells that was put off shall fail
        before, n_standard = self.ends(), self.turbo.stats().n_ubatches_standard
        self.turbo.synchronize()
        self.break_device(step)
        results: list[object] = []
        for decode in step.decodes:
            results.append(outcome(lambda decode=decode: decode(self.turbo)))
            if is_failure(results[-1], FatalDecodeError):
                break
        late = outcome(self.turbo.synchronize)
        self.repair()
        decodes = step.decodes[: len(results)]
        if is_failure(results[-1], FatalDecodeError):
            assert late is None  # it was told before
            self.n_failures += 1
            self.reconcile(decodes, before, n_standard, exact=not any(results[:-1]))
        elif late is not None:
            assert is_failure(late, FatalDecodeError), late
            self.n_failures += 1
            self.reconcile(decodes, before, n_standard, exact=not any(results))
        else:
            for decode, result in zip(decodes, results, strict=True):
                assert outcome(lambda decode=decode: decode(self.standard)) == result

    def ends(self) -> list[int]:
        return [self.turbo.memory.seq_pos_max(seq) for seq in range(rs.N_SEQ)]

    def reconcile(
        self, decodes: Sequence[rs.Decode], before: list[int], n_standard: int, *, exact: bool = True
    ) -> None:
        """Bring the standard context to what the pipelined one has kept of decodes that did not end well.

        Of each sequence it has kept the beginning, or nothing at all where memory cannot go back: a recurrent state,
        a window. Then the next token shows whether that is what was in front of it.
        """
        after = self.ends()
        seqs = sorted({seq for decode in decodes for seq in decode.seqs})
        pipelined = self.turbo.turboprefill and self.turbo.stats().n_ubatches_standard == n_standard
        # llama.cpp itself leaves recurrent states as they are, with the positions of what was not computed
        exact = exact and (pipelined or self.preset not in RECURRENT)
        # a window that gives cells away gave some to what was not computed: the next tokens find others than they would
        # have found, in another order, and sums are rounded in the order of cells
        # so does a whole window after a state was loaded, from which llama.cpp leaves out what no window sees
        exact = exact and (self.preset not in WINDOWS or (self.options.swa_full and not self.loaded))
        if exact and all(len(decode.seqs) == 1 for decode in decodes):
            self.replay(decodes, seqs, before, after)
        else:
            for seq in seqs:
                self.same(lambda ctx, seq=seq: ctx.memory.seq_rm(seq))
        self.same(rs.Decode(1, (seqs[0],)))  # does what was put off on the standard one too: shifts, copies
        self.same(rs.Logits())
        if self.preset == "tiny":
            self.same(Context.state)
        self.same(lambda ctx: [ctx.memory.seq_pos_max(seq) for seq in range(rs.N_SEQ)])
        state = self.turbo.state()  # the same cells on both
        self.same(lambda ctx: ctx.load_state(state))
        self.loaded = True

    def replay(self, decodes: Sequence[rs.Decode], seqs: list[int], before: list[int], after: list[int]) -> None:
        left = {}
        for seq in seqs:
            n = sum(decode.n for decode in decodes if decode.seqs[0] == seq)
            assert before[seq] <= after[seq] <= before[seq] + n or after[seq] == -1
            assert after[seq] >= before[seq] or self.preset not in DENSE
            left[seq] = after[seq] - before[seq] if after[seq] >= 0 else n
        for decode in decodes:
            seq = decode.seqs[0]
            if n := min(decode.n, left[seq]):
                kept = outcome(lambda decode=decode, n=n: decode(self.standard, n))
                assert kept is None or after[seq] < 0  # what is gone may have ended before memory was full
                left[seq] -= n
        for seq in seqs:
            if after[seq] < 0:  # only now: the others shall get the same cells, which decide how sums are rounded
                self.standard.memory.seq_rm(seq)

    def close(self) -> None:
        for ctx in (*self.siblings, self.standard, self.turbo):
            ctx.close()
        os.environ.pop("TURBOPREFILL_TRANSPORT", None)

    def check_closed(self) -> None:
        assert self.handles() == self.alive
