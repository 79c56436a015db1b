"""Without a tensor split, and with TURBOPREFILL on, layers go to the devices so that the slowest has least to do."""

from __future__ import annotations

import itertools
import logging
import re

import pytest

from turboprefill import Model

N_DEVICES = 3


@pytest.fixture
def load(virtual_names, configure, model_file, monkeypatch, caplog):
    """Load a model of so many layers; the log lines of that."""

    def load(n_layer: int, memory: str = "", env: dict[str, str] | None = None, **options) -> list[str]:
        for name, value in ({"TURBOPREFILL": "1"} if env is None else env).items():
            monkeypatch.setenv(name, value)
        configure(*([memory] if memory else []))
        caplog.clear()
        path = model_file("tiny", n_layers=n_layer)
        with (
            caplog.at_level(logging.DEBUG, "turboprefill.llama"),
            Model(path, devices=virtual_names[:N_DEVICES], **options),
        ):
            pass
        return [record.getMessage() for record in caplog.records]

    return load


def counts(lines: list[str]) -> list[int]:
    """Units per device that the log tells of; the output is the last unit."""
    found = [match[1] for line in lines if (match := re.search(r"layers per device ([\d,]+),", line))]
    return [int(count) for count in found[0].split(",")] if found else []


def placed(lines: list[str]) -> list[str]:
    """The device of each layer, as llama.cpp says."""
    return [m[1] for line in lines if (m := re.search(r"layer +\d+ assigned to device (\w+)", line))]


def slowest(shares: tuple[int, ...], n_layer: int) -> int:
    """Layers of the device with the most; the output, which comes last, counts nothing."""
    ends = itertools.accumulate(shares)
    return max(min(end, n_layer) - min(end - share, n_layer) for share, end in zip(shares, ends, strict=True))


@pytest.mark.parametrize("n_layer", [2, 3, 4, 7, 12])
def test_no_split_of_equal_devices_has_a_faster_slowest_one(load, n_layer) -> None:
    lines = load(n_layer)
    shares = counts(lines)
    assert sum(shares) == n_layer + 1
    every = (s for s in itertools.product(range(n_layer + 2), repeat=N_DEVICES) if sum(s) == n_layer + 1)
    assert slowest(tuple(shares), n_layer) == min(slowest(share, n_layer) for share in every)
    assert placed(lines) == [f"VIRT{i}" for i, share in enumerate(shares) for _ in range(share)]


def test_it_is_the_split_that_it_says(load) -> None:
    lines = load(7)
    assert placed(load(7, tensor_split=counts(lines))) == placed(lines)


def test_a_device_with_little_memory_gets_what_fits(load) -> None:
    everything = load(8)
    short = load(8, "memory_gb=0.004/1/1/1")
    assert placed(short).count("VIRT0") < placed(everything).count("VIRT0")


@pytest.mark.parametrize(
    "env",
    [{"TURBOPREFILL": "0"}, {"TURBOPREFILL": "1", "TURBOPREFILL_SPLIT": "off"}],
    ids=["disabled", "split off"],
)
def test_llama_cpp_s_own_split_stays_where_it_is_wanted(load, env) -> None:
    assert counts(load(8, env=env)) == []


def test_a_split_that_is_given_stays(load) -> None:
    lines = load(8, tensor_split=[1, 1, 7])
    assert counts(lines) == []
    assert placed(lines).count("VIRT2") == 7
