"""A model file, loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

from turboprefill import log, options, rpc
from turboprefill.context import Context
from turboprefill.errors import InvalidInputError, ModelLoadError
from turboprefill.native import core
from turboprefill.planner.auto import auto_split, auto_ubatch
from turboprefill.planner.live import default_devices, live_devices

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Literal

    from turboprefill.device import Device

__all__ = ["Model"]


def _check_file(path: Path) -> None:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # reading a pipe waits for a writer
            raise ModelLoadError(f"model {path} is not a regular file; give the path of a GGUF file", path=str(path))
        with path.open("rb") as file:
            magic = file.read(4)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or error
        raise ModelLoadError(f"cannot read model {path}: {reason}", path=str(path)) from error
    if magic != b"GGUF":
        msg = f"{path} is not a GGUF file: it begins with {magic!r}, expected b'GGUF'; convert the model to GGUF first"
        raise ModelLoadError(msg, path=str(path))


class Model:
    """A model in GGUF format.

    Thread-safe except for ``close``. Close it, or use it as a context manager: that closes its contexts too.

    Args:
        path: the file; the first one of a split model.
        n_gpu_layers: layers to place on devices, -1 for all.
        devices: names from :func:`turboprefill.devices`; an empty list for the CPU alone. By default all GPUs, or
            all devices of ``rpc_servers`` if those are given.
        rpc_servers: ``host:port`` of each ggml-rpc-server to use.
        tensor_split: share of the model for each device, in any unit; by default by free memory. "auto" makes the
            slowest device as fast as it can be (docs/planner.md); it reads the file, and measures nothing.
        split_mode: ``layer`` (the one that TurboPrefill pipelines), ``none``, ``row`` or ``tensor``.
        main_gpu: index of the device to use with ``split_mode="none"``.
        use_mmap: map the file into memory, where the devices allow it.
        use_mlock: keep the model in memory.
        check_tensors: look for invalid values while loading.
        vocab_only: load the tokenizer alone; such a model has no contexts.
        progress: called with 0.0 to 1.0 while loading; returning False cancels.

    Raises:
        ModelLoadError: the file is missing, damaged, not supported, or does not fit into memory.
        EndpointError: an RPC server cannot be used.
        InvalidInputError, TypeError: an option is wrong.
        PlanError: "auto" found no split, above all DoesNotFitError.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_gpu_layers: int = -1,
        devices: Sequence[str] | None = None,
        rpc_servers: Sequence[str] | None = None,
        tensor_split: Sequence[float] | Literal["auto"] | None = None,
        split_mode: Literal["layer", "none", "row", "tensor"] = "layer",
        main_gpu: int = 0,
        use_mmap: bool = True,
        use_mlock: bool = False,
        check_tensors: bool = False,
        vocab_only: bool = False,
        progress: Callable[[float], bool | None] | None = None,
    ) -> None:
        self._contexts: WeakSet[Context] = WeakSet()
        self.path = Path(path)
        self.vocab_only = vocab_only

        params = core.ModelParams()
        params.n_gpu_layers = options.integer("n_gpu_layers", n_gpu_layers, -1)
        params.main_gpu = options.integer("main_gpu", main_gpu, -1)
        params.split_mode = split_mode
        params.use_mmap = use_mmap
        params.use_mlock = use_mlock
        params.check_tensors = check_tensors
        params.vocab_only = vocab_only
        names = None if devices is None else options.strings("devices", devices)
        endpoints = options.strings("rpc_servers", rpc_servers or [])
        if isinstance(tensor_split, str):
            options.check_auto_split(tensor_split, split_mode, n_gpu_layers)
        elif tensor_split is not None:
            params.tensor_split = options.tensor_split(tensor_split, None if names is None else len(names))

        _check_file(self.path)
        with log.collect():
            remote = [name for endpoint in endpoints for name in rpc.add_server(endpoint)]
        params.devices = self._device_names = (remote or None) if names is None else names
        if isinstance(tensor_split, str):
            params.tensor_split = auto_split(self.path, self._devices())
        self._tensor_split = list(params.tensor_split)
        with log.collect() as messages:
            try:
                self._native = core.Model(os.fsencode(self.path), params, progress)
            except ModelLoadError as error:
                log.flush()
                msg = (
                    f"cannot load {self.path}: {messages.reason}. Check that the file is complete and fits into memory"
                )
                raise ModelLoadError(msg, path=str(self.path), log=str(messages)) from error
        self._read_facts()

    def _devices(self) -> list[Device]:
        """The devices that hold layers."""
        if self._device_names is None:
            return default_devices()
        return live_devices(self._device_names) if self._device_names else []

    def _read_facts(self) -> None:
        native = self._native
        self.desc: str = native.desc
        self.n_vocab: int = native.n_vocab
        self.n_ctx_train: int = native.n_ctx_train
        self.n_embd: int = native.n_embd
        self.n_embd_inp: int = native.n_embd_inp
        self.n_embd_out: int = native.n_embd_out
        self.n_pos_per_embd: int = native.n_pos_per_embd
        self.n_layer: int = native.n_layer
        self.n_params: int = native.n_params
        self.size: int = native.size
        self.token_bos: int = native.token_bos
        self.token_eos: int = native.token_eos

    def tokenize(self, text: str, add_bos: bool = True, special: bool = False) -> list[int]:
        """Token ids of a text.

        Args:
            text: any text.
            add_bos: add the special tokens that the model wants around a prompt, BOS above all.
            special: read ``<|...|>`` and the like as special tokens instead of as plain text.

        Raises:
            InvalidInputError: the model has no tokenizer, or the text is too long.
            UnicodeEncodeError: the text holds lone surrogates.
            ClosedError: the model is closed.
        """
        data = text.encode()
        with log.collect():
            return self._native.tokenize(data, add_bos, special)

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> str:
        """Text of token ids; bytes that are not valid UTF-8 become U+FFFD.

        Args:
            tokens: token ids.
            special: show special tokens instead of leaving them out.

        Raises:
            InvalidInputError: a token id is outside the vocabulary, or the model has no tokenizer.
            ClosedError: the model is closed.
        """
        with log.collect():
            return self._native.detokenize(list(tokens), special).decode(errors="replace")

    def is_eog(self, token: int) -> bool:
        """Whether a token ends the generation (EOS, end of turn, ...)."""
        return self._native.is_eog(token)

    def metadata(self) -> dict[str, str]:
        """The GGUF's metadata as text, arrays shortened."""
        return self._native.metadata()

    def context(
        self,
        *,
        n_ctx: int = 4096,
        n_batch: int = 2048,
        n_ubatch: int | Literal["auto"] = 512,
        prompt_tokens: int | None = None,
        n_seq_max: int = 1,
        turboprefill: bool = True,
        n_threads: int | None = None,
        n_threads_batch: int | None = None,
        flash_attn: bool | Literal["auto"] = "auto",
        type_k: str = "f16",
        type_v: str = "f16",
        offload_kqv: bool = True,
        op_offload: bool = True,
        embeddings: bool = False,
        pooling: Literal["default", "none", "mean", "cls", "last", "rank"] = "default",
        kv_unified: bool = False,
        swa_full: bool = True,
        perf: bool = True,
    ) -> Context:
        """Make a context: memory for sequences, and buffers to compute with.

        Args:
            n_ctx: tokens that fit into memory, 0 for the length the model was trained on. Split evenly between
                ``n_seq_max`` sequences unless ``kv_unified``. llama.cpp rounds it up to a multiple of 256.
            n_batch: tokens of one ``llama_decode`` call; ``decode_batch`` splits longer inputs.
            n_ubatch: tokens of one graph, at most ``n_batch``. "auto" takes the size that reads prompts of
                ``prompt_tokens`` tokens fastest, at most 512 (docs/planner.md). Another size gives other roundings.
            prompt_tokens: length of a usual prompt, for "auto"; by default the whole context.
            n_seq_max: independent sequences.
            turboprefill: pipeline prompts over the devices. Results are the same either way. Where it cannot be, the
                standard path is taken, and the context's ``stats().reason`` says why.
            n_threads: CPU threads for single tokens; by default half of the CPUs.
            n_threads_batch: CPU threads for longer inputs; by default as ``n_threads``.
            flash_attn: True, False, or "auto" for where it is supported.
            type_k, type_v: types of the KV cache.
            offload_kqv: keep the KV cache on the devices of its layers.
            op_offload: let devices compute with weights that are in host memory.
            embeddings: output embeddings too.
            pooling: how embeddings of a sequence become one; "default" is the model's choice.
            kv_unified: one memory for all sequences, which may then share tokens.
            swa_full: keep a full-size cache for sliding-window layers.
            perf: measure for :meth:`Context.perf`.

        Raises:
            ContextCreationError: llama.cpp refused, mostly for lack of memory.
            InvalidInputError, TypeError: an option is wrong, or the model cannot have contexts.
            ClosedError: the model is closed.
        """
        params = core.ContextParams()
        params.n_ctx = options.integer("n_ctx", n_ctx, 0, options.MAX_CTX)
        params.n_batch = options.integer("n_batch", n_batch, 1)
        params.n_ubatch = self._n_ubatch(n_ubatch, prompt_tokens, params.n_ctx, params.n_batch)
        params.n_seq_max = options.integer("n_seq_max", n_seq_max, 1, core.max_sequences())
        params.n_threads = options.threads("n_threads", n_threads)
        params.n_threads_batch = params.n_threads
        if n_threads_batch is not None:
            params.n_threads_batch = options.threads("n_threads_batch", n_threads_batch)
        params.flash_attn = options.flash_attn_name(flash_attn)
        params.pooling = pooling
        params.type_k = options.kv_type("type_k", type_k)
        params.type_v = options.kv_type("type_v", type_v)
        params.offload_kqv = offload_kqv
        params.op_offload = op_offload
        params.embeddings = embeddings
        params.kv_unified = kv_unified
        params.swa_full = swa_full
        params.perf = perf
        options.check_context(params, self.n_ctx_train)
        if self.vocab_only:
            raise InvalidInputError("a model loaded with vocab_only=True has no contexts; load it without")
        if self._native.has_encoder and self._native.has_decoder:
            raise InvalidInputError(f"{self.desc} is an encoder-decoder model, which is not supported; use a decoder")

        context = Context(self, self._native, params, turboprefill=turboprefill)
        self._contexts.add(context)
        return context

    def _n_ubatch(self, n_ubatch: int | str, prompt_tokens: int | None, n_ctx: int, n_batch: int) -> int:
        n_tokens = n_ctx or self.n_ctx_train
        if prompt_tokens is not None:
            n_tokens = options.integer("prompt_tokens", prompt_tokens, 1)
        if not isinstance(n_ubatch, str):
            return options.integer("n_ubatch", n_ubatch, 1)
        if n_ubatch != "auto":
            raise InvalidInputError(f"n_ubatch is {n_ubatch!r}; expected a number of tokens or 'auto'")
        return auto_ubatch(
            self.path, self._devices(), self._tensor_split, n_tokens, min(options.DEFAULT_UBATCH, n_batch)
        )

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._native.closed

    def close(self) -> None:
        """Close the contexts, then free the model. Waits for decodes in other threads; harmless when repeated."""
        for context in list(self._contexts):
            context.close()
        self._native.close()
        log.flush()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Model {self.path.name}: {self.desc}{', closed' if self.closed else ''}>"
