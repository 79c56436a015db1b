"""A context: sequences in memory, and what computes on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from turboprefill import log, state
from turboprefill.decode_errors import ABORTED, decode_error, late_error
from turboprefill.errors import ContextCreationError, InvalidInputError, StateError
from turboprefill.inputs import Batch, Inputs, Limits, LogitsSelection, SeqIds, make_batch
from turboprefill.memory import Memory
from turboprefill.monitor import Monitored
from turboprefill.native import core
from turboprefill.outputs import Outputs
from turboprefill.switch import switch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from numpy.typing import NDArray

    from turboprefill.model import Model

__all__ = ["Context"]

_LOGITS = core.OutputKind.LOGITS
_EMBEDDINGS = core.OutputKind.EMBEDDINGS
_NO_POOLING = 0


class Context(Monitored):
    """Made by :meth:`Model.context`.

    Use it from one thread at a time. Calls from several threads are safe, as each waits for the one before, but they
    see each other's sequences and outputs. The GIL is released while llama.cpp works.

    Attributes:
        memory: the sequences.
        n_ctx, n_batch, n_ubatch, n_seq_max: as llama.cpp set them, which may differ from what was asked for.
    """

    def __init__(self, model: Model, native: core.Model, params: core.ContextParams, *, turboprefill: bool) -> None:
        self.model = model
        self._abort_callback: Callable[[], object] | None = None
        with log.collect() as messages:
            try:
                self._native = core.Context(native, params)
            except ContextCreationError as error:
                log.flush()
                msg = f"cannot create a context: {messages.reason}. A smaller n_ctx or n_ubatch needs less memory"
                raise ContextCreationError(msg, log=str(messages)) from error
            switch(self._native, enabled=turboprefill)
        self.memory = Memory(self._native)
        self._read_facts(params)
        self._outputs = Outputs(self._native, self._widths)

    def _read_facts(self, params: core.ContextParams) -> None:
        native, model = self._native, self.model
        self.n_ctx: int = native.n_ctx
        self.n_batch: int = native.n_batch
        self.n_ubatch: int = native.n_ubatch
        self.n_seq_max: int = native.n_seq_max
        self._has_memory = native.has_memory
        self._whole = not native.has_memory or not native.causal_attn  # inputs cannot be split
        self._pooled = native.pooling != _NO_POOLING
        self._embeddings = params.embeddings
        self._limits = Limits(model.n_vocab, model.n_embd_inp, model.n_pos_per_embd, self.n_seq_max)
        self._widths: dict[core.OutputKind, int] = {}
        if not self._pooled and self._has_memory:
            self._widths[_LOGITS] = model.n_vocab
        if not self._pooled and params.embeddings:
            self._widths[_EMBEDDINGS] = model.n_embd_out
        self._belongs_to: dict[str, object] = {
            "model": model.desc,
            "n_params": model.n_params,
            "n_vocab": model.n_vocab,
            "n_seq_max": self.n_seq_max,
            "kv_unified": params.kv_unified,
            "type_k": params.type_k,
            "type_v": params.type_v,
        }

    def decode_batch(
        self,
        inputs: Inputs,
        pos: object = None,
        seq_ids: SeqIds = 0,
        logits: LogitsSelection = "last",
    ) -> None:
        """Run tokens or embeddings through the model and into memory.

        Inputs longer than ``n_batch`` are split. Only rows that are asked for before the last part make the devices
        wait between parts: with "last" and "none" nothing waits, and the call may return before the work is done.

        Args:
            inputs: token ids (n,), or embeddings as a float32 array (n, n_embd_inp).
            pos: positions (n,), for M-RoPE embeddings also (n_pos_per_embd, n); by default each sequence is continued.
            seq_ids: one sequence id, one per token, or a list of ids per token.
            logits: tokens to make output rows for: "last" of the whole input, "all", "none" or a mask of bools (n,).

        Raises:
            InvalidInputError, TypeError: the input does not fit; nothing was computed.
            NoKVSlotError: memory is full.
            InvalidBatchError: llama.cpp found the input inconsistent, mostly positions that leave a gap.
            AbortedError: the abort callback returned true. What it raises is raised instead.
            FatalDecodeError: a computation failed.
            InUseError: a zero-copy view of the outputs is alive, or the caller is an abort callback.
            ClosedError: the context is closed.

        After an error the context can be used on. Parts before the failing one stay in memory, their tokens counted
        by the error's ``n_decoded``; ``memory`` knows where each sequence ends.
        """
        pos_max = self.memory.seq_pos_max if self._has_memory else _nothing_in_memory
        if self._native.closed:
            self._native.synchronize()  # raises ClosedError, before anything is said about the input
        batch = make_batch(inputs, pos, seq_ids, logits, limits=self._limits, pos_max=pos_max)
        if self._pooled and batch.n > self.n_batch:
            raise InvalidInputError(f"pooled embeddings need the whole input in one batch: {batch.n} > {self.n_batch}")
        self._decode(batch)

    def _decode(self, batch: Batch) -> None:
        step = batch.n if self._whole else self.n_batch
        self._outputs = Outputs(self._native, self._widths)  # none, if this fails
        outputs = Outputs(self._native, self._widths, int(batch.output.sum()))
        with log.collect() as messages:
            for start in range(0, batch.n, step):
                stop = min(start + step, batch.n)
                if self._abort_callback is not None and self._abort_callback():
                    raise decode_error(ABORTED, messages, start)
                code = self._native.decode(**batch.part(start, stop, output_all=self._embeddings))
                if code != 0:
                    log.flush()
                    raise decode_error(code, messages, start)
                rows = np.flatnonzero(batch.output[start:stop]).astype(np.int32)
                if not self._embeddings:  # llama.cpp keeps only the rows that were asked for
                    rows = np.arange(len(rows), dtype=np.int32)
                outputs.made(rows, last=stop == batch.n)
        self._outputs = outputs

    def logits(self, *, copy: bool = True) -> NDArray[np.float32]:
        """Logits of the last ``decode_batch``, read-only, in the order of its tokens.

        Waits for the last of its ubatches that has some; what is in flight behind that goes on.

        Args:
            copy: by default the array is a copy, made once per ``decode_batch``, and good for ever. False gives a
                view of llama.cpp's buffer where the rows lie in it together: while it, or anything sliced from it, is
                alive, ``decode_batch`` raises InUseError; it outlives ``close()``.

        Returns:
            float32 (n_outputs, n_vocab); no rows if the last ``decode_batch`` failed or asked for none.

        Raises:
            InvalidInputError: this context makes no logits (embedding models, pooled embeddings).
            DecodeError: as :meth:`synchronize`.
            ClosedError: the context is closed.
        """
        if _LOGITS not in self._widths:
            raise InvalidInputError("this context makes embeddings, not logits; use embeddings()")
        return self._rows(_LOGITS, copy)

    def embeddings(self, seq_id: int | None = None, *, copy: bool = True) -> NDArray[np.float32]:
        """Embeddings of the last ``decode_batch``, in a context with ``embeddings=True``. Waits as :meth:`logits` does.

        Args:
            seq_id: the sequence, if embeddings are pooled.
            copy: as in :meth:`logits`; pooled embeddings are copied always.

        Returns:
            float32 (n_outputs, n_embd_out), read-only; of one sequence (n_embd_out,), or its ranks (n_classes,).

        Raises:
            InvalidInputError: this context makes no embeddings, or none of this sequence.
            DecodeError: as :meth:`synchronize`.
            ClosedError: the context is closed.
        """
        if self._pooled:
            if seq_id is None:
                raise InvalidInputError("embeddings are pooled in this context; pass seq_id")
            self._wait(self._native.results)
            return self._native.seq_embeddings(seq_id)
        if _EMBEDDINGS not in self._widths:
            raise InvalidInputError("this context makes no embeddings; create it with embeddings=True")
        if seq_id is not None:
            raise InvalidInputError("embeddings are not pooled in this context; leave out seq_id")
        return self._rows(_EMBEDDINGS, copy)

    def _rows(self, kind: core.OutputKind, copy: bool) -> NDArray[np.float32]:
        self._wait(self._native.results)
        return self._outputs.rows(kind, copy=copy)

    def synchronize(self) -> None:
        """Wait until everything that was decoded is computed.

        Raises:
            DecodeError: a device failed after its ``decode_batch`` had returned, of the class that this would have
                raised. Memory then holds what was computed, and there are no outputs.
            ClosedError: the context is closed.
        """
        self._wait(self._native.synchronize)

    def _wait(self, wait: Callable[[], int]) -> None:
        with log.collect() as messages:
            code = wait()
        if code != 0:
            self._outputs = Outputs(self._native, self._widths)
            raise late_error(code, messages)

    def generate(self, prompt_tokens: Inputs, max_tokens: int, seq_id: int = 0) -> Iterator[int]:
        """Continue a sequence greedily: of equal logits the lowest token id.

        Lazy: each step decodes one token more. It ends before a token that ends the generation.

        Args:
            prompt_tokens: token ids (n,), appended to what the sequence holds.
            max_tokens: most tokens to generate; the last of them is not decoded.
            seq_id: the sequence.

        Raises:
            As :meth:`decode_batch`, while iterating.
        """
        if max_tokens < 0:
            raise InvalidInputError(f"max_tokens is {max_tokens}; expected at least 0")
        return self._generate(prompt_tokens, max_tokens, seq_id)

    def _generate(self, inputs: Inputs, max_tokens: int, seq_id: int) -> Iterator[int]:
        for _ in range(max_tokens):
            self.decode_batch(inputs, seq_ids=seq_id)
            token = int(self.logits()[-1].argmax())
            if self.model.is_eog(token):
                return
            yield token
            inputs = [token]

    def state(self) -> bytes:
        """The contents of memory, for :meth:`load_state`; not the outputs. Waits for the devices.

        Raises:
            DecodeError: as :meth:`synchronize`: what a device failed to compute is not in memory.
            StateError: llama.cpp could not save it.
            ClosedError: the context is closed.
        """
        self.synchronize()
        with log.collect():
            return self._native.state(state.pack_header(self._belongs_to))

    def load_state(self, data: bytes | bytearray | memoryview) -> None:
        """Replace the contents of memory by a saved state. Outputs are forgotten.

        Raises:
            StateError: it is damaged or belongs to another model or kind of context (memory is unchanged then), or
                it does not fit (memory is empty then).
            ClosedError: the context is closed.
        """
        content = state.unpack(data, self._belongs_to)
        with log.collect() as messages:
            self._outputs = Outputs(self._native, self._widths)
            loaded = self._native.load_state(content)
        if not loaded:
            raise StateError(f"llama.cpp could not load the state: {messages.reason}")

    @property
    def turboprefill(self) -> bool:
        """Whether prompts are pipelined, where they can be.

        Setting it waits for the devices. If they lack the memory for the change, it stays as it was and a warning with
        the reason is logged; ``stats().reason`` has it, too.
        """
        return self._native.turboprefill

    @turboprefill.setter
    def turboprefill(self, enabled: bool) -> None:
        switch(self._native, enabled=enabled)

    def set_abort_callback(self, callback: Callable[[], object] | None, *, interval_s: float = 0.02) -> None:
        """Ask a function whether to stop: before each ``llama_decode``, and while the CPU computes.

        It may run in another thread and must not use the context. What it raises stops the decode and is raised
        there. llama.cpp does not ask while other devices compute.

        Args:
            callback: returns true to stop; None removes it.
            interval_s: seconds that pass before it is asked again within a decode.
        """
        if callback is not None and not callable(callback):
            raise TypeError(f"the abort callback is {callback!r}; expected a callable or None")
        self._native.set_abort_callback(callback, interval_s)
        self._abort_callback = callback

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._native.closed

    def close(self) -> None:
        """Free the context. Waits for a decode in another thread; harmless when repeated."""
        self._native.close()
        log.flush()

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Context of {self.model.path.name}: n_ctx {self.n_ctx}{', closed' if self.closed else ''}>"


def _nothing_in_memory(_: int) -> int:
    return -1
