"""The split of layers: optimal against brute force, within memory, stable, and what it says when nothing fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turboprefill.planner import DoesNotFitError, PlanError, balance
from turboprefill.planner.split import device_of_units, layers_per_device, shares_for, units_per_device

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=6)
MACHINES = st.lists(
    st.tuples(st.integers(1, 4), st.none() | st.integers(0, 130), st.integers(0, 9)), min_size=1, max_size=4
)
WORK = st.lists(st.integers(0, 12), min_size=6, max_size=6)


@dataclass(frozen=True)
class Device:
    """Arguments of the balance for one device; `fixed` bytes are needed as soon as there is at least one unit."""

    times: list[float]
    memory: int | None = None
    fixed: int = 0
    name: str = ""


def balanced(sizes: list[int], devices: list[Device]) -> list[int]:
    capacities = [None if device.memory is None else device.memory - device.fixed for device in devices]
    return balance(sizes, [device.times for device in devices], capacities, [device.name for device in devices])


def devices_of(machine: list[tuple[int, int | None, int]], work: list[int]) -> list[Device]:
    return [Device([slow * w for w in work], memory, fixed, f"D{i}") for i, (slow, memory, fixed) in enumerate(machine)]


def every_split(n: int, n_devices: int) -> Iterator[list[int]]:
    for counts in product(range(n + 1), repeat=n_devices):
        if sum(counts) == n:
            yield list(counts)


def parts(values: list[int], counts: list[int]) -> list[list[int]]:
    out, first = [], 0
    for count in counts:
        out.append(values[first : first + count])
        first += count
    return out


def lack(sizes: list[int], devices: list[Device], counts: list[int]) -> int:
    """Bytes by which a split does not fit."""
    return sum(
        max(0, sum(part) + device.fixed - device.memory)
        for part, device in zip(parts(sizes, counts), devices, strict=True)
        if part and device.memory is not None
    )


def times(devices: list[Device], counts: list[int]) -> list[float]:
    out, first = [], 0
    for device, count in zip(devices, counts, strict=True):
        out.append(sum(device.times[first : first + count]))
        first += count
    return out


@settings(max_examples=300, deadline=None)
@given(SIZES, MACHINES, WORK)
def test_the_split_is_the_best_of_all(sizes: list[int], machine: list, work: list[int]) -> None:
    devices = devices_of(machine, work[: len(sizes)])
    splits = list(every_split(len(sizes), len(devices)))
    fitting = [counts for counts in splits if lack(sizes, devices, counts) == 0]
    if not fitting:
        with pytest.raises(DoesNotFitError) as caught:
            balanced(sizes, devices)
        assert caught.value.missing == min(lack(sizes, devices, counts) for counts in splits)
        assert caught.value.missing == sum(missing for _, missing in caught.value.lacking) > 0
        assert f"{caught.value.missing:,} bytes" in str(caught.value)
        return
    counts = balanced(sizes, devices)
    assert counts in fitting
    best = min((max(times(devices, c)), sum(t * t for t in times(devices, c))) for c in fitting)
    assert (max(times(devices, counts)), sum(t * t for t in times(devices, counts))) == best
    as_good = [c for c in fitting if (max(times(devices, c)), sum(t * t for t in times(devices, c))) == best]
    assert counts[::-1] == max(c[::-1] for c in as_good)  # the last devices get more


@settings(max_examples=100, deadline=None)
@given(SIZES, MACHINES, WORK, st.randoms())
def test_names_and_the_order_of_equal_devices_make_no_difference(sizes, machine, work, random) -> None:
    machine = sorted(machine, key=repr)  # equal devices side by side
    shuffled = [(i, device) for i, device in enumerate(machine)]
    random.shuffle(shuffled)
    shuffled.sort(key=lambda pair: repr(pair[1]))
    devices = devices_of(machine, work[: len(sizes)])
    again = [Device([slow * w for w in work[: len(sizes)]], m, f, f"X{i}") for i, (slow, m, f) in shuffled]

    def outcome(devices: list[Device]) -> list[int] | int:
        try:
            return balanced(sizes, devices)
        except DoesNotFitError as error:
            return error.missing

    assert outcome(devices) == outcome(again)


@pytest.mark.parametrize(
    ("layers", "devices", "expected"),
    [
        (32, 8, [4] * 8),
        (32, 4, [8] * 4),
        (32, 3, [10, 11, 11]),
        (13, 2, [6, 7]),
        (80, 6, [13, 13, 13, 13, 14, 14]),
        (2, 4, [0, 0, 1, 1]),
    ],
)
def test_equal_devices_get_equal_numbers_of_layers(layers: int, devices: int, expected: list[int]) -> None:
    work = [0.0123] * layers + [0.0]
    counts = balanced([10] * (layers + 1), [Device(work)] * devices)
    holder = max(i for i, count in enumerate(counts) if count)
    counts[holder] -= 1  # the output layer
    assert counts == expected


def test_a_slow_and_a_small_device_get_less() -> None:
    work = [1.0] * 12 + [0.0]
    fast, slow = Device(work, 1000), Device([3 * w for w in work], 1000)
    assert balanced([10] * 13, [fast, slow, fast]) == [5, 1, 7]
    small = Device(work, 25, fixed=5)
    assert balanced([10] * 13, [fast, small, fast]) == [5, 2, 6]


@pytest.mark.parametrize("times_", [[1.0], [1.0, float("nan")], [1.0, -1.0]])
def test_times_that_make_no_sense_are_refused(times_: list[float]) -> None:
    with pytest.raises(PlanError):
        balanced([1, 1], [Device(times_)])


def test_no_devices_are_refused() -> None:
    with pytest.raises(PlanError, match="no devices"):
        balanced([1, 1], [])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=16).filter(lambda units: sum(units) > 1))
def test_llama_cpp_gives_back_the_units_that_shares_were_made_for(units: list[int]) -> None:
    assert units_per_device(shares_for(units), sum(units) - 1) == units


def test_llama_cpps_default_split_rounds_up_at_the_front() -> None:
    assert layers_per_device([1] * 8, 32) == [5, 4, 4, 4, 4, 4, 4, 3]
    assert layers_per_device([1, 1], 8) == [5, 3]
    assert layers_per_device([1, 1], 13) == [7, 6]
    assert device_of_units([1, 0, 1], 3) == [0, 0, 2, 2]


def test_shares_that_make_no_sense_are_refused() -> None:
    for shares in ([], [0, 0], [1, -1]):
        with pytest.raises(ValueError, match="shares"):
            device_of_units(shares, 4)
