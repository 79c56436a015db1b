"""Tries TurboPrefill on one GPU that llama.cpp takes for several. See benchmarks/onegpu/README.md.

`python3 benchmarks/onegpu/check.py --archive llama.cpp.tar`. Exit status: 0, or 1 if something differs or waits.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "common"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "server"))

import traffic
from llama_server import server
from resultfile import write_document

REPOSITORY = Path(__file__).resolve().parents[2]
DRIVER = REPOSITORY / "benchmarks" / "gpu" / "driver.cpp"
STEPS = ("waits", "sanitizer", "traffic")
# of a second prompt: its result, and a caller that is ahead of the devices
ALLOWED = {"result", "full slots"}

_START = time.monotonic()


@dataclass(frozen=True)
class Family:
    """A model, and how it is read: tokens of a prompt, of a call, and sizes of ubatches."""

    preset: str
    n_layers: int
    n_prompt: int = 4096
    n_batch: int = 2048
    ubatches: tuple[int, ...] = (64, 256, 512)


FAMILIES = (
    Family("qwen30b-a3b", 16),
    Family("mixtral-tiny", 16),
    Family("deepseek-tiny", 16),
    Family("llama8", 16),
    Family("gptoss20", 24),
    Family("gemma3-12b", 24),
    Family("granite-h-micro", 20, ubatches=(256, 512)),
)
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SANITIZED = tuple(Family(f"{name}-tiny", 4, 512, 256, (64,)) for name in ("moe", "gptoss", "granite-hybrid"))
SMALL = tuple(
    Family(f"{name}-tiny", 8, 1024, 256, (16, 64)) for name in ("moe", "mixtral", "gptoss", "gemma3", "granite-hybrid")
)


def say(text: str) -> None:
    """One line of progress."""
    sys.stdout.write(f"[{time.monotonic() - _START:4.0f}s] {text}\n")
    sys.stdout.flush()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, help="tar of llama.cpp, in one top folder")
    parser.add_argument("--devices", type=int, default=4, help="that one GPU is taken for (default: %(default)s)")
    parser.add_argument("--steps", default=",".join(STEPS), help="comma-separated (default: all): %(default)s")
    parser.add_argument("--only", default="", help="families by preset, comma-separated (default: all)")
    parser.add_argument("--minutes", type=float, default=2.0, help="of traffic, for each path (default: %(default)s)")
    parser.add_argument("--server-model", default="", help="preset that llama-server loads")
    parser.add_argument("--server-args", default="", help="more options for llama-server, separated by blanks")
    parser.add_argument("--cuda-arch", default="native", help="CMAKE_CUDA_ARCHITECTURES (default: %(default)s)")
    parser.add_argument("--module", type=Path, help="libggml-cuda.so of the same llama.cpp: compile no CUDA")
    parser.add_argument("--work", type=Path, default=Path("/tmp/turboprefill-onegpu"), help="kept")  # noqa: S108 # as benchmarks/gpu
    parser.add_argument("--out", type=Path, help="write everything that was counted there, as JSON")
    parser.add_argument("--build-only", action="store_true", help="compile and write models, measure nothing")
    parser.add_argument("--virtual", type=Path, help="library of the virtual devices, instead of a GPU")
    parser.add_argument("--bin", type=Path, help="a patched llama.cpp's build/bin, instead of --archive")
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.bin = options.bin and options.bin.resolve()
    if not options.archive and not options.bin:
        parser.error("--archive or --bin is needed")
    return options


def run(*command: str | Path, log: Path) -> None:
    """Run a command of the build; its output goes to a log."""
    with log.open("ab") as out:
        subprocess.run([str(word) for word in command], check=True, stdout=out, stderr=subprocess.STDOUT)


def build(options: argparse.Namespace) -> Path:
    """The folder with llama-server and the libraries of a patched llama.cpp, built if it is not there."""
    tree: Path = options.work / "llama.cpp"
    log = options.work / "build.log"
    options.work.mkdir(parents=True, exist_ok=True)
    if not tree.exists():
        tree.mkdir()
        run("tar", "-xf", options.archive.resolve(), "-C", tree, "--strip-components=1", log=log)
    for name in ("app", "tests", "examples", "pocs"):
        (tree / name).mkdir(exist_ok=True)
        (tree / name / "CMakeLists.txt").touch()
    from turboprefill.tools.overlay import load_overlay
    from turboprefill.tools.patcher import install

    install(tree, force=True, overlay=load_overlay())
    flags = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_BACKEND_DL=ON", "-DGGML_NATIVE=OFF"]
    flags += ["-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF"]
    flags += [f"-DLLAMA_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES", "UI", "APP")]
    targets = ["llama-server", "ggml-cpu"]
    if not options.module:
        flags += ["-DGGML_CUDA=ON", "-DGGML_CUDA_NCCL=OFF", f"-DCMAKE_CUDA_ARCHITECTURES={options.cuda_arch}"]
        targets.append("ggml-cuda")
    run("cmake", "-S", tree, "-B", tree / "build", "-G", "Ninja", *flags, log=log)
    run("cmake", "--build", tree / "build", "-j", str(os.cpu_count()), "--target", *targets, log=log)
    libraries: Path = tree / "build" / "bin"
    if options.module:
        shutil.copyfile(options.module, libraries / "libggml-cuda.so")
    return libraries


def link_driver(options: argparse.Namespace, libraries: Path) -> Path:
    """The program that reads prompts and prints what it counted."""
    options.work.mkdir(parents=True, exist_ok=True)
    tree = libraries.parents[1]
    driver: Path = options.work / "driver"
    command: list[str | Path] = [os.environ.get("CXX", "g++"), "-O2", "-std=c++17", DRIVER]
    command += [f"-I{tree}/include", f"-I{tree}/ggml/include", f"-L{libraries}", "-lllama", "-lggml", "-lggml-base"]
    run(*command, f"-Wl,-rpath,{libraries}", "-o", driver, log=options.work / "build.log")
    return driver


def model(options: argparse.Namespace, preset: str, n_layers: int) -> Path:
    """A synthetic model, written if it is not there."""
    from turboprefill import synth

    path: Path = options.work / f"{preset}-{n_layers}.gguf"
    if not path.exists():
        synth.write_model(path, preset, n_layers=n_layers, same_layers=True)
        say(f"wrote {path.name}, {path.stat().st_size / 1e9:.1f} GB")
    return path


def environment(options: argparse.Namespace, libraries: Path, mode: str) -> dict[str, str]:
    """What makes several devices of one, and switches the pipeline."""
    variables = {"TURBOPREFILL": mode, "LD_LIBRARY_PATH": str(libraries)}
    if options.virtual:
        spec = f"{options.devices},us_per_token=20,split_us=200,peer=async,fusion=on"
        return {**variables, "GGML_BACKEND_PATH": str(options.virtual.resolve()), "TURBOPREFILL_VIRTUAL": spec}
    return {**variables, "GGML_CUDA_DEVICES": str(options.devices)}


def driver_command(options: argparse.Namespace, libraries: Path, driver: Path, family: Family) -> list[str | Path]:
    """What reads the prompts of a family; it prints a line for the model and one for each size of ubatches."""
    path = model(options, family.preset, family.n_layers)
    jobs = [f"n={family.n_prompt},ub={ub},nb={family.n_batch},r=2,state=1" for ub in family.ubatches]
    return [driver, "run", libraries, path, "layer", "-", "-", *jobs]


def read_prompts(
    options: argparse.Namespace, libraries: Path, driver: Path, family: Family, mode: str
) -> list[dict[str, Any]]:
    """What the driver prints for each size of ubatches."""
    command = driver_command(options, libraries, driver, family)
    done = subprocess.run(
        command,
        env={**os.environ, **environment(options, libraries, mode)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(lines) != len(family.ubatches) + 1:
        raise RuntimeError(
            f"{family.preset}, TURBOPREFILL={mode}: exit status {done.returncode}\n{done.stderr[-2000:]}"
        )
    return lines[1:]


def check_waits(options: argparse.Namespace, libraries: Path) -> Iterator[Mapping[str, Any]]:
    """A row for each family and size of ubatches."""
    driver = link_driver(options, libraries)
    only = options.only.split(",") if options.only else None
    for family in SMALL if options.virtual else FAMILIES:
        if only and family.preset not in only:
            continue
        off, on = (read_prompts(options, libraries, driver, family, mode) for mode in ("0", "1"))
        for ub, plain, piped in zip(family.ubatches, off, on, strict=True):
            counted = piped["turboprefill"]
            waits = {name: n for name, n in counted["waits"].items() if n}
            n_ubatches = counted["n_ubatches_pipelined"] + counted["n_ubatches_standard"]
            row = {
                "family": family.preset,
                "n_layers": family.n_layers,
                "n_ubatch": ub,
                "equal": all(plain[key] == piped[key] and len(plain[key]) == 1 for key in ("logits", "states")),
                "n_pipelined": counted["n_ubatches_pipelined"],
                "n_ubatches": n_ubatches,
                "waits": waits,
                "capture_us_per_layer": counted["t_capture_us"]
                / max(1, counted["n_ubatches_pipelined"])
                / family.n_layers,
                "reason": counted["reason"],
            }
            row["good"] = row["equal"] and set(waits) <= ALLOWED and row["n_pipelined"] == n_ubatches
            say(
                f"{'ok  ' if row['good'] else 'FAIL'} {family.preset} ub {ub}: {row['n_pipelined']} of {n_ubatches} "
                f"pipelined, waits {waits}, capture {row['capture_us_per_layer']:.0f} us a layer, "
                f"{'equal' if row['equal'] else 'DIFFERENT'} {counted['reason']}"
            )
            yield row


def check_sanitizer(options: argparse.Namespace, libraries: Path) -> Iterator[Mapping[str, Any]]:
    """A row for each tool of compute-sanitizer and family."""
    program = shutil.which("compute-sanitizer", path=f"{os.environ.get('PATH', '')}:/usr/local/cuda/bin")
    if program is None or options.virtual:
        say("there is no compute-sanitizer, or no GPU: left out")
        return
    driver = link_driver(options, libraries)
    for family in SANITIZED:
        command = driver_command(options, libraries, driver, family)
        for tool in TOOLS:
            start = time.monotonic()
            done = subprocess.run(
                [program, "--tool", tool, "--error-exitcode", "9", *command],
                env={**os.environ, **environment(options, libraries, "1")},
                capture_output=True,
                text=True,
                check=False,
                timeout=600,
            )
            text = done.stdout + done.stderr
            summary = [line.strip("= ") for line in text.splitlines() if "SUMMARY" in line]
            row = {
                "family": family.preset,
                "tool": tool,
                "code": done.returncode,
                "summary": summary,
                "good": done.returncode == 0 and bool(summary),
            }
            say(
                f"{'ok  ' if row['good'] else 'FAIL'} {tool} {family.preset}: {'; '.join(summary) or text[-300:]} "
                f"({time.monotonic() - start:.0f} s)"
            )
            if not row["good"]:
                (options.work / f"{tool}-{family.preset}.log").write_text(text)
            yield row


def check_traffic(options: argparse.Namespace, libraries: Path) -> Mapping[str, Any]:
    """Answers of llama-server, with it off and on."""
    preset = options.server_model or ("moe-tiny" if options.virtual else "qwen30b-a3b")
    path = model(options, preset, 8 if options.virtual else 16)
    devices = ["-dev", ",".join(f"VIRT{i}" for i in range(options.devices)), "-t", "1"] if options.virtual else []
    answers = {}
    for mode in ("0", "1"):
        command = [
            str(libraries / "llama-server"),
            "-m",
            str(path),
            "-ngl",
            "99",
            "-c",
            "32768",
            "-ub",
            "128",
            "-b",
            "512",
        ]
        log = options.work / f"server-{mode}.log"
        with server(
            [*command, *devices, *options.server_args.split()],
            environment(options, libraries, mode),
            18600 + int(mode),
            log,
        ) as running:
            answers[mode] = traffic.run(running, 60 * options.minutes)
        lines = [line for line in log.read_text(errors="replace").splitlines() if "TurboPrefill: prompt" in line]
        alone = {len(digests) for digests in answers[mode].alone.values()}
        together = max((len(digests) for digests in answers[mode].together.values()), default=0)
        say(
            f"TURBOPREFILL={mode}: {answers[mode].n} answers, each request alone {alone} digests, "
            f"together up to {together}"
        )
        if lines:
            say(lines[-1].partition("| ")[2])
    same = answers["0"].alone == answers["1"].alone and all(
        len(digests) == 1 for digests in answers["1"].alone.values()
    )
    say(f"{'ok  ' if same else 'FAIL'} every request that was alone had one answer, the same on both paths")
    return {
        "good": same,
        "n_answers": {mode: found.n for mode, found in answers.items()},
        "digests_together": {mode: {k: len(v) for k, v in found.together.items()} for mode, found in answers.items()},
    }


def main() -> int:
    """Run everything; the exit status."""
    options = arguments()
    sys.path.insert(0, str(REPOSITORY / "src"))
    libraries: Path = options.bin or build(options)
    sys.path.insert(0, str(libraries.parents[1] / "gguf-py"))
    say(f"built in {libraries}")
    if options.build_only:
        for family in FAMILIES:
            model(options, family.preset, family.n_layers)
        return 0
    results: dict[str, Any] = {}
    steps = options.steps.split(",")
    if "waits" in steps:
        results["waits"] = list(check_waits(options, libraries))
    if "sanitizer" in steps:
        results["sanitizer"] = list(check_sanitizer(options, libraries))
    if "traffic" in steps:
        results["traffic"] = check_traffic(options, libraries)
    if options.out:
        write_document(options.out, results)
    rows = [*results.get("waits", []), *results.get("sanitizer", [])]
    good = all(row["good"] for row in rows) and results.get("traffic", {"good": True})["good"]
    say("all good" if good else "something is wrong, see FAIL above")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
