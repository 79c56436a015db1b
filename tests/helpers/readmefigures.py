"""The README's figures: each sentence with numbers, computed from the committed results, and the constants."""

from __future__ import annotations

import json

from committedresults import DENSE_16K, DENSE_32K, EIGHT, GENERATION, MODELS, ROOT, speed, speedup
from figures import Constant, Figure, figure

__all__ = ["CONSTANTS", "figures"]

_AUTO, _BALANCED, _STAGED = "turbo-auto", "turbo-balanced", "turbo-balanced-staged"
_GENERATION = "dense tg128 @ d2048 ub512"

CONSTANTS = (
    Constant("Python 3.10+", "the version in pyproject.toml; test_docs compares them"),
    Constant("exits with 0", "an exit code"),
    Constant("rebuilt with 16 input copies", "a setting of the arm `tuned`"),
    Constant("llama.cpp#24219", "the number of an issue"),
)


def figures() -> list[Figure]:
    """Every sentence with computed numbers except the results table, which `readme_table.py --check` compares."""
    staged = [speed(EIGHT, f"dense pp16384 ub{size}", _STAGED) for size in (512, 128)]
    return [
        figure("about {} marked lines that it inserts into llama.cpp", 50 * round(_inserted_lines() / 50)),
        figure(
            "The 8-GPU rows were measured with peer copies; staged copies, the default since, reached {:,.0f} and "
            "{:,.0f} at ubatches of 512 and 128.",
            *staged,
        ),
        figure("At 32k, 4 GPUs are {:.2f} times as fast as one.", speedup(MODELS, DENSE_32K, _BALANCED, "single")),
        figure(
            "the dense model on 8 GPUs reaches {:,.0f} at 16k ({:.2f}×) and {:,.0f} at 4k ({:.2f}×);",
            speed(EIGHT, DENSE_16K, _AUTO),
            speedup(EIGHT, DENSE_16K, _AUTO),
            speed(EIGHT, "dense pp4096 ub512", _AUTO),
            speedup(EIGHT, "dense pp4096 ub512", _AUTO),
        ),
        figure(
            "on 4 GPUs at 16k, MoE reaches {:,.0f}, sliding window {:,.0f}, hybrid {:,.0f}.",
            *(speed(MODELS, f"{model} pp16384 ub512", _AUTO) for model in ("moe", "swa", "hybrid")),
        ),
        figure(
            "No gain: MoE with llama.cpp's own split at ubatch 512, short prompts on few GPUs (2k on 4 GPUs: "
            "{:.2f}×), and generation ({:.0f} against {:.0f}).",
            speedup(GENERATION, "dense pp2048 ub512", _BALANCED),
            speed(GENERATION, _GENERATION, _BALANCED),
            speed(GENERATION, _GENERATION, "upstream"),
        ),
    ]


def _inserted_lines() -> int:
    hooks = json.loads((ROOT / "overlay" / "hooks.json").read_text(encoding="utf-8"))["hooks"]
    return sum(len(hook["lines"]) for hook in hooks)
