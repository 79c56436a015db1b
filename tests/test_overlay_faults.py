"""A device that fails in the middle of a prompt: what is reported, what is kept, and that everything goes on."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import pytest

import virtualdevices
from pipelinecounts import assert_pipelined
from turboprefill import AbortedError, Context, DecodeError, FatalDecodeError, Model, Stats, virtual
from virtualdevices import ALIVE, N, alive, configure, only, result, tokens

N_UBATCH = 8
N_UBATCHES = 12
PROMPT = tokens(N_UBATCHES * N_UBATCH)
FIRST, MIDDLE, LAST = 1, N_UBATCHES // 2, N_UBATCHES
DEVICES = {"first": 0, "middle": 1, "last": N - 1}
OPTIONS = {**virtualdevices.OPTIONS, "n_ubatch": N_UBATCH}

# what a boundary takes: between the devices, through the host, and the same in a build without copies between devices
WAYS = {"peer": "", "staged": "peer=refused", "no-events": "events=off", "slow": "split_us=1000"}

# the fault, and what llama_decode returns
FAULTS = {
    "failed": ("fail_graph={}", -3),
    "memory": ("fail_as=memory,fail_graph={}", -2),
    "aborted": ("fail_as=aborted,fail_graph={}", 2),
    "copy": ("fail_copy={}", -3),
}

# in these, a part of a sequence cannot be taken back
WHOLE = ("mamba-tiny", "jamba-tiny")

STANDARD = pytest.param(False, marks=pytest.mark.unpipelined)

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("repaired", "peer_copies"), pytest.mark.pipelined]


@dataclass
class Bench:
    """A model on all devices, its contexts, and what an undisturbed run ends with. Made once and used again."""

    model: Model
    way: str
    turboprefill: bool
    want: tuple[bytes, bytes]
    copies: list[int]  # of each device, for the prompt
    contexts: list[Context] = field(default_factory=list)
    before: Stats | None = None  # of the context, when a test gets it

    @property
    def context(self) -> Context:
        return self.contexts[0]

    @property
    def sibling(self) -> Context:
        return self.contexts[1]


@pytest.fixture
def repaired(virtual_names: list[str]) -> Iterator[None]:
    yield
    configure()


@pytest.fixture(scope="module")
def bench(virtual_names: list[str], model_file) -> Iterator[Callable[..., contextlib.AbstractContextManager[Bench]]]:
    """`with bench(preset, way) as b`: contexts that pipeline, unless told otherwise.

    One that a test fails with is not used again.
    """
    made: dict[tuple[str, str, bool], Bench] = {}
    models: dict[str, Model] = {}

    def make(preset: str, way: str, turboprefill: bool) -> Bench:
        if preset not in models:
            models[preset] = stack.enter_context(Model(model_file(preset), devices=virtual_names))
        model = models[preset]
        configure(WAYS[way])
        with model.context(**OPTIONS, turboprefill=False) as context:
            context.decode_batch(PROMPT)
            want = result(context)
        contexts = [stack.enter_context(model.context(**OPTIONS, turboprefill=turboprefill)) for _ in range(2)]
        for context in contexts:
            context.decode_batch(PROMPT)
            context.synchronize()
            if turboprefill:
                assert_pipelined(context, N_UBATCHES, standard=0)
        contexts[0].memory.clear()
        configure(WAYS[way])
        contexts[0].decode_batch(PROMPT)
        assert result(contexts[0]) == want
        return Bench(model, way, turboprefill, want, [n["copies"] for n in virtual.numbers()], contexts)

    @contextlib.contextmanager
    def use(preset: str, way: str, turboprefill: bool = True) -> Iterator[Bench]:
        key = (preset, way, turboprefill)
        if key not in made:
            made[key] = make(*key)
        one = made[key]
        for context in one.contexts:
            context.memory.clear()
        one.before = one.context.stats()
        configure(WAYS[way])
        try:
            yield one
        except BaseException:
            del made[key]
            raise

    with ExitStack() as stack:
        yield use
    assert alive() == dict.fromkeys(ALIVE, 0)


def fail(context: Context, prompt: list[int] = PROMPT, logits: str = "last") -> int:
    """Decode until the failure is reported: by this call, or by the next one if this one had returned before it."""

    def decode() -> None:
        context.decode_batch(prompt, logits=logits)
        context.synchronize()
        context.decode_batch(tokens(1, 9))

    with pytest.raises(DecodeError) as error:
        decode()
    assert isinstance(error.value, AbortedError if error.value.code == 2 else FatalDecodeError)
    return error.value.code


def n_kept(context: Context) -> int:
    return context.memory.seq_pos_max() + 1


def go_on(context: Context, prompt: list[int] = PROMPT) -> tuple[bytes, bytes]:
    """What the context ends with after the rest of the prompt."""
    context.decode_batch(prompt[n_kept(context) :])
    return result(context)


def check(bench: Bench, fault: str, device: int, ubatch: int, caplog: pytest.LogCaptureFixture) -> tuple[int, int]:
    """What must be true after a fault at this ubatch (from 1) of this device.

    Returns:
        The tokens that were kept, and the ubatches before the one that was reported.
    """
    text, code = FAULTS[fault]
    copies = bench.copies[device] // N_UBATCHES * (ubatch - 1) + 1
    n_before = bench.context.stats().n_ubatches_pipelined
    caplog.clear()
    caplog.set_level(logging.ERROR, "turboprefill.llama")
    configure(WAYS[bench.way], text.format(only(device, copies if fault == "copy" else ubatch)))

    assert fail(bench.context) == code
    kept = n_kept(bench.context)
    log = caplog.text
    if bench.turboprefill:
        assert_pipelined(bench.context, at_least=1 if fault == "copy" else ubatch, standard=0, since=bench.before)
    if fault == "copy":  # the device stays broken, for everybody
        assert fail(bench.context, PROMPT[kept:]) == code
        assert n_kept(bench.context) == kept
        assert fail(bench.sibling) == code
        assert n_kept(bench.sibling) == 0
    configure(WAYS[bench.way])

    assert go_on(bench.context) == bench.want
    assert go_on(bench.sibling) == bench.want
    if not bench.turboprefill:
        return kept, ubatch - 1
    (found,) = re.findall(r"device (\w+) failed at ubatch (\d+)", log)
    assert found[0] == f"VIRT{device}"
    assert bench.context.stats().n_ubatches_pipelined > n_before
    failed = int(found[1]) - n_before
    if fault == "copy" and bench.way in ("peer", "slow"):
        # the device before may be ahead by as many ubatches as there are places to land
        assert failed <= ubatch - 1 <= failed + 4
    else:
        assert failed == ubatch - 1
    return kept, failed


@pytest.mark.parametrize("ubatch", [FIRST, MIDDLE, LAST], ids=["first", "middle", "last"])
@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("way", WAYS)
def test_whole_ubatches_are_kept_and_the_prompt_goes_on(bench, caplog, way, fault, device, ubatch) -> None:
    with bench("tiny", way) as one:
        kept, failed = check(one, fault, device, ubatch, caplog)
        assert kept == failed * N_UBATCH


@pytest.mark.parametrize("ubatch", [FIRST, MIDDLE, LAST], ids=["first", "middle", "last"])
@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("fault", ["failed", "copy"])
@pytest.mark.parametrize("preset", ["gemma3-tiny", "gptoss-tiny", *WHOLE])
def test_memory_that_cannot_go_back_is_left_consistent(bench, caplog, preset, fault, device, ubatch) -> None:
    """The state of a recurrent model cannot be cut: then the whole sequence is gone, and the prompt starts again."""
    with bench(preset, "staged") as one:
        kept, failed = check(one, fault, device, ubatch, caplog)
        assert kept == (0 if preset in WHOLE else failed * N_UBATCH)


@pytest.mark.parametrize("ubatch", [FIRST, MIDDLE, LAST], ids=["first", "middle", "last"])
@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_a_window_that_has_moved_on_is_not_kept(bench, device, ubatch) -> None:
    """Ubatches in flight have taken the cells of what the failed one would see: going on from there would be wrong."""
    prompt = tokens(N_UBATCHES * 64)
    with bench("gemma3-tiny", "slow") as one:
        options = {**OPTIONS, "n_ctx": 1024, "n_ubatch": 64, "swa_full": False}
        with one.model.context(**options, turboprefill=False) as context:
            context.decode_batch(prompt)
            want = result(context)
        with one.model.context(**options, turboprefill=True) as context:
            configure("split_us=1000", f"fail_graph={only(device, ubatch)}")
            fail(context, prompt)
            assert_pipelined(context, at_least=ubatch, standard=0)
            assert n_kept(context) in (0, (ubatch - 1) * 64)
            assert go_on(context, prompt) == want


@pytest.mark.unpipelined
@pytest.mark.parametrize("ubatch", [FIRST, MIDDLE, LAST], ids=["first", "middle", "last"])
@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_standard_path_returns_the_same(bench, caplog, fault, device, ubatch) -> None:
    with bench("tiny", "staged", turboprefill=False) as one:
        kept, failed = check(one, fault, device, ubatch, caplog)
        assert kept == failed * N_UBATCH


@pytest.mark.parametrize("turboprefill", [STANDARD, True])
def test_a_download_that_fails_shows_in_its_bytes_and_with_the_next_graph(bench, turboprefill) -> None:
    """No call of the interface could say more: the ubatch counts as computed, on both paths."""

    def go_on_writing() -> None:
        for _ in range(2):
            one.context.decode_batch(tokens(1, 9))

    with bench("tiny", "peer", turboprefill) as one:
        configure(f"fail_download={only(N - 1, 1)}")
        one.context.decode_batch(PROMPT)
        if turboprefill:
            assert_pipelined(one.context, N_UBATCHES, standard=0, since=one.before)
        assert np.isnan(one.context.logits()).all()
        assert n_kept(one.context) == len(PROMPT)
        with pytest.raises(FatalDecodeError):
            go_on_writing()
        configure()
        assert n_kept(one.context) == len(PROMPT)
        assert one.context.state() == one.want[1]


@pytest.mark.parametrize("read", [Context.logits, Context.synchronize], ids=["logits", "synchronize"])
@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_results_of_a_failed_prompt_are_not_handed_out(bench, device, read) -> None:
    """The call has returned before the device fails. Logits of an earlier prompt must not be taken for its own."""
    with bench("tiny", "peer") as one:
        one.context.decode_batch(PROMPT[:N_UBATCH])
        assert np.isfinite(one.context.logits()).all()
        one.context.memory.clear()

        def decode() -> None:
            one.context.decode_batch(PROMPT[: 5 * N_UBATCH])
            read(one.context)

        configure("split_us=20000", f"fail_graph={only(device, 5)}")
        before = one.context.stats()
        with pytest.raises(FatalDecodeError):
            decode()
        assert_pipelined(one.context, 5, standard=0, since=before)
        assert n_kept(one.context) == 4 * N_UBATCH
        configure()
        assert go_on(one.context) == one.want  # it was reported, and is not reported again


@pytest.mark.parametrize("turboprefill", [STANDARD, True])
def test_a_model_whose_weights_did_not_arrive_computes_nothing(virtual_names, model_file, turboprefill) -> None:
    configure(f"fail_copy={only(1, 3)}")
    with (
        Model(model_file(), devices=virtual_names) as model,
        model.context(**OPTIONS, turboprefill=turboprefill) as context,
    ):
        assert fail(context) == -3
        assert n_kept(context) == 0
        if turboprefill:
            assert_pipelined(context, standard=0)


@pytest.mark.parametrize("ubatch", [FIRST, MIDDLE, LAST])
@pytest.mark.parametrize("device", [0, N - 1])
@pytest.mark.parametrize("n_batch", [8, 24])
def test_a_prompt_in_several_calls(bench, device, ubatch, n_batch) -> None:
    with bench("tiny", "slow") as one, one.model.context(**OPTIONS, n_batch=n_batch, turboprefill=True) as context:
        configure("split_us=1000", f"fail_graph={only(device, ubatch)}")
        assert fail(context, logits="none") == -3
        assert n_kept(context) == (ubatch - 1) * N_UBATCH
        assert go_on(context)[1] == one.want[1]
        assert_pipelined(context, at_least=N_UBATCHES - 1)


def test_two_devices_fail_and_the_earlier_ubatch_counts(bench) -> None:
    with bench("tiny", "slow") as one:
        configure("split_us=1000,fail_graph=7/0/0/5")
        fail(one.context)
        assert_pipelined(one.context, at_least=5, standard=0, since=one.before)
        assert n_kept(one.context) == 4 * N_UBATCH
        assert go_on(one.context) == one.want


def test_one_failure_after_another(bench) -> None:
    with bench("tiny", "peer") as one:
        for device in range(N):
            configure(f"fail_graph={only(device, 3)}")
            fail(one.context, PROMPT[n_kept(one.context) :])
            assert n_kept(one.context) == 2 * N_UBATCH * (device + 1)
        assert_pipelined(one.context, at_least=3 * N, standard=0, since=one.before)
        configure()
        assert go_on(one.context) == one.want


def test_other_sequences_keep_what_they_have(bench) -> None:
    options = {**OPTIONS, "n_seq_max": 2}
    with (
        bench("tiny", "peer") as one,
        one.model.context(**options, turboprefill=False) as standard,
        one.model.context(**options, turboprefill=True) as context,
    ):
        for each in (standard, context):
            each.decode_batch(PROMPT, seq_ids=1)
            each.synchronize()
        context.reset_stats()
        configure(f"fail_graph={only(2, MIDDLE)}")
        fail(context)
        assert_pipelined(context, at_least=MIDDLE, standard=0)
        assert context.memory.seq_pos_max(1) == len(PROMPT) - 1
        assert n_kept(context) == (MIDDLE - 1) * N_UBATCH
        standard.decode_batch(PROMPT)
        assert go_on(context) == result(standard)


@pytest.mark.parametrize("device", range(N))
@pytest.mark.parametrize("fault", ["fail_graph", "fail_copy"])
def test_close_after_a_failure_that_nobody_asked_about(bench, fault, device) -> None:
    with bench("tiny", "slow") as one:
        before, faults = alive(), virtual.counters()["faults"]
        with one.model.context(**OPTIONS, turboprefill=True) as context:
            configure("split_us=3000", f"{fault}={only(device, MIDDLE)}")
            with contextlib.suppress(DecodeError):  # it may come early enough
                context.decode_batch(PROMPT, logits="none")
            # a ubatch has a graph on each device, but several copies
            assert_pipelined(context, at_least=MIDDLE if fault == "fail_graph" else 1, standard=0)
        assert virtual.counters()["faults"] > faults
        assert alive() == before


def test_a_stall_delays_and_changes_nothing(bench) -> None:
    with bench("tiny", "peer") as one:
        configure(f"stall_graph=1/{MIDDLE}/0/{LAST},stall_ms=200")
        assert go_on(one.context) == one.want
        assert_pipelined(one.context, N_UBATCHES, standard=0, since=one.before)
