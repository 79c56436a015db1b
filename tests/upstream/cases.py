"""Upstream's programs that can see a broken pipeline, and what of their output has to be equal."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from turboprefill.tools.errors import ToolError
from upstream.arms import Arm, Ran, run
from upstream.devices import Devices
from upstream.models import Models

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_GENERATED = re.compile(r"Model \d+/\d+, Context \d+/\d+: (.*)")


@dataclass(frozen=True)
class Bench:
    """One case on one build."""

    arm: Arm
    devices: Devices
    models: Models
    folder: Path
    text: str
    environment: Mapping[str, str]

    def run(self, program: str, *arguments: str, preload: bool = False, **environment: str) -> Ran:
        found = self.devices.preload if preload else self.devices.environment
        both = {**found, **environment, **self.environment}
        return run(self.arm, program, *arguments, cwd=self.folder, environment=both)

    def prompt_file(self, n: int) -> str:
        """A file with the first `n` characters; without its folder, because some programs write its name down."""
        path = self.folder / f"prompt-{n}.txt"
        path.write_text(self.text[:n], encoding="utf-8")
        return path.name

    def digest(self, name: str) -> str:
        """What stands for the content of a file that the program wrote."""
        path = self.folder / name
        if not path.is_file() or path.stat().st_size == 0:
            raise ToolError(f"the program ended well and did not write {name}")
        data = path.read_bytes()
        return f"{len(data)} bytes {hashlib.sha256(data).hexdigest()}"


Outcome = dict[str, str]  # by name: all of it has to be equal on both builds


@dataclass(frozen=True)
class Case:
    """A row of the table.

    `pipelined`: whether ubatches of it have to be, or must not be. `copies`: between the virtual devices of the
    patched build, "async" if nothing of it takes the standard path in several ubatches (devices.py says why).
    """

    name: str
    about: str
    run: Callable[[Bench], Outcome]
    n_devices: int = 3
    rpc: bool = False
    pipelined: bool = True
    copies: str = "refused"
    environment: Mapping[str, str] = field(default_factory=dict)
    patched: Mapping[str, str] = field(default_factory=dict)


def results(preset: str) -> Callable[[Bench], Outcome]:
    def go(bench: Bench) -> Outcome:
        model = str(bench.models.synthetic(preset))
        sizes = ("-c", "4096", "-b", "4096", "-ub", "32")
        prompt = bench.text[:3000]
        bench.run(
            "llama-results", "-m", model, "-o", "logits.gguf", "-p", prompt, *sizes, *bench.devices.layers()
        ).need_success()
        return {"logits of every token": bench.digest("logits.gguf")}

    return go


def written(what: str, program: str, n: int, *arguments: str) -> Callable[[Bench], Outcome]:
    """A program that reads a file of `n` characters; the last argument is the file that it writes."""

    def go(bench: Bench) -> Outcome:
        common = ("-m", str(bench.models.synthetic("tiny")), "-f", bench.prompt_file(n), "-c", "256", "-ub", "32")
        bench.run(program, *common, *bench.devices.layers(), *arguments).need_success()
        return {what: bench.digest(arguments[-1])}

    return go


perplexity = written("log-probabilities", "llama-perplexity", 14000, "-b", "1024", "--save-all-logits", "logits.dat")
imatrix = written("importance matrix", "llama-imatrix", 6000, "-b", "256", "-o", "imatrix.gguf")


def prompt_cache(preset: str) -> Callable[[Bench], Outcome]:
    def go(bench: Bench) -> Outcome:
        model = str(bench.models.synthetic(preset))
        sizes = ("-c", "2048", "-b", "2048", "-ub", "32", "-n", "32", "--temp", "0", "--ignore-eos")
        cache = ("--prompt-cache", "cache.bin", "--prompt-cache-all", "-no-cnv")
        arguments = ("-f", bench.prompt_file(2500), *sizes, *cache)
        bench.run("llama-completion", "-m", model, *arguments, *bench.devices.layers()).need_success()
        return {"state of the whole context": bench.digest("cache.bin")}

    return go


def state_dump(bench: Bench) -> Outcome:
    model = str(bench.models.synthetic("tiny"))
    sizes = ("-c", "1024", "-b", "512", "-ub", "16")
    bench.run("test-save-load-state", "-m", model, *sizes, *bench.devices.layers()).need_success()
    return {"state of the prompt": bench.digest("dump_state.bin")}


def debug(*more: str) -> Callable[[Bench], Outcome]:
    def go(bench: Bench) -> Outcome:
        model = bench.models.synthetic("tiny")
        sizes = ("-c", "4096", "-b", "4096", "-ub", "32")
        save = ("-p", bench.text[:3000], "--save-logits", "--logits-output-dir", "out", *more)
        bench.run("llama-debug", "-m", str(model), *save, *sizes, *bench.devices.layers()).need_success()
        files = [path for path in (bench.folder / "out").glob("*.bin") if "tokens" not in path.name]
        if len(files) != 1:
            raise ToolError(f"{len(files)} files of results: expected one")
        return {"values": bench.digest(f"out/{files[0].name}")}

    return go


def architectures(bench: Bench) -> Outcome:
    names = bench.devices.names
    probe = {"PROBE_DEVICES": ",".join(names), "PROBE_SPLIT": "1,3"}
    ran = bench.run("test-llama-archs", "-s", "1", "-b", names[0], preload=True, **probe)
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in _COLOUR.sub("", ran.output).splitlines()]
    rows = [row for row in rows if len(row) == 5 and row[2] in ("Dense", "MoE") and "SKIP" not in row[3]]
    wrong = [" ".join(row) for row in rows if row[3] != "OK (0.00e+00)" or row[4] == "FAIL"]
    if ran.code or len(rows) < 100 or wrong:
        raise ToolError(f"exit code {ran.code}, {len(wrong)} of {len(rows)} models differ: {'; '.join(wrong[:3])}")
    return {"table": f"{len(rows)} models\n" + "\n".join(" ".join(row) for row in rows)}


def table_of_models(program: str, folder: Callable[[Models], Path], *more: str) -> Callable[[Bench], Outcome]:
    """A program that prints a row of PASS, SKIP and FAIL for each model of a folder."""

    def go(bench: Bench) -> Outcome:
        models = str(folder(bench.models))
        ran = bench.run(program, "--models", models, *more, *bench.devices.layers(1, 3))
        rows = [row.split() for row in _COLOUR.sub("", ran.output).splitlines() if ".gguf " in row]
        failed = [row[0] for row in rows if "FAIL" in row]
        if ran.code or failed or not any("PASS" in row for row in rows):
            raise ToolError(f"exit code {ran.code}, {len(failed)} of {len(rows)} models: {', '.join(failed[:5])}")
        return {"table": "\n".join(" ".join(row) for row in rows)}

    return go


def thread_safety(bench: Bench) -> Outcome:
    model = str(bench.models.synthetic("tiny-f16"))
    sizes = ("-c", "1024", "-b", "1024", "-ub", "16", "-np", "3", "-n", "24", "--temp", "0", "--ignore-eos")
    prompt = " ".join(bench.text[:900].split())
    ran = bench.run("test-thread-safety", "-m", model, "-p", prompt, *sizes, *bench.devices.layers())
    texts = _GENERATED.findall(_COLOUR.sub("", ran.need_success()))
    expected = 3 * (len(bench.devices.names) + 2)  # each device, the CPU, and all devices together
    if len(texts) != expected or len(set(texts)) != 1:
        raise ToolError(f"{len(texts)} texts, {len(set(texts))} different: expected {expected} and 1")
    return {"text": texts[0]}


PRESETS = ("tiny", "moe-tiny", "gptoss-tiny", "gemma3-tiny", "mamba-tiny", "jamba-tiny", "granite-hybrid-tiny")

# An RPC server of an unpatched tree may be told to repeat a graph that it has forgotten, as any context freed a buffer,
# or that another thread's context has replaced: it ends the connection. Hooks see to that in a patched one.
_NO_REUSE = {"LLAMA_GRAPH_REUSE_DISABLE": "1"}

CASES = (
    *(
        Case(f"results-{preset}", "llama-results: logits of every token, one call", results(preset), copies="async")
        for preset in PRESETS
    ),
    Case("results-staged", "the same without copies between devices", results("tiny")),
    Case("results-rpc", "the same over RPC servers", results("tiny"), rpc=True),
    Case(
        "results-off", "the same with TURBOPREFILL=0", results("tiny"), pipelined=False, patched={"TURBOPREFILL": "0"}
    ),
    Case(
        "perplexity", "llama-perplexity: several sequences in a batch, half of the outputs", perplexity, copies="async"
    ),
    Case("prompt-cache", "llama-completion: state after prompt and generation", prompt_cache("tiny"), copies="async"),
    Case("prompt-cache-hybrid", "the same with recurrent layers", prompt_cache("jamba-tiny"), copies="async"),
    Case("state-dump", "test-save-load-state: state after a prompt", state_dump, copies="async"),
    Case("embeddings", "llama-debug: embeddings of every token", debug("--embedding", "--pooling", "none")),
    Case("last-logits", "llama-debug: logits of the last token", debug()),
    Case("imatrix", "llama-imatrix: evaluation callback, never pipelined", imatrix, pipelined=False),
    Case("architectures", "test-llama-archs: 2 ubatches, also against the CPU", architectures, n_devices=2),
    Case(
        "architectures-16",
        "the same in 8 ubatches",
        architectures,
        n_devices=2,
        environment={"PROBE_UBATCH": "64:16"},
    ),
    Case(
        "save-load-state",
        "test-save-load-state: save, load, copy, failed restore, each architecture",
        table_of_models("test-save-load-state", Models.causal, "-ub", "16"),
        n_devices=2,
    ),
    Case(
        "recurrent-rollback",
        "test-recurrent-state-rollback: replay and snapshots of recurrent models",
        table_of_models("test-recurrent-state-rollback", Models.architectures),
        n_devices=2,
    ),
    Case(
        "thread-safety",
        "test-thread-safety: contexts on 12 threads, all texts equal",
        thread_safety,
        n_devices=2,
        copies="async",
    ),
    Case(
        "thread-safety-rpc",
        "the same over RPC servers",
        thread_safety,
        n_devices=2,
        rpc=True,
        environment=_NO_REUSE,
        patched={"LLAMA_GRAPH_REUSE_DISABLE": ""},
    ),
)
