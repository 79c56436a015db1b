"""Nothing a caller passes ends the process: each mistake is an exception that names the value."""

from __future__ import annotations

import contextlib
import socket
import threading

import numpy as np
import pytest

import turboprefill as tp
from turboprefill import native, rpc


@pytest.fixture(scope="module")
def model(model_file):
    with tp.Model(model_file("tiny")) as model:
        yield model


@pytest.fixture
def context(model):
    with model.context(n_ctx=256, n_batch=64, n_ubatch=32, n_seq_max=2, n_threads=1) as context:
        yield context


BAD_INPUTS = {
    "no tokens": (([],), {}, ValueError, "empty"),
    "text": (("hello",), {}, TypeError, "tokenize"),
    "bytes": ((b"hello",), {}, TypeError, "tokenize"),
    "floats": (([1.5],), {}, TypeError, "float64"),
    "bools": (([True],), {}, TypeError, "bool"),
    "nested": (([[1, 2]],), {}, ValueError, "shape"),
    "ragged": (([[1, 2], [3]],), {}, ValueError, "tokens"),
    "negative token": (([1, -1],), {}, ValueError, r"tokens\[1\] is -1"),
    "token beyond the vocabulary": (([5, 100000],), {}, ValueError, r"tokens\[1\] is 100000"),
    "token beyond 64 bits": (([2**70],), {}, (ValueError, TypeError), "tokens"),
    "double embeddings": ((np.zeros((2, 256)),), {}, TypeError, "float32"),
    "narrow embeddings": ((np.zeros((2, 7), np.float32),), {}, ValueError, r"\(2, 7\)"),
    "flat embeddings": ((np.zeros(7, np.float32),), {}, ValueError, r"\(7,\)"),
    "no embeddings": ((np.zeros((0, 256), np.float32),), {}, ValueError, "empty"),
    "sequence beyond n_seq_max": (([1],), {"seq_ids": 2}, ValueError, r"seq_ids\[0\] is 2"),
    "negative sequence": (([1],), {"seq_ids": [-1]}, ValueError, "is -1"),
    "too few sequences": (([1, 2],), {"seq_ids": [0]}, ValueError, "1 entries for 2 tokens"),
    "token without sequence": (([1, 2],), {"seq_ids": [[0], []]}, ValueError, r"seq_ids\[1\]"),
    "token twice in a sequence": (([1],), {"seq_ids": [[0, 0]]}, ValueError, "each once"),
    "shared token": (([1],), {"seq_ids": [[0, 1]]}, ValueError, "kv_unified"),
    "no sequence": (([1],), {"seq_ids": None}, TypeError, "seq_ids"),
    "negative position": (([1],), {"pos": [-1]}, ValueError, r"pos\[0\] is -1"),
    "huge position": (([1],), {"pos": [2**31 - 1]}, ValueError, "pos"),
    "too few positions": (([1, 2],), {"pos": [0]}, ValueError, r"shape \(1,\)"),
    "float positions": (([1],), {"pos": [0.0]}, TypeError, "pos"),
    "rows of positions for tokens": (([1, 2],), {"pos": np.zeros((4, 2), int)}, ValueError, "shape"),
    "unknown selection": (([1],), {"logits": "first"}, ValueError, "'first'"),
    "short mask": (([1, 2],), {"logits": [True]}, ValueError, "mask"),
    "mask of ints": (([1],), {"logits": [1]}, TypeError, "bools"),
}


@pytest.mark.parametrize(("args", "options", "kind", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_input_is_refused_and_the_context_stays_usable(context, args, options, kind, message):
    with pytest.raises(kind, match=message):
        context.decode_batch(*args, **options)
    assert context.memory.seq_pos_max() == -1
    context.decode_batch([1, 2, 3])
    assert context.memory.seq_pos_max() == 2


def arguments(**changes):
    one = np.array([0], np.int32)
    return {
        "tokens": one,
        "embd": None,
        "pos": one,
        "n_seq_id": np.array([1], np.int32),
        "seq_id": one,
        "output": np.array([1], np.int8),
    } | changes


NATIVE_BAD = {
    "too many tokens": {
        "tokens": np.zeros(65, np.int32),
        "pos": np.arange(65, dtype=np.int32),
        "n_seq_id": np.ones(65, np.int32),
        "seq_id": np.zeros(65, np.int32),
        "output": np.ones(65, np.int8),
    },
    "no tokens": {
        "tokens": np.zeros(0, np.int32),
        "pos": np.zeros(0, np.int32),
        "n_seq_id": np.zeros(0, np.int32),
        "seq_id": np.zeros(0, np.int32),
        "output": np.zeros(0, np.int8),
    },
    "neither": {"tokens": None},
    "both": {"embd": np.zeros((1, 256), np.float32)},
    "no sequence": {"n_seq_id": np.zeros(1, np.int32), "seq_id": np.zeros(0, np.int32)},
    "counts beyond ids": {"n_seq_id": np.array([5], np.int32)},
    "sequence out of range": {"seq_id": np.array([2], np.int32)},
    "token out of range": {"tokens": np.array([-1], np.int32)},
    "missing position": {"pos": np.zeros(0, np.int32)},
    "position out of range": {"pos": np.array([-1], np.int32)},
    "wide embeddings": {"tokens": None, "embd": np.zeros((1, 257), np.float32)},
    "flat embeddings": {"tokens": None, "embd": np.zeros(256, np.float32)},
}


@pytest.mark.parametrize("changes", NATIVE_BAD.values(), ids=NATIVE_BAD)
def test_the_native_module_does_not_rely_on_the_checks_above_it(context, changes):
    with pytest.raises(tp.InvalidInputError):
        context._native.decode(**arguments(**changes))
    assert context._native.decode(**arguments()) == 0


def test_the_native_module_takes_arrays_of_the_right_type_only(context):
    with pytest.raises(TypeError):
        context._native.decode(**arguments(tokens=np.zeros(1, np.int64)))
    with pytest.raises(TypeError):
        context._native.decode(**arguments(output=np.zeros(1, bool)))


def test_a_gap_in_positions_is_an_invalid_batch(context):
    context.decode_batch([1, 2, 3])
    with pytest.raises(tp.InvalidBatchError, match="inconsistent sequence positions") as caught:
        context.decode_batch([4], pos=[7])
    assert (caught.value.code, caught.value.n_decoded) == (-1, 0)
    assert isinstance(caught.value, ValueError)
    assert context.logits().shape[0] == 0
    context.decode_batch([4])
    assert context.memory.seq_pos_max() == 3


def test_a_full_memory_is_no_kv_slot_and_says_what_was_decoded(model):
    with model.context(n_ctx=256, n_batch=64, n_ubatch=32, n_threads=1) as context:
        with pytest.raises(tp.NoKVSlotError, match="larger n_ctx") as caught:
            context.decode_batch([1] * 300)
        assert (caught.value.code, caught.value.n_decoded) == (1, 256)
        assert context.memory.seq_pos_max() == 255
        context.memory.clear()
        context.decode_batch([1] * 256)


BAD_CONTEXTS = {
    "unknown": ({"n_contxt": 1}, TypeError, "n_contxt"),
    "negative n_ctx": ({"n_ctx": -1}, ValueError, "n_ctx is -1"),
    "truth as n_ctx": ({"n_ctx": True}, TypeError, "n_ctx is True"),
    "float n_ctx": ({"n_ctx": 512.0}, TypeError, "n_ctx"),
    "no n_batch": ({"n_batch": 0}, ValueError, "n_batch is 0"),
    "no n_ubatch": ({"n_ubatch": 0}, ValueError, "n_ubatch is 0"),
    "no sequences": ({"n_seq_max": 0}, ValueError, "n_seq_max is 0"),
    "too many sequences": ({"n_seq_max": 257}, ValueError, "n_seq_max is 257"),
    "more sequences than a batch": ({"n_seq_max": 64, "n_batch": 32}, ValueError, "a batch holds 32"),
    "no threads": ({"n_threads": 0}, ValueError, "n_threads is 0"),
    "type": ({"type_k": "i32"}, ValueError, "type_k is 'i32'"),
    "flash_attn": ({"flash_attn": "yes"}, ValueError, "flash_attn"),
    "pooling": ({"pooling": "sum"}, ValueError, "pooling"),
    "quantized V without flash attention": (
        {"type_v": "q8_0", "flash_attn": False},
        tp.ContextCreationError,
        "flash_attn",
    ),
    "huge n_ctx": ({"n_ctx": 2**31 - 1}, ValueError, "n_ctx is 2147483647"),
}


@pytest.mark.parametrize(("options", "kind", "message"), BAD_CONTEXTS.values(), ids=BAD_CONTEXTS)
def test_bad_context_options_are_refused(model, options, kind, message):
    with pytest.raises(kind, match=message):
        model.context(**options)


BAD_MODELS = {
    "unknown": ({"n_gpu_layer": 1}, TypeError, "n_gpu_layer"),
    "device": ({"devices": ["CUDA99"]}, ValueError, "'CUDA99'; there are: CPU"),
    "device list": ({"devices": "CUDA0"}, TypeError, "devices"),
    "host device": ({"devices": ["CPU"]}, ValueError, "always in use"),
    "split mode": ({"split_mode": "layers"}, ValueError, "'layers'"),
    "n_gpu_layers": ({"n_gpu_layers": -2}, ValueError, "n_gpu_layers is -2"),
    "negative share": ({"tensor_split": [1, -1]}, ValueError, "tensor_split"),
    "no share": ({"tensor_split": [0, 0]}, ValueError, "tensor_split"),
    "shares and devices": ({"tensor_split": [1, 1], "devices": []}, ValueError, "2 entries for 0 devices"),
    "many shares": ({"tensor_split": [1] * 99}, ValueError, "99 entries"),
    "endpoint": ({"rpc_servers": ["nowhere"]}, tp.EndpointError, "host:port"),
    "endpoint list": ({"rpc_servers": "127.0.0.1:1"}, TypeError, "rpc_servers"),
}


@pytest.mark.parametrize(("options", "kind", "message"), BAD_MODELS.values(), ids=BAD_MODELS)
def test_bad_model_options_are_refused(model_file, options, kind, message):
    with pytest.raises(kind, match=message):
        tp.Model(model_file("tiny"), **options)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(tp.ModelLoadError, match=r"nothing\.gguf: No such file") as caught:
        tp.Model(tmp_path / "nothing.gguf")
    assert caught.value.path.endswith("nothing.gguf")


def test_a_folder_is_no_model(tmp_path):
    with pytest.raises(tp.ModelLoadError, match="directory"):
        tp.Model(tmp_path)


def test_a_file_of_another_format_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(tp.ModelLoadError, match="is not a GGUF"):
        tp.Model(path)


@pytest.mark.parametrize("fraction", [0.0001, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused_with_the_reason(model_file, tmp_path, fraction):
    data = model_file("tiny").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: max(4, int(len(data) * fraction))])
    with pytest.raises(tp.ModelLoadError, match=r"cut\.gguf.*complete") as caught:
        tp.Model(path)
    assert caught.value.log


def test_loading_can_be_cancelled_and_its_errors_come_through(model_file):
    with pytest.raises(tp.ModelLoadError):
        tp.Model(model_file("tiny"), progress=lambda _: False)

    def fail(_):
        raise KeyError("from the callback")

    with pytest.raises(KeyError, match="from the callback"):
        tp.Model(model_file("tiny"), progress=fail)
    seen = []
    tp.Model(model_file("tiny"), progress=seen.append).close()
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_a_vocabulary_alone_makes_no_context(model_file):
    with tp.Model(model_file("tiny"), vocab_only=True) as model:
        assert model.tokenize("hello")
        with pytest.raises(tp.InvalidInputError, match="vocab_only"):
            model.context()


@pytest.mark.parametrize("tokens", [[-1], [10**6]])
def test_detokenize_refuses_unknown_tokens(model, tokens):
    with pytest.raises(tp.InvalidInputError, match="token 0 is"):
        model.detokenize(tokens)


def test_tokenize_refuses_what_is_no_text(model):
    with pytest.raises(AttributeError):
        model.tokenize(7)
    with pytest.raises(UnicodeEncodeError):
        model.tokenize("\ud800")


@pytest.mark.parametrize("seq_id", [-1, 2, 300])
def test_memory_refuses_unknown_sequences(context, seq_id):
    memory = context.memory
    calls = [
        lambda: memory.seq_rm(seq_id),
        lambda: memory.seq_cp(0, seq_id),
        lambda: memory.seq_keep(seq_id),
        lambda: memory.seq_add(seq_id, 0, None, 1),
        lambda: memory.seq_pos_min(seq_id),
        lambda: memory.seq_pos_max(seq_id),
    ]
    for call in calls:
        with pytest.raises(tp.InvalidInputError, match=f"is {seq_id}"):
            call()


def test_memory_refuses_shifts_out_of_range(context):
    context.decode_batch([1] * 8)
    for delta in (-1, 2**31 - 8):
        with pytest.raises(tp.InvalidInputError, match="leaves the range"):
            context.memory.seq_add(0, None, None, delta)
    context.memory.seq_add(0, 4, None, 100)
    context.memory.clear()


def test_damaged_and_foreign_states_are_refused_and_change_nothing(context, model, model_file):
    context.decode_batch([1, 2, 3])
    state = context.state()
    flipped = bytearray(state)
    flipped[len(state) // 2] ^= 1
    with model.context(n_ctx=256, n_threads=1) as other:
        foreign = other.state()
    for bad in (b"", b"x" * 100, state[:-1], state[: len(state) // 2], bytes(flipped), foreign):
        with pytest.raises(tp.StateError):
            context.load_state(bad)
        assert context.memory.seq_pos_max() == 2
    context.load_state(memoryview(state))


def test_a_state_that_does_not_fit_leaves_the_memory_empty(model):
    with model.context(n_ctx=512, n_threads=1) as large, model.context(n_ctx=256, n_threads=1) as small:
        large.decode_batch([1] * 400)
        with pytest.raises(tp.StateError, match="could not load"):
            small.load_state(large.state())
        assert small.memory.seq_pos_max() == -1
        small.decode_batch([1])


def test_an_unreachable_endpoint_says_what_to_start(model_file):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        port = taken.getsockname()[1]
        with pytest.raises(tp.EndpointError, match="ggml-rpc-server") as caught:
            tp.Model(model_file("tiny"), rpc_servers=[f"127.0.0.1:{port}"])
    assert caught.value.endpoint == f"127.0.0.1:{port}"


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", None], ids=["closes", "http", "silent"])
def test_another_service_at_the_endpoint_is_no_rpc_server(model_file, monkeypatch, answer):
    monkeypatch.setattr(rpc, "_CONNECT_TIMEOUT_S", 0.2)
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                if answer is None:
                    done.wait(10)
                else:
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with pytest.raises(tp.EndpointError):
                tp.Model(model_file("tiny"), rpc_servers=[f"127.0.0.1:{server.getsockname()[1]}"])
        finally:
            done.set()
            thread.join()


def test_a_service_that_answers_byte_by_byte_is_given_up(model_file, monkeypatch):
    monkeypatch.setattr(rpc, "_CONNECT_TIMEOUT_S", 0.3)
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip():
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                while not done.wait(0.1):  # each is in time
                    connection.sendall(b"\0")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            with pytest.raises(tp.EndpointError, match="did not answer within"):
                tp.Model(model_file("tiny"), rpc_servers=[f"127.0.0.1:{server.getsockname()[1]}"])
        finally:
            done.set()
            thread.join()


def test_the_rpc_server_is_installed():
    assert native.rpc_server_path().is_file()
