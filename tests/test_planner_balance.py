"""The split of layers: optimal against brute force, within memory, stable, and what it says when nothing fits."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turboprefill.planner import DoesNotFitError, PlanError, Seat, balance
from turboprefill.planner.split import layers_of, places_of, shares_for

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=6)
MACHINES = st.lists(
    st.tuples(st.integers(1, 4), st.none() | st.integers(0, 130), st.integers(0, 9)), min_size=1, max_size=4
)
WORK = st.lists(st.integers(0, 12), min_size=6, max_size=6)


def seats_of(machine: list[tuple[int, int | None, int]], work: list[int]) -> list[Seat]:
    return [Seat([slow * w for w in work], memory, fixed, f"D{i}") for i, (slow, memory, fixed) in enumerate(machine)]


def every_split(n: int, devices: int) -> Iterator[list[int]]:
    for counts in product(range(n + 1), repeat=devices):
        if sum(counts) == n:
            yield list(counts)


def parts(values: list[int], counts: list[int]) -> list[list[int]]:
    out, first = [], 0
    for count in counts:
        out.append(values[first : first + count])
        first += count
    return out


def lack(sizes: list[int], seats: list[Seat], counts: list[int]) -> int:
    """Bytes by which a split does not fit."""
    return sum(
        max(0, sum(part) + seat.fixed - seat.memory)
        for part, seat in zip(parts(sizes, counts), seats, strict=True)
        if part and seat.memory is not None
    )


def times(seats: list[Seat], counts: list[int]) -> list[float]:
    out, first = [], 0
    for seat, count in zip(seats, counts, strict=True):
        out.append(sum(seat.times[first : first + count]))
        first += count
    return out


@settings(max_examples=300, deadline=None)
@given(SIZES, MACHINES, WORK)
def test_the_split_is_the_best_of_all(sizes: list[int], machine: list, work: list[int]) -> None:
    seats = seats_of(machine, work[: len(sizes)])
    splits = list(every_split(len(sizes), len(seats)))
    fitting = [counts for counts in splits if lack(sizes, seats, counts) == 0]
    if not fitting:
        with pytest.raises(DoesNotFitError) as caught:
            balance(sizes, seats)
        assert caught.value.missing == min(lack(sizes, seats, counts) for counts in splits)
        assert caught.value.missing == sum(missing for _, missing in caught.value.lacking) > 0
        assert f"{caught.value.missing:,} bytes" in str(caught.value)
        return
    counts = balance(sizes, seats)
    assert counts in fitting
    best = min((max(times(seats, c)), sum(t * t for t in times(seats, c))) for c in fitting)
    assert (max(times(seats, counts)), sum(t * t for t in times(seats, counts))) == best


@settings(max_examples=100, deadline=None)
@given(SIZES, MACHINES, WORK, st.randoms())
def test_names_and_the_order_of_equal_devices_make_no_difference(sizes, machine, work, random) -> None:
    machine = sorted(machine, key=repr)  # equal devices side by side
    shuffled = [(i, device) for i, device in enumerate(machine)]
    random.shuffle(shuffled)
    shuffled.sort(key=lambda pair: repr(pair[1]))
    seats = seats_of(machine, work[: len(sizes)])
    again = [Seat([slow * w for w in work[: len(sizes)]], m, f, f"X{i}") for i, (slow, m, f) in shuffled]

    def outcome(devices: list[Seat]) -> list[int] | int:
        try:
            return balance(sizes, devices)
        except DoesNotFitError as error:
            return error.missing

    assert outcome(seats) == outcome(again)


@pytest.mark.parametrize(
    ("layers", "devices", "expected"),
    [
        (32, 8, [4] * 8),
        (32, 4, [8] * 4),
        (32, 3, [11, 11, 10]),
        (13, 2, [7, 6]),
        (80, 6, [14, 14, 13, 13, 13, 13]),
        (2, 4, [1, 1, 0, 0]),
    ],
)
def test_equal_devices_get_equal_numbers_of_layers(layers: int, devices: int, expected: list[int]) -> None:
    work = [0.0123] * layers + [0.0]
    counts = balance([10] * (layers + 1), [Seat(work)] * devices)
    holder = max(i for i, count in enumerate(counts) if count)
    counts[holder] -= 1  # the output layer
    assert counts == expected


def test_a_slow_and_a_small_device_get_less() -> None:
    work = [1.0] * 12 + [0.0]
    fast, slow = Seat(work, 1000), Seat([3 * w for w in work], 1000)
    assert balance([10] * 13, [fast, slow, fast]) == [6, 1, 6]
    small = Seat(work, 25, fixed=5)
    assert balance([10] * 13, [fast, small, fast]) == [5, 2, 6]


@pytest.mark.parametrize("times_", [[1.0], [1.0, float("nan")], [1.0, -1.0]])
def test_times_that_make_no_sense_are_refused(times_: list[float]) -> None:
    with pytest.raises(PlanError):
        balance([1, 1], [Seat(times_)])


def test_no_devices_are_refused() -> None:
    with pytest.raises(PlanError, match="no devices"):
        balance([1, 1], [])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=16).filter(lambda places: sum(places) > 1))
def test_llama_cpp_gives_back_the_places_that_shares_were_made_for(places: list[int]) -> None:
    got = places_of(shares_for(places), sum(places) - 1)
    assert [got.count(device) for device in range(len(places))] == places


def test_llama_cpps_default_split_rounds_up_at_the_front() -> None:
    assert layers_of([1] * 8, 32) == [5, 4, 4, 4, 4, 4, 4, 3]
    assert layers_of([1, 1], 8) == [5, 3]
    assert layers_of([1, 1], 13) == [7, 6]
    assert places_of([1, 0, 1], 3) == [0, 0, 2, 2]


def test_shares_that_make_no_sense_are_refused() -> None:
    for shares in ([], [0, 0], [1, -1]):
        with pytest.raises(ValueError, match="shares"):
            places_of(shares, 4)
