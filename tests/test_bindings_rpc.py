"""Models over RPC servers."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

import turboprefill as tp
from pipelinecounts import assert_pipelined
from turboprefill import rpc
from turboprefill.native import core

PROMPT = list(range(10, 110))


@pytest.mark.pipelined
def test_two_servers_compute_the_same_and_are_registered_once(model_file, rpc_workers):
    endpoints = rpc_workers(2)
    path = model_file("tiny-f16")  # the local CPU computes with quantised weights in another order
    options = {"n_ctx": 256, "n_ubatch": 32, "n_threads": 1}
    with tp.Model(path, devices=[]) as local, local.context(**options) as context:
        context.decode_batch(PROMPT)
        expected = context.logits()

    before = {device.name for device in tp.devices()}
    for _ in range(2):
        with tp.Model(path, rpc_servers=endpoints, tensor_split=[1, 1]) as model:
            context = model.context(**options)
            context.decode_batch(PROMPT)
            assert_pipelined(context, 4, standard=0)
            np.testing.assert_array_equal(context.logits(), expected)
    added = [device for device in tp.devices() if device.name not in before]
    assert len(added) <= 2
    remote = [device for device in tp.devices() if device.description in endpoints]
    assert sorted(device.description for device in remote) == sorted(endpoints)

    with tp.Model(path, rpc_servers=endpoints, devices=[remote[1].name]) as model:
        context = model.context(**options)
        context.decode_batch(PROMPT)
        np.testing.assert_array_equal(context.logits(), expected)


@pytest.mark.pipelined
def test_a_context_goes_on_after_another_one_of_its_workers_is_closed(model_file, rpc_workers) -> None:
    """A worker forgets the graph that it was told to repeat when it frees a buffer, and would end the connection."""
    sizes = {"n_ctx": 256, "n_ubatch": 16, "n_threads": 1, "n_threads_batch": 1}
    with tp.Model(model_file("tiny"), rpc_servers=rpc_workers(2)) as model, model.context(**sizes) as context:
        context.decode_batch(range(300, 340))
        assert_pipelined(context, 3, standard=0)
        with model.context(**sizes):
            context.decode_batch([301])
            context.decode_batch([301])  # the same graph as before: told to repeat
        context.decode_batch([301])
        with context.trace():  # has a buffer on each worker
            context.decode_batch([301])
        context.decode_batch([301])
        assert context.logits().shape == (1, model.n_vocab)


@pytest.mark.parametrize(
    "endpoint",
    ["", "host", "host:", ":1", "host:0", "host:65536", "host:-1", "host:1.0", "host:\u0663\u0663", "host:x"],
)
def test_what_is_not_an_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(tp.EndpointError, match="not of the form host:port") as error:
        rpc.parse_endpoint(endpoint)
    assert error.value.endpoint == endpoint


@pytest.mark.parametrize(
    ("endpoint", "parts"), [("host:1", ("host", 1)), ("h:65535", ("h", 65535)), ("::1:7", ("::1", 7))]
)
def test_an_endpoint_has_a_host_and_a_port(endpoint: str, parts: tuple[str, int]) -> None:
    assert rpc.parse_endpoint(endpoint) == parts


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """The endpoint of a server that sends this to its one client, and what it received."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                received.append(connection.recv(100))
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}", received
        thread.join()


def hello(major: int, minor: int, size: int = 28) -> bytes:
    return struct.pack("<QBB", size, major, minor) + bytes(26)


@pytest.mark.parametrize(
    ("spoken", "fits"),
    [((5, 3), True), ((5, 2), True), ((5, 0), True), ((5, 4), False), ((4, 3), False), ((6, 0), False)],
)
def test_servers_of_an_older_minor_version_are_good_enough(
    monkeypatch: pytest.MonkeyPatch, spoken: tuple[int, int], fits: bool
) -> None:
    monkeypatch.setattr(rpc, "core", SimpleNamespace(RPC_PROTOCOL=(5, 3)))
    with answering(hello(*spoken)) as (endpoint, received):
        if fits:
            rpc._check(endpoint)
        else:
            with pytest.raises(tp.EndpointError, match=rf"speaks protocol {spoken[0]}\.{spoken[1]}, this package 5\.3"):
                rpc._check(endpoint)
    assert received == [struct.pack("<BQ", 14, 24) + bytes(24)]


def test_an_answer_of_another_size_is_not_one_of_an_rpc_server() -> None:
    with (
        answering(hello(*core.RPC_PROTOCOL, size=29)) as (endpoint, _),
        pytest.raises(tp.EndpointError, match="it answered with 29 bytes instead of 28") as error,
    ):
        rpc._check(endpoint)
    assert error.value.endpoint == endpoint


@pytest.mark.parametrize(("error", "gone"), [(TimeoutError(), False), (ConnectionRefusedError(), True)])
def test_a_known_server_that_is_busy_is_not_gone(monkeypatch: pytest.MonkeyPatch, error: OSError, gone: bool) -> None:
    def connect(*_arguments: object, **_options: object) -> socket.socket:
        raise error

    monkeypatch.setattr(rpc.socket, "create_connection", connect)
    monkeypatch.setattr(rpc, "_added", {"127.0.0.1:1"})
    assert rpc.silent_servers() == ["127.0.0.1:1"] * gone
    monkeypatch.setattr(
        rpc, "core", SimpleNamespace(has_rpc_server=lambda _: True, add_rpc_server=lambda name: [f"device of {name}"])
    )
    if gone:
        with pytest.raises(tp.EndpointError, match="used before by this process, is gone"):
            rpc.add_server("127.0.0.1:1")
    else:
        assert rpc.add_server("127.0.0.1:1") == ["device of 127.0.0.1:1"]
