"""llama-server with a draft model for multi-token prediction on virtual devices: `drafts.py BIN_DIR BACKEND.so`.

BIN_DIR holds a patched llama-server and its libraries, the backend is built for these (tests/native). The model is the
preset `mtp-tiny`: its draft layer is on the last device, which is made twice as fast, so that the draft's work and the
target's fill it as the others are filled. Prints tokens per second of a prompt with TURBOPREFILL=0 and 1, beside the
bound: every device works all the time but while the pipeline fills, and the draft model reads the last call's tokens
after the target. Texts and the numbers of tokens drafted and accepted have to be the same; the exit code is 1 if not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from turboprefill import synth

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "server"))

from llama_server import LlamaServer, complete, prompt, server

N_DEVICES = 4
SPLIT = "2,2,2,4"  # the last device has the draft layer and the output as well


def start(options: argparse.Namespace, model: Path, mode: str) -> AbstractContextManager[LlamaServer]:
    """A server that answers."""
    devices = f"{N_DEVICES},split_us={options.stage_ms * 1000:g},slow=1/1/1/0.5,peer={options.peer}"
    environment = {"TURBOPREFILL": mode, "TURBOPREFILL_UBATCH": "off", "TURBOPREFILL_VIRTUAL": devices}
    environment |= {"GGML_BACKEND_PATH": str(options.backend), "LD_LIBRARY_PATH": str(options.bin_dir)}
    if options.peer == "async":
        environment["LLAMA_GRAPH_REUSE_DISABLE"] = "1"  # as ubatches of 256 and more
    command = [options.bin_dir / "llama-server", "-m", model, "-dev", ",".join(f"VIRT{i}" for i in range(N_DEVICES))]
    command += ["-ts", SPLIT, "-ngl", "99", "-t", "1", "-fit", "off", "--no-warmup", "-c", "8192", "-np", "2"]
    command += ["-b", options.batch, "-ub", options.ubatch, "--spec-type", "draft-mtp"]
    log = model.with_name(f"server-{mode}.log")
    return server(list(map(str, command)), environment, options.port + int(mode), log)


def main() -> None:
    """Compare, and print one JSON object for each mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bin_dir", type=Path), parser.add_argument("backend", type=Path)
    parser.add_argument("--prompt", type=int, default=2048), parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128), parser.add_argument("--ubatch", type=int, default=32)
    parser.add_argument("--stage-ms", type=float, default=40), parser.add_argument("--port", type=int, default=19480)
    parser.add_argument("--peer", choices=("refused", "async"), default="refused")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        model = synth.write_model(Path(folder) / "model.gguf", "mtp-tiny")
        times: dict[str, list[float]] = {"0": [], "1": []}
        answers: dict[str, list[Any]] = {"0": [], "1": []}
        with start(options, model, "0") as off, start(options, model, "1") as on:
            servers = {"0": off, "1": on}
            for seed in range(options.rounds):
                for mode, running in servers.items():
                    begin = time.perf_counter()
                    complete(running, prompt=prompt(options.prompt, seed), n_predict=1)
                    times[mode].append(time.perf_counter() - begin)
                    some = prompt(300 + 77 * seed, seed)
                    answer = complete(running, prompt=some, n_predict=32, return_tokens=True)
                    drafts = [answer["timings"].get(name) for name in ("draft_n", "draft_n_accepted")]
                    answers[mode].append((answer["tokens"], *drafts))

    ubatches = -(-options.prompt // options.ubatch)
    drafted_last = -(-min(options.batch, options.prompt) // options.ubatch) / 2
    bound = options.prompt / ((ubatches + N_DEVICES - 1 + drafted_last) * options.stage_ms / 1000)
    for mode in servers:
        speed = options.prompt / statistics.median(times[mode])
        row = {"TURBOPREFILL": mode, "tokens_per_s": round(speed, 1), "of_bound": round(speed / bound, 3)}
        sys.stdout.write(json.dumps({**row, "accepted": sum(answer[2] or 0 for answer in answers[mode])}) + "\n")
    if answers["0"] != answers["1"]:
        sys.exit("the answers differ")


if __name__ == "__main__":
    main()
