"""Random sequences of calls on a pipelined and on a standard context, side by side; no outcome may differ.

The normal run makes the same few examples every time. `scripts/random_tests SECONDS SEED` makes others for as long as
it is told. The example at hand is in .pytest_cache/d/random/example.txt, for when the process ends in it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

import randomsteps as rs
from pipelinecounts import assert_pipelined
from randomrig import N_VIRTUAL, Rig
from turboprefill import Model, virtual

log = logging.getLogger(__name__)

# preset, devices, and examples of a normal run
CASES = [
    ("tiny", "virtual", 50),
    ("moe-tiny", "virtual", 15),
    ("gptoss-tiny", "virtual", 30),
    ("gemma3-tiny", "virtual", 30),
    ("mamba-tiny", "virtual", 20),
    ("jamba-tiny", "virtual", 20),
    ("granite-hybrid-tiny", "virtual", 15),
    ("tiny", "rpc", 6),
    ("gptoss-tiny", "rpc", 3),
    ("jamba-tiny", "rpc", 3),
]
N_STEPS = 30


def run(
    models: tuple[Model, Model], preset: str, where: str, note: Path, n_examples: int, seed: int, counts: Counter[str]
) -> None:
    reference: dict[rs.Options, object] = {}
    is_virtual = where == "virtual"

    @hypothesis.seed(f"{preset} {seed}")
    @hypothesis.settings(
        max_examples=n_examples, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(
        rs.options,
        rs.properties if is_virtual else st.none(),
        st.lists(rs.steps_and_faults if is_virtual else rs.steps, min_size=8, max_size=N_STEPS),
    )
    def example(options: rs.Options, properties: rs.Properties | None, steps: list[object]) -> None:
        note.write_text(f"{preset!r}, {options!r}, {properties!r},\n{steps!r}\n", encoding="utf-8")
        rig = Rig(models, preset, options, properties, reference)
        with ExitStack() as stack:
            stack.callback(rig.close)
            for step in steps:
                rig.step(step)
                counts["steps"] += 1
            rig.check()
            rig.count()
        rig.check_closed()
        counts["examples"] += 1
        counts["ubatches pipelined"] += rig.n_pipelined
        counts["ubatches not pipelined"] += rig.n_standard
        counts["faults"] += rig.n_failures

    log.info("seed %d: `scripts/random_tests 0 %d` makes the same examples", seed, seed)
    example()


def load_models(stack: ExitStack, path: Path, where: str, names: str | None, rpc_workers) -> tuple[Model, Model]:
    """For the standard and for the pipelined context."""
    if where == "virtual" and not names:
        known = virtual.loaded()
        if known and len(known) != N_VIRTUAL:
            pytest.skip(f"this process has {len(known)} virtual devices already")
        devices = virtual.load(str(N_VIRTUAL))
        stack.callback(virtual.load, str(N_VIRTUAL))
        standard, turbo = (stack.enter_context(Model(path, devices=some)) for some in (devices[:1], devices[1:]))
        return standard, turbo
    given = {"devices": names.split(",")[:2]} if names else {"rpc_servers": rpc_workers(2)}
    both = stack.enter_context(Model(path, **given))
    return both, both


def check_that_it_pipelines(model: Model) -> None:
    """Before the examples: without a pipeline they would only compare the standard path with itself."""
    with model.context(n_ctx=256, n_ubatch=8, n_threads=1, turboprefill=True) as context:
        rs.Decode(40, (0,))(context)
        context.synchronize()
        assert_pipelined(context, 5, standard=0)


@pytest.mark.pipelined
@pytest.mark.parametrize(("preset", "where", "n_examples"), CASES, ids=lambda value: str(value))
def test_any_sequence_of_calls(
    preset: str,
    where: str,
    n_examples: int,
    model_file,
    rpc_workers,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(logging.getLogger("turboprefill.llama"), "disabled", True)  # thousands of lines
    seconds, seed = (request.config.getoption(name) for name in ("--random-seconds", "--random-seed"))
    names = request.config.getoption("--devices")
    if names and where == "rpc":
        pytest.skip("the devices were chosen by --devices")
    cache = getattr(request.config, "cache", None)  # none with -p no:cacheprovider
    note = (cache.mkdir("random") if cache else tmp_path) / "example.txt"
    end = time.monotonic() + seconds / len(CASES)
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        models = load_models(stack, model_file(preset), where, names, rpc_workers)
        kind = "given" if names else where
        check_that_it_pipelines(models[1])
        run(models, preset, kind, note, n_examples, seed, counts)
        while time.monotonic() < end:
            seed += 1
            run(models, preset, kind, note, n_examples, seed, counts)
    log.info("%s on %s devices: %s", preset, kind, ", ".join(f"{n} {what}" for what, n in counts.items()))
    assert counts["ubatches pipelined"] > counts["ubatches not pipelined"]
    assert counts["faults"] > 0 or kind != "virtual"
