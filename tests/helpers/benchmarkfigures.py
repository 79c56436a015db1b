"""The figures of docs/benchmarks.md: each sentence with numbers, computed from the committed results."""

from __future__ import annotations

from collections.abc import Iterable

from committedresults import (
    DENSE_16K,
    DENSE_32K,
    EIGHT,
    GENERATION,
    MODELS,
    NO_PEER,
    OLD,
    bound,
    cases,
    document,
    percent_faster,
    percent_more_memory,
    percent_of_bound,
    record,
    records,
    speed,
    speedup,
    spread,
)
from figures import Figure, figure
from plannerfigures import predicted_speedup

__all__ = ["figures"]

_BALANCED, _STAGED = "turbo-balanced", "turbo-balanced-staged"
_FIRST = "pp2500 ub128 b1000"
_ODD_SIZE = "dense pp4096 ub96"
_LONGEST = "dense pp131072 ub512"


def figures() -> list[Figure]:
    """Every sentence and table row with computed numbers."""
    predicted = [predicted_speedup("moe", 36, 8, n_ubatch) for n_ubatch in (512, 128)]
    prediction = "predicts a speedup over stock of {:.2f}× at ubatch 512 and {:.1f}× at 128."
    measured = [*_files(), *_against_the_bound(), *_against_tuned(), *_sizes(), *_server(), *_capture()]
    return [*measured, figure(prediction, *predicted)]


def _range(values: Iterable[float], digits: int = 0) -> str:
    lowest, *_, highest = sorted(values)
    return f"{lowest:.{digits}f} to {highest:.{digits}f}"


def _files() -> list[Figure]:
    wide = [percent for percent in map(spread, records(EIGHT)) if percent > 1]
    names = {3: "three"}
    stock, turbo = (speed(NO_PEER, DENSE_16K, arm) for arm in ("nopeer-upstream", "nopeer-turbo"))
    share = percent_of_bound(NO_PEER, DENSE_16K, "nopeer-turbo", 4)
    return [
        figure(
            "The two samples of a case are within 1 % of each other, except in {} cases with {} %.",
            names[len(wide)],
            _range(wide, 1),
        ),
        figure(
            "The first has the 4-GPU case in a build without peer copies: {:,.0f} tok/s stock, {:,.0f} with "
            "TurboPrefill ({:.2f}×, {:.0f} % of the bound).",
            stock,
            turbo,
            turbo / stock,
            share,
        ),
    ]


def _against_the_bound() -> list[Figure]:
    def shares(*arms: str) -> list[float]:
        return [percent_of_bound(EIGHT, case, arm, 8) for arm in arms for case in cases(EIGHT, arm, "single")]

    def scaling(file: str, n: int) -> tuple[float, float, float]:
        ratio = speedup(file, DENSE_32K, _BALANCED, "single")
        return ratio, 100 * ratio / n, bound(file, DENSE_32K, n) / speed(file, DENSE_32K, "single")

    four, eight = scaling(MODELS, 4), scaling(EIGHT, 8)
    return [
        figure(
            "8 GPUs, dense, equal layers: {} % of the bound with peer or staged copies; {} % in the build without peer "
            "copies, where stock llama.cpp reaches {} %.",
            _range(shares(_BALANCED, _STAGED)),
            _range(shares("nopeer-turbo")),
            _range(shares("nopeer-upstream")),
        ),
        figure(
            "MoE gains {:.2f}× over stock at ubatch 512, because llama.cpp overlaps such large ubatches well: stock "
            "reaches {:.0f} % of the bound.",
            speedup(MODELS, "moe pp16384 ub512", _BALANCED),
            percent_of_bound(MODELS, "moe pp16384 ub512", "upstream", 4),
        ),
        figure(
            "32,768 tokens: {:.2f} times the throughput of one GPU on 4 ({:.1f} % strong scaling; a perfect pipeline "
            "would reach {:.1f}), {:.2f} times on 8 ({:.0f} %; {:.1f}).",
            *four,
            *eight,
        ),
    ]


def _against_tuned() -> list[Figure]:
    dense = [(case, arm) for arm in (_BALANCED, _STAGED) for case in cases(EIGHT, arm, "tuned")]
    usual = [percent_faster(EIGHT, *pair) for pair in dense if pair[0] != _ODD_SIZE]
    four = {
        model: [percent_faster(MODELS, case, _BALANCED) for case in cases(MODELS, _BALANCED, "tuned", model)]
        for model in ("dense", "moe", "swa", "hybrid")
    }
    first = [percent_faster(MODELS, f"{model} {_FIRST}", _BALANCED) for model in ("dense", "moe", "swa")]
    own_split = [-percent_faster(EIGHT, case, "turbo") for case in cases(EIGHT, "turbo", "tuned")]
    (dense_four,) = {f"{percent:.1f}" for percent in four["dense"]}
    return [
        figure(
            "TurboPrefill with equal layers against hand-tuned llama.cpp, 8 GPUs, dense: {} % faster in every case, "
            "except {:.1f} % with ubatches of 96 tokens.",
            _range(usual, 1),
            percent_faster(EIGHT, _ODD_SIZE, _BALANCED),
        ),
        figure(
            "On 4 GPUs: dense {} % faster, MoE {} %, sliding window {:.1f} and {:.1f} %, hybrid {:.1f} and {:.1f} "
            "times as fast; a first prompt {} % faster, hybrid {:.1f} times as fast.",
            dense_four,
            _range(four["moe"], 1),
            *sorted(four["swa"]),
            *(1 + percent / 100 for percent in sorted(four["hybrid"])),
            _range(first),
            speedup(MODELS, f"hybrid {_FIRST}", _BALANCED, "tuned"),
        ),
        figure("which has equal layers: {} % on 8 GPUs.", _range(own_split)),
        figure(
            "4 GPUs: {} % faster than hand-tuned llama.cpp for MoE and for sliding window; it chose ubatches of {} for "
            "all three models.",
            *_automatic(),
        ),
    ]


def _automatic() -> tuple[str, str]:
    """By how many percent the automatic size was faster for two models, and the size for all three, if it is one."""
    (faster,) = {f"{percent_faster(MODELS, f'{model} pp16384 ub512', 'turbo-auto'):.1f}" for model in ("moe", "swa")}
    (size,) = {r["n_prompt"] // r["turboprefill"]["n_ubatches_pipelined"] for r in records(MODELS, arm="turbo-auto")}
    return faster, str(size)


def _sizes() -> list[Figure]:
    longest, staged = record(EIGHT, _LONGEST, _BALANCED), record(EIGHT, DENSE_16K, _STAGED)["turboprefill"]
    stats, calls = longest["turboprefill"], f"{DENSE_16K} b2048"
    inputs = record(EIGHT, DENSE_16K, _BALANCED)["turboprefill"]["mem_host"]
    generation = [record(GENERATION, "dense tg128 @ d2048 ub512", arm) for arm in (_BALANCED, "upstream")]
    assert generation[0]["texts"] == generation[1]["texts"] != []
    (rate,) = {f"{r['median_ts']:.0f}" for r in generation}
    memory = [percent_more_memory(EIGHT, f"dense pp16384 ub{size}", _STAGED) for size in (512, 128)]
    arms = (_BALANCED, "tuned", "turbo-balanced-peer", "upstream")
    first = [speed(MODELS, f"dense {_FIRST}", arm) for arm in arms]
    return [
        figure(
            "Long prompts on 8 GPUs: {:.2f}× over stock at 64k; at 128k {:,.0f} tok/s against {:,.0f} for hand-tuned "
            "llama.cpp.",
            speedup(EIGHT, "dense pp65536 ub512", _BALANCED),
            *(speed(EIGHT, _LONGEST, arm) for arm in (_BALANCED, "tuned")),
        ),
        figure(
            "The attention mask of 128k tokens takes {:.0f} MB per ubatch in flight, and pinned host memory is {:.1f} "
            "GB in all.",
            longest["n_prompt"] * longest["n_ubatch"] * 2 / 1e6,
            stats["mem_host"] / 1e9,
        ),
        figure(
            "took {:.1f} s of the prompt's {:.1f} s; for {:.1f} s the caller waited for a free slot.",
            stats["t_capture_us"] / 1e6,
            longest["n_prompt"] / longest["median_ts"],
            stats["t_slot_wait_us"] / 1e6,
        ),
        figure(
            "Calls of 2,048 tokens instead of one call of 16,384, on 4 GPUs: {:,.0f} tok/s against {:,.0f}",
            speed(OLD, calls, _BALANCED),
            speed(OLD, DENSE_16K, _BALANCED),
        ),
        figure("128 tokens generated after the prompt: {} tokens per second with TurboPrefill on and off", rate),
        figure(
            "Device memory, sum of 8 GPUs at 16k: {:.1f} % more than llama.cpp at ubatch 512, {:.1f} % at 128; in the "
            "build without peer copies {:.1f} %.",
            *memory,
            percent_more_memory(EIGHT, DENSE_16K, "nopeer-turbo", "nopeer-upstream"),
        ),
        figure(
            "Pinned host memory there at ubatch 512: {:.0f} MB, of which {:.0f} MB are for the inputs of {} slots",
            staged["mem_host"] / 1e6,
            inputs / 1e6,
            staged["n_slots"],
        ),
        figure("and {:.0f} MB for boundaries.", (staged["mem_host"] - inputs) / 1e6),
        figure(
            "The first prompt of a process, 2,500 tokens in ubatches of 128, 4 GPUs: {:,.0f} tok/s with staged copies, "
            "{:,.0f} hand-tuned llama.cpp, {:,.0f} with peer copies, {:,.0f} stock",
            *first,
        ),
    ]


def _server() -> list[Figure]:
    lines = []
    results = {(row["devices"], row["turboprefill"]): row for row in document("2026-11-24-server-mix")["results"]}
    for devices in (4, 8):
        off, on = results[devices, "0"], results[devices, "1"]
        assert off["text"] == on["text"]
        parts = [[row[key] / row["bound"] for key in ("alone", "beside", "many")] for row in (off, on)]
        gap = on["gap_ms"] / off["gap_ms"]
        lines += [
            figure(
                "| {} | llama.cpp | {:.2f} | {:.2f} | | {:.2f} |\n| | TurboPrefill | {:.2f} | {:.2f} | {:.2f} of "
                "llama.cpp's | {:.2f} |",
                devices,
                *parts[0],
                *parts[1][:2],
                gap,
                parts[1][2],
            ),
        ]
    return lines


_FAMILIES = {
    "llama8": "dense, Llama-8B's layers",
    "gemma3-12b": "sliding window, Gemma-3-12B's",
    "gptoss20": "gpt-oss-20b's",
    "qwen30b-a3b": "Qwen3-30B-A3B's",
    "granite-h-micro": "hybrid, Granite-4-H-Micro's",
}


def _capture() -> list[Figure]:
    rows = document("2026-11-24-1xH100-as-4")["waits"]
    assert all(row["equal"] and set(row["waits"]) == {"result", "full slots"} for row in rows)
    lines = [figure("In all {} combinations of model family and ubatch", len(rows))]
    for family, name in _FAMILIES.items():
        times = {row["n_ubatch"]: f"{row['capture_us_per_layer']:.0f}" for row in rows if row["family"] == family}
        (layers,) = {row["n_layers"] for row in rows if row["family"] == family}
        cells = (f" {times[size]} " if size in times else " " for size in (64, 256, 512))
        lines.append(figure("| {} | {} |{}|{}|{}|", name, layers, *cells))
    return lines
