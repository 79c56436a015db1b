"""What users of llama-server get on virtual devices with configured times, with TurboPrefill off and on.

`python3 benchmarks/server/mix.py BIN MODEL LIBRARY`: BIN is the build/bin of a patched llama.cpp, MODEL a small model
(`turboprefill make-model tiny model.gguf`), LIBRARY the backend with virtual devices, built against that llama.cpp.
It prints one JSON object for each path, and `--out FILE` writes them as a results file:

  alone       tokens/s of one prompt while nothing else goes on
  beside      the same while another user generates
  gap_ms      median time between that user's tokens while the prompt is read
  many        tokens/s of 8 prompts at once
  bound       tokens/s of a perfect pipeline for `alone`: prompt / ((N + S - 1) t), t of one ubatch on one of S devices
  text        digest of the answer to a fixed prompt: the same on both paths

Times are configured, so ratios hold on any machine; it has to be idle all the same, as devices compute for real.
LLAMA_GRAPH_REUSE_DISABLE=1 gives llama.cpp the overlap that it has with ubatches of 256 and more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))

from llama_server import LlamaServer, complete, prompt, request, server
from resultfile import write_document

_N_USERS, _N_USER_PROMPT = 8, 200
_SPLIT_US = 1000


def seconds(running: LlamaServer, n: int, seed: int) -> float:
    """How long a prompt takes, with the first token of its answer."""
    start = time.monotonic()
    complete(running, prompt=prompt(n, seed), n_predict=1)
    return time.monotonic() - start


class User(threading.Thread):
    """Somebody for whom the server generates until `stop` is set; `gaps` are (when, seconds since the token before)."""

    def __init__(self, running: LlamaServer) -> None:
        super().__init__()
        self.running = running
        self.gaps: list[tuple[float, float]] = []
        self.stop = threading.Event()

    def run(self) -> None:
        """Read tokens as they come."""
        last = 0.0
        with request(self.running, prompt=prompt(20, 99), n_predict=4000, stream=True) as lines:
            for line in lines:
                if line.startswith(b"data"):
                    now = time.monotonic()
                    if last:
                        self.gaps.append((now, now - last))
                    last = now
                if self.stop.is_set():
                    return


def measure(running: LlamaServer, n_prompt: int, rounds: int) -> dict[str, Any]:
    """All figures of one server."""
    text = complete(running, prompt=prompt(300, 7), n_predict=16)["content"]
    alone = statistics.median(seconds(running, n_prompt, 10 + i) for i in range(rounds))
    user = User(running)
    user.start()
    while len(user.gaps) < 20:
        time.sleep(0.05)
    start = time.monotonic()
    beside = statistics.median(seconds(running, n_prompt, 20 + i) for i in range(rounds))
    end = time.monotonic()
    user.stop.set()
    user.join()
    gaps = [gap for when, gap in user.gaps if start <= when <= end] or [end - start]
    users = [threading.Thread(target=seconds, args=(running, _N_USER_PROMPT, 40 + i)) for i in range(_N_USERS)]
    start = time.monotonic()
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    return {
        "alone": round(n_prompt / alone, 1),
        "beside": round(n_prompt / beside, 1),
        "gap_ms": round(1e3 * statistics.median(gaps)),
        "many": round(_N_USERS * _N_USER_PROMPT / (time.monotonic() - start), 1),
        "text": hashlib.sha256(text.encode()).hexdigest()[:12],
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bin", type=Path, metavar="BIN")
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("library", type=Path, metavar="LIBRARY")
    parser.add_argument("--devices", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--peer", choices=("async", "blocking", "refused"), default="async", help="copies between them")
    parser.add_argument("--ubatch", type=int, default=32, help="tokens of a ubatch (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="tokens of a call (default: %(default)s)")
    parser.add_argument("--prompt", type=int, default=1600, help="tokens (default: %(default)s)")
    parser.add_argument("--us-per-token", type=int, default=2000, help="of a device (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="prompts of which the median counts")
    parser.add_argument("--modes", default="0,1", help="values of TURBOPREFILL (default: %(default)s)")
    parser.add_argument("--port", type=int, default=18450)
    parser.add_argument("--out", type=Path, help="also write a results file")
    parser.add_argument("--server-args", default="", help="more options for llama-server, separated by blanks")
    return parser.parse_args()


def main() -> int:
    """Measure each path."""
    o = arguments()
    names = ",".join(f"VIRT{i}" for i in range(o.devices))
    command = [str(o.bin / "llama-server"), "-m", str(o.model), "-ngl", "99", "-dev", names, "-t", "1", "-fit", "off"]
    command += ["--no-warmup", "-c", "65536", "-np", str(_N_USERS), "-ub", str(o.ubatch), "-b", str(o.batch)]
    spec = f"{o.devices},us_per_token={o.us_per_token},split_us={_SPLIT_US},peer={o.peer}"
    stage = (o.ubatch * o.us_per_token + _SPLIT_US) / 1e6
    bound = o.prompt / ((-(-o.prompt // o.ubatch) + o.devices - 1) * stage)
    given = {"devices": o.devices, "peer": o.peer, "ubatch": o.ubatch, "batch": o.batch, "prompt": o.prompt}
    config = {"model": o.model.stem, "n_cores": os.cpu_count()}
    rows = []
    for i, mode in enumerate(o.modes.split(",")):
        environment = {
            "TURBOPREFILL": mode,
            "TURBOPREFILL_VIRTUAL": spec,
            "GGML_BACKEND_PATH": str(o.library.resolve()),
            "LD_LIBRARY_PATH": str(o.bin.resolve()),
        }
        words = [*command, *o.server_args.split()]
        with (
            tempfile.NamedTemporaryFile(suffix=".log") as log,
            server(words, environment, o.port + i, Path(log.name)) as running,
        ):
            found = measure(running, o.prompt, o.rounds)
        reuse = "LLAMA_GRAPH_REUSE_DISABLE" not in os.environ
        rows.append({"turboprefill": mode, **given, "graph_reuse": reuse, **found, "bound": round(bound, 1)})
        sys.stdout.write(json.dumps(rows[-1]) + "\n")
        sys.stdout.flush()
        if o.out:
            write_document(o.out, {"config": config, "results": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
