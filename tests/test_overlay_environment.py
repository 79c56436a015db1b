"""Numbers and words in environment variables that make no sense: a warning names them, and the default is used."""

from __future__ import annotations

import pytest

from turboprefill import Model
from virtualdevices import OPTIONS

pytestmark = pytest.mark.unpipelined


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("TURBOPREFILL_SLOTS", "abc", "TURBOPREFILL_SLOTS=abc: expected a number from 1 to 1024; using the default"),
        ("TURBOPREFILL_SLOTS", "0", "TURBOPREFILL_SLOTS=0: expected a number from 1 to 1024; using the default"),
        ("TURBOPREFILL_SLOTS", "4x", "TURBOPREFILL_SLOTS=4x: expected a number from 1 to 1024; using the default"),
        ("TURBOPREFILL_HOST_MB", "-1", "TURBOPREFILL_HOST_MB=-1: expected a number from 1 to 1e+08; using the default"),
        ("TURBOPREFILL_HOST_MB", "inf", "TURBOPREFILL_HOST_MB=inf: expected a number from 1 to 1e+08"),
        ("TURBOPREFILL_UBATCH", "auto:8x", "TURBOPREFILL_UBATCH=auto:8x: expected auto, auto:TOKENS or off; using off"),
        ("TURBOPREFILL_WATCHDOG_S", "soon", "TURBOPREFILL_WATCHDOG_S=soon: expected a number from 0 to 1e+06"),
        ("TURBOPREFILL_TRANSPORT", "pigeon", "TURBOPREFILL_TRANSPORT=pigeon: expected staged or peer; using staged"),
    ],
)
@pytest.mark.usefixtures("configure")
def test_a_value_that_makes_no_sense_is_named(
    model_file, virtual_names, monkeypatch: pytest.MonkeyPatch, caplog, name: str, value: str, said: str
) -> None:
    def slots() -> int:
        with (
            Model(model_file("tiny"), devices=virtual_names) as model,
            model.context(**OPTIONS, n_ubatch=8, turboprefill=True) as context,
        ):
            return context.stats().n_slots

    usual = slots()
    assert usual > 0
    caplog.clear()
    monkeypatch.setenv(name, value)
    assert slots() == usual
    assert said in caplog.text


@pytest.mark.usefixtures("configure")
def test_a_number_of_slots_is_taken(model_file, virtual_names, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setenv("TURBOPREFILL_SLOTS", "9")
    with (
        Model(model_file("tiny"), devices=virtual_names) as model,
        model.context(**OPTIONS, n_ubatch=8, turboprefill=True) as context,
    ):
        assert context.stats().n_slots == 9
    assert "TURBOPREFILL_SLOTS" not in caplog.text
