"""The numbers of docs/benchmarks.md that are not computed from results, each with its reason."""

from __future__ import annotations

from figures import Constant

__all__ = ["CONSTANTS"]

_DEFINITIONS = "what was run or where: a size, a count of devices, a version, a number of the list"


def _constants(reason: str, *texts: str, no_data: bool = False) -> list[Constant]:
    return [Constant(text, reason, no_data) for text in texts]


CONSTANTS = [
    *_constants(
        _DEFINITIONS,
        "\n1. One warm-up",
        "\n2. `--repeats`",
        "\n3. One run",
        "\n4. One run",
        "![8 GPUs",
        "![4 GPUs",
        "all arms, 2 rounds",
        "except the dense one on 8 GPUs",
        "1 round and part of a second",
        "device memory, 1 round",
        "36 layers on 8 GPUs",
        "ubatches of 256 tokens and more",
        "prompts of 1,600 tokens, ubatches of 32, calls of 128",
        "8 prompts at once |",
        "8 devices are never all busy",
        "One H100 that",
        "prompt of 4,096 tokens",
        "ubatch 64 | 256 | 512",
    ),
    *_constants(
        "observed during development; the raw data was not kept",
        "10,257 against 10,239 tok/s on 4 GPUs, 18,040 against 17,914 on 8",
        "gained up to 2 %",
        "was 0.1 to 0.7 % faster than TurboPrefill with peer copies (16k, ubatch 512:",
        "and 1.9 % at 2.5k in ubatches of 128",
        "on 8 GPUs (16k, ubatch 512, 897 ms in all)",
        "took 719 ms",
        "busy 99.9 % of that",
        "copies took 2.5 % of it",
        "5.5 ms passed before it",
        "and 173 ms after it",
        "one prompt on 4 devices reached 0.96 of the bound, llama.cpp 0.27",
        "8 prompts at once on 8 devices",
        ": 0.98 of the bound",
        "Many prompts at once on 4 devices",
        "2 ubatches per call 0.90 (0.70), 8 ubatches 0.98 (0.73), 16 ubatches 0.84 (0.84)",
        "with 3 in a prompt of 1,600 tokens on 4 devices, synthetic gpt-oss reached 459 tok/s against 460 without, "
        "hybrid 460 against 460",
        "last of 4 devices",
        "reached 1.00 of the bound",
        "llama.cpp 0.59 (0.33 where copies are refused)",
        "differed by up to 20 µs",
        no_data=True,
    ),
]
