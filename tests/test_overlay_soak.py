"""A few rounds of scripts/soak, and that its verdict can be a bad one."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from soak import MAX_GROWTH_MB, Sample, Soak, problems

FLAT = Sample(0.0, 0, 100.0, 10, 5, 0, 12, 1000, 0, 0, 500, 700)


@pytest.mark.pipelined
@pytest.mark.timeout(120)
def test_a_few_rounds_leave_the_counters_as_they_were(virtual_names, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("turboprefill.llama"), "disabled", True)  # thousands of lines
    monkeypatch.setattr("soak.N_ROUNDS_BETWEEN_LOADS", 3)
    with Soak(tmp_path, ["tiny", "gptoss-tiny", "jamba-tiny"]) as soak:
        samples = [soak.sample()]  # of no round yet: it fails if nothing is pipelined
        for _ in range(3):
            for _ in range(2):
                soak.round()
            samples.append(soak.sample())
    assert [sample.handles() for sample in samples[2:]] == [samples[1].handles()] * 2
    assert soak.n_pipelined > 0


@pytest.mark.unpipelined
def test_flat_samples_are_no_problem() -> None:
    rising = [replace(FLAT, rss_mb=100 + i * MAX_GROWTH_MB / 30) for i in range(30)]
    assert list(problems(rising)) == []


@pytest.mark.unpipelined
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"open_files": 11}, "open_files was 10 after the first rounds, and 11 later"),
        ({"device_bytes": 1001}, "device_bytes was 1000"),
        ({"engine_host_bytes": 501}, "engine_host_bytes was 500"),
    ],
)
def test_a_handle_more_is_a_problem(change, words) -> None:
    assert words in next(problems([FLAT, FLAT, FLAT, replace(FLAT, **change)]))


@pytest.mark.unpipelined
def test_growing_memory_is_a_problem() -> None:
    rising = [replace(FLAT, rss_mb=100 + 0.5 * i) for i in range(40)]  # 10 at the warm-up, then 10, 10 and 10
    assert "resident memory grew by 10.0 MiB" in next(problems(rising))
