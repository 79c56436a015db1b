"""Without a tensor split, and with TURBOPREFILL on, layers go to the devices so that the slowest has least to do."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

from turboprefill import Model, ModelLoadError, synth
from turboprefill.planner import DoesNotFitError, balance
from turboprefill.planner.live import live_devices
from turboprefill.synth import archs

N_DEVICES = 3

pytestmark = pytest.mark.unpipelined  # of loading models


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
    found = [match[1] for line in lines if (match := re.search(r"layers per device: ([\d,]+) ", line))]
    return [int(count) for count in found[0].split(",")] if found else []


def placed(lines: list[str]) -> list[str]:
    """The device of each layer, as llama.cpp says."""
    return [m[1] for line in lines if (m := re.search(r"layer +\d+ assigned to device (\w+)", line))]


def every(n_units: int) -> Iterator[tuple[int, ...]]:
    """All ways to give units to the devices."""
    return (shares for shares in itertools.product(range(n_units + 1), repeat=N_DEVICES) if sum(shares) == n_units)


def slowest(shares: tuple[int, ...], n_layer: int) -> int:
    """Layers of the device with the most; the output, which comes last, counts nothing."""
    ends = itertools.accumulate(shares)
    return max(min(end, n_layer) - min(end - share, n_layer) for share, end in zip(shares, ends, strict=True))


@pytest.mark.parametrize("n_layer", [2, 3, 4, 7, 12])
def test_no_split_of_equal_devices_has_a_faster_slowest_one(load, n_layer) -> None:
    lines = load(n_layer)
    shares = counts(lines)
    assert sum(shares) == n_layer + 1
    assert slowest(tuple(shares), n_layer) == min(slowest(share, n_layer) for share in every(n_layer + 1))
    assert placed(lines) == [f"VIRT{i}" for i, share in enumerate(shares) for _ in range(share)]


def test_it_is_the_split_that_it_says(load) -> None:
    lines = load(7)
    assert placed(load(7, tensor_split=counts(lines))) == placed(lines)


@pytest.mark.parametrize("memory", ["memory_gb=0.02/1/1/1", "memory_gb=0.8/1/1/1"])
def test_devices_that_are_not_equally_free_keep_llama_cpp_s_split(load, memory) -> None:
    assert placed(load(8, memory)) == placed(load(8, memory, env={"TURBOPREFILL": "0"}))


def test_no_device_gets_more_than_its_memory(load, model_file) -> None:
    """There is little more memory than weights: with the output, which is large, there is no room for 3 layers."""
    sizes = dict.fromkeys((*range(8), "output"), 0)
    for tensor in GGUFReader(model_file("tiny", n_layers=8)).tensors:
        layer = re.match(r"blk\.(\d+)\.", tensor.name)
        key = int(layer[1]) if layer else "output"
        sizes[key] += int(tensor.n_bytes) if key != "output" or tensor.name.startswith("output") else 0
    units = list(sizes.values())

    def fullest(shares: Sequence[int]) -> int:
        starts = [sum(shares[:i]) for i in range(N_DEVICES)]
        return max(sum(units[start : start + share]) for start, share in zip(starts, shares, strict=True))

    room = min(map(fullest, every(len(units))))
    shares = counts(load(8, f"memory_gb={1.01 * room / 0.75 / 1e9:.6f}"))  # a quarter is left for other things
    assert fullest(shares) == room < fullest(counts(load(8)))


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


def write_sizes(path: Path, sizes: Sequence[int], output: int) -> None:
    """A file with so many values in each layer and in the output: enough to choose a split, not to be loaded."""
    writer = GGUFWriter(path, "llama")
    archs.add_metadata(writer, synth.shape_of("tiny", n_layers=len(sizes)))
    writer.add_tokenizer_model("no_vocab")
    for i, size in enumerate(sizes):
        writer.add_tensor(f"blk.{i}.weight", np.zeros(size, np.float32))
    writer.add_tensor("output.weight", np.zeros(output, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def planned(sizes: Sequence[int], output: int, n_devices: int, free: int, step: int = 1) -> list[int]:
    """What the planner's balance makes of the same costs and bytes; empty if nothing fits.

    With a step of -1 all is seen from the other end: of equally good splits it is then the opposite one.
    """
    n_bytes = [4 * size for size in (*sizes, output)]
    times = [*map(float, sizes), 0.0]
    room = max(int(0.75 * float(np.float32(free))), sum(n_bytes) // n_devices)
    try:
        return balance(n_bytes[::step], [times[::step]] * n_devices, [room] * n_devices)[::step]
    except DoesNotFitError:
        return []


@pytest.mark.parametrize("n_devices", [2, 3, 4])
@pytest.mark.parametrize("tight", [False, True], ids=["plenty of memory", "little memory"])
def test_the_planner_balances_as_the_engine_does(
    virtual_names, configure, monkeypatch, caplog, tmp_path, n_devices, tight
) -> None:
    """Few different sizes, so that many splits are equally good: both have to choose the same one of them."""
    monkeypatch.setenv("TURBOPREFILL", "1")
    rng, path, outcomes, n_ties = np.random.default_rng(n_devices + 10 * tight), tmp_path / "sizes.gguf", set(), 0
    for _ in range(40):
        sizes = (1000 * rng.integers(1, rng.choice([2, 4, 9]), rng.integers(2, 14))).tolist()
        output = 1000 * int(rng.integers(1, 9))
        weights = 4 * (sum(sizes) + output)
        configure(f"memory_gb={weights * (rng.uniform(1.2, 2.4) / n_devices if tight else 4) / 1e9:.9f}")
        free = live_devices(virtual_names[:1])[0].memory_free
        write_sizes(path, sizes, output)
        caplog.clear()
        with caplog.at_level(logging.INFO, "turboprefill.llama"), pytest.raises(ModelLoadError):
            Model(path, devices=virtual_names[:n_devices])
        lines = [record.getMessage() for record in caplog.records]
        want = planned(sizes, output, n_devices, free)
        assert counts(lines) == want, sizes
        assert any("not enough memory to balance" in line for line in lines) == (not want)
        outcomes.add(bool(want))
        n_ties += planned(sizes, output, n_devices, free, step=-1) != want
    assert outcomes == ({True, False} if tight else {True})
    assert n_ties > 4
