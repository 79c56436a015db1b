from __future__ import annotations

import dataclasses
import io
import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from turboprefill import Span, plots
from turboprefill.cli import app
from turboprefill.demo import picture, prompt, report, settings, timeline
from turboprefill.demo.measure import Arm, Result, Workload, busy_percent

PINNED = {
    "prompt_tokens": int,
    "n_ubatch": int,
    "devices": list,
    "standard": dict,
    "turbo": dict,
    "speedup": float,
    "logits_identical": bool,
    "state_identical": bool,
}


def span(device: str, stage: int, ubatch: int, start: int, end: int, *, pipelined: bool = False) -> Span:
    return Span(device=device, stage=stage, ubatch=ubatch, pipelined=pipelined, t_start_us=start, t_end_us=end)


def staircase(n: int) -> list[Span]:
    spans = []
    for ubatch in range(n):
        start = 200 * ubatch
        spans += [span("A", 0, ubatch, start, start + 100), span("B", 1, ubatch, start + 100, start + 200)]
    return spans


def pipelined(n: int) -> list[Span]:
    return [
        span("AB"[stage], stage, ubatch, 100 * (ubatch + stage), 100 * (ubatch + stage + 1), pipelined=True)
        for ubatch in range(n)
        for stage in (0, 1)
    ]


@pytest.fixture
def result() -> Result:
    standard = Arm("standard", False, [2.0, 2.1, 1.9], 0, 4, "disabled", {b"l"}, {b"s"}, {b"p"}, staircase(4))
    turbo = Arm("TurboPrefill", True, [1.0, 1.05, 0.95], 4, 0, "", {b"l"}, {b"s"}, {b"p"}, pipelined(4))
    workload = Workload("model.gguf", "text", None, 128, 2048, 3)
    return Result(workload, 512, 512, 448, "tiny", standard, turbo, [("A", "none"), ("B", "staged")], ["A", "B"])


def words(result: Result) -> str:
    console = Console(file=io.StringIO(), width=200, record=True)
    report.show(result, console)
    return console.export_text()


def test_json_has_exactly_the_promised_keys_first(result: Result, tmp_path: Path) -> None:
    report.write_json(result, tmp_path / "result.json")
    data = json.loads((tmp_path / "result.json").read_text())
    assert list(data)[: len(PINNED)] == list(PINNED)
    assert {key: type(data[key]) for key in PINNED} == PINNED
    assert data["devices"] == ["A", "B"]
    assert set(data["standard"]) == {"tok_per_s"}
    assert set(data["turbo"]) == {"tok_per_s", "pipelined_ubatches", "standard_ubatches"}
    assert data["standard"]["tok_per_s"][0] == 256
    assert data["speedup"] == 2.0
    assert data["logits_identical"] is data["state_identical"] is True


def test_identical_results_are_said_to_be(result: Result) -> None:
    text = words(result)
    assert "2.00 times as fast" in text
    assert "Logits are byte-identical" in text
    assert "state" in text
    assert "DIFFER" not in text
    assert "50/50%" in text
    assert "80/80%" in text


@pytest.mark.parametrize("field", ["logits", "prefix_logits"])
def test_different_logits_are_said_loudly(result: Result, field: str) -> None:
    getattr(result.turbo, field).add(b"other")
    assert not result.logits_identical
    assert result.state_identical
    assert "LOGITS DIFFER" in words(result)


def test_a_different_state_is_said_loudly(result: Result) -> None:
    result.turbo.states = {b"other"}
    assert not result.state_identical
    assert "THE STATE DIFFERS" in words(result)


def test_ubatches_that_were_not_pipelined_are_explained(result: Result) -> None:
    result.turbo = dataclasses.replace(result.turbo, pipelined_ubatches=1, standard_ubatches=3, reason="[one] device")
    assert "3 of 4 ubatches took the standard path even with TurboPrefill: [one] device" in words(result)


def test_it_is_explained_if_nothing_was_pipelined_at_all(result: Result) -> None:
    result.turbo = dataclasses.replace(result.turbo, pipelined_ubatches=0, standard_ubatches=0, reason="")
    assert "NOTHING WAS PIPELINED: 0 of 0 ubatches took the standard path: no reason was given" in words(result)


def cells(result: Result) -> dict[str, list[str]]:
    """The table's rows by their first cell."""
    rows = [[cell.strip() for cell in line.split("\u2502")] for line in words(result).splitlines() if "\u2502" in line]
    return {row[0]: row[1:] for row in rows}


def test_speedups_are_over_stock_llama_cpp_if_that_was_measured(result: Result) -> None:
    assert [cells(result)[name][3] for name in ("standard", "TurboPrefill")] == ["1.00x", "2.00x"]
    result.shipped = Arm("stock llama.cpp", False, [4.0, 4.0, 4.0], 0, 4)
    rows = [cells(result)[name] for name in ("stock llama.cpp", "standard", "TurboPrefill")]
    assert [row[0] for row in rows] == ["128", "256", "512"]
    assert [row[1] for row in rows] == ["4.00 s", "2.00 s", "1.00 s"]
    assert [row[3] for row in rows] == ["1.00x", "2.00x", "4.00x"]
    assert "4.00 times as fast as stock llama.cpp" in words(result)
    assert report.as_json(result)["speedup_over_as_shipped"] == 4.0


def test_the_spread_is_half_of_the_range_over_the_median(result: Result) -> None:
    result.turbo.seconds = [0.8, 1.0, 1.25]  # 640, 512 and 409.6 tokens per second
    assert cells(result)["TurboPrefill"][2] == "22%"
    result.turbo.seconds = [1.0]
    assert cells(result)["TurboPrefill"][2:5] == ["0%", "2.00x", "1"]


@pytest.mark.parametrize("identical", [True, False])
def test_the_demo_ends_with_1_if_the_bytes_differ(
    result: Result, monkeypatch: pytest.MonkeyPatch, identical: bool
) -> None:
    if not identical:
        result.turbo.states = {b"other"}
    monkeypatch.setattr("turboprefill.cli.demo._measure", lambda _options: result)
    done = CliRunner().invoke(app, ["demo", "--virtual", "2", "--no-picture"])
    assert done.exit_code == (0 if identical else 1)
    assert ("THE STATE DIFFERS" in done.output) is not identical


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_demo_ends_with_the_code_of_the_process_that_measures(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    commands: list[list[str]] = []

    def run(n: int, command: Callable[[list[str]], list[str]]) -> int:
        commands.append(command([f"127.0.0.1:{i}" for i in range(n)]))
        return code

    monkeypatch.setattr("turboprefill.demo.choices.needs_workers", lambda _options: True)
    monkeypatch.setattr("turboprefill.demo.supervise.run_with_workers", run)
    done = CliRunner().invoke(app, ["demo", "--workers", "3", "--n-prompt", "7", "--no-picture"])
    assert done.exit_code == code
    ((*_, ubatches, repeats, rpc, endpoints, picture),) = [command[-7:] for command in commands]
    assert (rpc, endpoints, picture) == ("--rpc", "127.0.0.1:0,127.0.0.1:1,127.0.0.1:2", "--no-picture")
    assert (ubatches, repeats) == ("--repeats", "3")
    assert commands[0][commands[0].index("--n-prompt") + 1] == "7"


def test_nothing_pipelined_is_no_success_and_no_speedup(result: Result) -> None:
    shipped = dataclasses.replace(result.standard, name="stock llama.cpp", seconds=[3.0])
    workload = dataclasses.replace(result.workload, shipped_ubatch=512)
    turbo = dataclasses.replace(result.turbo, pipelined_ubatches=0, standard_ubatches=4, reason="[one] device")
    nothing = dataclasses.replace(result, workload=workload, turbo=turbo, shipped=shipped)
    text = words(nothing)
    assert not nothing.pipelined
    assert "NOTHING WAS PIPELINED: 4 of 4 ubatches took the standard path: [one] device." in text
    assert "times as fast" not in text
    assert "times the speed" not in text
    assert not re.search(r"\d\.\d\dx", text)
    assert "3.00 times as fast as stock llama.cpp" in words(dataclasses.replace(nothing, turbo=result.turbo))


@pytest.mark.parametrize(
    ("pipelined", "state", "code"), [(4, b"s", 0), (1, b"s", 0), (0, b"s", 1), (4, b"other", 1), (0, b"other", 1)]
)
def test_the_exit_code_needs_pipelined_ubatches_and_the_same_bytes(
    result: Result, monkeypatch: pytest.MonkeyPatch, pipelined: int, state: bytes, code: int
) -> None:
    from turboprefill.demo import choices, measure

    turbo = dataclasses.replace(result.turbo, pipelined_ubatches=pipelined, states={state})
    measured = dataclasses.replace(result, turbo=turbo)
    monkeypatch.setattr(choices, "needs_workers", lambda options: False)
    monkeypatch.setattr(choices, "choose_workload", lambda options, note: measured.workload)
    monkeypatch.setattr(measure, "run", lambda workload, note: measured)
    done = CliRunner().invoke(app, ["demo", "--no-picture"])
    assert done.exit_code == code, done.output
    assert ("NOTHING WAS PIPELINED" in done.output) == (pipelined == 0)
    assert ("STATE DIFFERS" in done.output) == (state != b"s")


def test_a_slower_run_is_not_called_faster(result: Result) -> None:
    result.turbo.seconds = [4.0]
    assert "at 0.50 times the speed" in words(result)


def test_busy_counts_overlapping_spans_once() -> None:
    spans = [span("A", 0, 0, 0, 60), span("A", 0, 1, 40, 80), span("B", 1, 0, 60, 100)]
    assert busy_percent(spans) == {"A": 80.0, "B": 40.0}
    assert busy_percent([]) == {}


def test_the_picture_shows_devices_in_the_order_of_their_stages(tmp_path: Path) -> None:
    spans = [span("Z", 0, 0, 0, 10), span("A", 1, 0, 10, 20), span("M", 2, 0, 20, 30)]
    assert picture.rows(spans, []) == ["Z", "A", "M"]
    timeline.draw(tmp_path / "t.png", spans, staircase(20), "title")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text directly inside it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.open: list[int] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), ""))
        if tag != "meta":
            self.open.append(len(self.found) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.found[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            name, attributes, text = self.found[self.open[-1]]
            self.found[self.open[-1]] = (name, attributes, text + data)

    def named(self, tag: str, kind: str | None = None) -> list[dict[str, str | None]]:
        return [a for name, a, _ in self.found if name == tag and kind in (None, a.get("class"))]

    def texts(self, tag: str) -> list[str]:
        return [text for name, _, text in self.found if name == tag]


def test_the_html_has_a_bar_for_each_device_and_ubatch_of_both_paths(tmp_path: Path) -> None:
    timeline.draw(tmp_path / "t.html", staircase(4), pipelined(4), "title <of> it")
    page = Elements((tmp_path / "t.html").read_text())
    assert page.open == []
    bars = page.named("rect", "bar")
    assert len(bars) == 16
    assert page.texts("h1") == ["title <of> it"]
    labels = page.texts("text")
    assert labels.count("A") == labels.count("B") == 2
    assert "standard path: 1 ms" in labels
    assert "TurboPrefill: 0 ms" in labels  # half a millisecond
    assert "time, ms" in labels
    assert "A, ubatch 0: 0.00 to 0.10 ms (0.10 ms)" in page.texts("title")
    assert len({bar["fill"] for bar in bars}) == 4
    assert any("one colour per ubatch" in text for text in labels)
    ends = [float(bar["x"] or 0) + float(bar["width"] or 0) for bar in bars]
    assert max(ends[:8]) == pytest.approx(1000 / 1.01, abs=0.1)
    assert max(ends[8:]) == pytest.approx(max(ends[:8]) * 5 / 8, abs=0.1)  # over the same axis


def test_the_html_loads_nothing_and_escapes_names(tmp_path: Path) -> None:
    timeline.draw(tmp_path / "t.HTML", [span("<b>&", 0, 0, 0, 10)], [], "title")
    text = (tmp_path / "t.HTML").read_text()
    assert not any(word in text for word in ("://", "src=", "href", "<script", "@import", "<b>"))
    assert "<b>&" in Elements(text).texts("text")


@pytest.mark.parametrize("name", ["t.png", "t.html"])
def test_a_picture_of_nothing_is_still_a_picture(tmp_path: Path, name: str) -> None:
    timeline.draw(tmp_path / name, [], [], "nothing")
    assert (tmp_path / name).stat().st_size > 0


def test_without_matplotlib_the_picture_is_html(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert timeline.default_path() == Path("turboprefill-demo.png")
    timeline.check(Path("t.png"))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert timeline.default_path() == Path("turboprefill-demo.html")
    timeline.check(Path("t.html"))
    for draw in (timeline.check, lambda path: timeline.draw(path, [], [], "title")):
        with pytest.raises(plots.PlotsMissingError, match=r"t\.png: .*pip install 'turboprefill\[plots\]'"):
            draw(tmp_path / "t.png")
    assert not (tmp_path / "t.png").exists()


def test_a_png_without_matplotlib_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = CliRunner().invoke(app, ["demo", "--png", "x.png"])
    assert result.exit_code == 1
    assert "pip install 'turboprefill[plots]'" in result.stderr
    assert "workers" not in result.stderr


def test_ratios_must_be_numbers() -> None:
    assert settings.split_ratios("3, 1.5") == [3.0, 1.5]
    assert settings.split_ratios(None) is None
    for wrong in ("a,b", "1,-2"):
        with pytest.raises(settings.DemoError, match="expected numbers"):
            settings.split_ratios(wrong)


def test_an_unreadable_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(settings.DemoError, match="cannot read the prompt"):
        prompt.read_text(tmp_path / "missing")
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(settings.DemoError, match="is empty"):
        prompt.read_text(tmp_path / "empty")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(settings.DemoError, match="UTF-8"):
        prompt.read_text(tmp_path / "binary")


def test_the_synthetic_model_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBOPREFILL_CACHE", str(tmp_path))
    notes: list[str] = []
    first = settings.synthetic_model("tiny", notes.append)
    stamp = first.stat().st_mtime_ns
    assert settings.synthetic_model("tiny", notes.append) == first
    assert first.stat().st_mtime_ns == stamp
    assert len(notes) == 1


def test_a_full_disk_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURBOPREFILL_CACHE", str(tmp_path))
    monkeypatch.setattr(settings, "_SPARE_BYTES", 1 << 60)
    with pytest.raises(settings.DemoError, match="Make room"):
        settings.synthetic_model("tiny")
    assert not list(tmp_path.rglob("*.gguf"))


def test_only_this_machine_is_loopback() -> None:
    assert settings.is_loopback(["127.0.0.1:1", "localhost:2"])
    assert not settings.is_loopback(["127.0.0.1:1", "10.0.0.2:2"])
    assert not settings.is_loopback(None)


def test_a_machine_without_spare_cores_is_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr("os.getloadavg", lambda: (0.2, 0.0, 0.0))
    assert settings.crowded(2) == ""
    assert "5 workers on 4 cores" in settings.crowded(5)
    monkeypatch.setattr("os.getloadavg", lambda: (6.0, 0.0, 0.0))
    assert "load 6.0 on 4 cores" in settings.crowded(2)
