"""Models over RPC servers."""

from __future__ import annotations

import numpy as np
import pytest

import turboprefill as tp
from pipelinecounts import assert_pipelined

PROMPT = list(range(10, 110))

pytestmark = pytest.mark.pipelined


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
