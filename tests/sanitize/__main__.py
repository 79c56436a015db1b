"""The command line of scripts/sanitize: builds llama.cpp and the driver with a sanitizer, and runs the driver."""

from __future__ import annotations

import contextlib
import enum
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from nativebuild import ROOT, JobsOption, SourceOption, TreeOption, compile_native, patched_tree
from sanitize.models import write_models
from turboprefill.cli.console import err, out, progress
from turboprefill.demo.workers import RpcWorkers
from turboprefill.errors import TurboPrefillError
from turboprefill.tools.build import BuildOptions, build

HERE = Path(__file__).resolve().parent
_REPORT = re.compile(r"WARNING: ThreadSanitizer|ERROR: \w+Sanitizer|: runtime error: ")


class Mode(str, enum.Enum):
    """A sanitizer, or several that go together."""

    THREAD = "thread"
    ADDRESS = "address"

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("thread",) if self is Mode.THREAD else ("address", "undefined")


def main(
    mode: Annotated[Mode, typer.Argument(help="thread: races. address: memory, leaks, undefined behaviour.")],
    scenarios: Annotated[list[str] | None, typer.Argument(help="Only these; all when left out.")] = None,
    work: Annotated[Path, typer.Option(help="Trees, builds, models and reports; kept.")] = ROOT / "build/sanitize",
    tree: TreeOption = None,
    source: SourceOption = "auto",
    jobs: JobsOption = None,
) -> None:
    """The pipeline on virtual devices and over RPC, under a sanitizer: no report is allowed.

    Builds llama.cpp with TurboPrefill and tests/sanitize/driver.cpp, which takes minutes the first time, then runs
    the driver: all kinds of models, calls while ubatches are in flight, aborts, failing devices, many threads.
    The results are compared with the standard path as well.

    [bold]Examples[/]

      scripts/sanitize thread
      scripts/sanitize address
      scripts/sanitize thread free faults      these scenarios
    """
    folder = work.absolute() / mode.value
    try:
        bin_dir, native = _build(tree, work.absolute(), folder, mode, source, jobs)
        models = write_models(work.absolute() / "models")
        code = _drive(bin_dir, native, models, folder / "reports", mode, scenarios or [])
    except TurboPrefillError as error:
        err.print(f"[red]error:[/] {escape(str(error))}")
        raise typer.Exit(2) from error
    reports = _reports(folder / "reports")
    for line in reports[:20]:
        out.print(f"  {escape(line)}")
    if reports:
        out.print(f"[red]{len(reports)} reports[/], in full in {escape(str(folder / 'reports'))}")
    if code:
        out.print(f"[red]the driver ended with code {code}[/]")
    if reports or code:
        raise typer.Exit(1)
    out.print(f"[green]no report from the {' and '.join(mode.kinds)} sanitizer[/]")


def _build(
    given: Path | None, work: Path, folder: Path, mode: Mode, source: str, jobs: int | None
) -> tuple[Path, Path]:
    """Folders of llama.cpp's programs and of the driver."""
    shown = progress()
    tree = patched_tree(given, work, source, shown)
    flags = [f"GGML_SANITIZE_{kind.upper()}=ON" for kind in mode.kinds]
    flags += [f"LLAMA_SANITIZE_{kind.upper()}=ON" for kind in mode.kinds]
    options = BuildOptions(
        cuda=False,
        targets=("llama", "ggml-rpc-server"),
        jobs=jobs,
        build_dir=folder / "llama",
        # the sanitizers do not know how OpenMP's threads wait for each other
        defines=("CMAKE_BUILD_TYPE=RelWithDebInfo", "BUILD_SHARED_LIBS=ON", "GGML_OPENMP=OFF", *flags),
    )
    built = build(tree, options, progress=shown)
    with shown.task("compiling the driver"):
        native = compile_native(
            folder / "native",
            tree=tree,
            llama=built.build_dir,
            build_type="RelWithDebInfo",
            flags=f"-fsanitize={','.join(mode.kinds)} -fno-omit-frame-pointer",
            jobs=jobs,
        )
    return built.build_dir / "bin", native


def _options(mode: Mode, reports: Path) -> dict[str, str]:
    """Environment of the sanitizers' runtimes."""
    common = f"log_path={reports / 'report'}"
    # the RPC servers are started through stdbuf, which preloads a library
    more = {
        "TSAN_OPTIONS": f"{common}:exitcode=66:history_size=4:second_deadlock_stack=1",
        "ASAN_OPTIONS": f"{common}:detect_leaks=1:detect_stack_use_after_return=1:verify_asan_link_order=0",
        "UBSAN_OPTIONS": f"{common}:print_stacktrace=1",
        "LSAN_OPTIONS": f"{common}:report_objects=1",
    }
    for variable, name in (("TSAN_OPTIONS", "thread"), ("LSAN_OPTIONS", "leak"), ("UBSAN_OPTIONS", "undefined")):
        if (HERE / f"{name}.supp").exists():
            more[variable] += f":suppressions={HERE / f'{name}.supp'}"
    return more


@contextlib.contextmanager
def _servers(binary: Path, scenarios: list[str]) -> Iterator[list[str]]:
    """Options for the driver; the servers are of the sanitized build too."""
    if scenarios and "rpc" not in scenarios:
        yield []
        return
    with RpcWorkers(2, binary=binary) as workers:
        yield ["--rpc", ",".join(workers.endpoints)]
        workers.check()


def _drive(bin_dir: Path, native: Path, models: Path, reports: Path, mode: Mode, scenarios: list[str]) -> int:
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    for name in [name for name in os.environ if name.startswith(("TURBOPREFILL", "LLAMA_"))]:
        del os.environ[name]
    os.environ.update(_options(mode, reports))
    with _servers(bin_dir / "ggml-rpc-server", scenarios) as rpc:
        command = [str(native / "driver"), str(native / "libturboprefill-virtual.so"), str(models), *rpc, *scenarios]
        # what a sanitizer says before it has opened its file, or that the runtime does not send there
        with (reports / "stderr.txt").open("wb") as log:
            return subprocess.run(command, check=False, stderr=log).returncode


def _reports(folder: Path) -> list[str]:
    """One line for each report: the sanitizer's summary if it wrote one."""
    found = []
    for path in sorted(folder.iterdir()):
        text = path.read_text(encoding="utf-8", errors="replace")
        summaries = re.findall(r"SUMMARY: .*", text)
        n_reports = len(_REPORT.findall(text))
        undefined = [line for line in text.splitlines() if ": runtime error: " in line]
        lines = [*summaries, *undefined]
        found += lines if len(lines) >= n_reports else [*lines, *[str(path)] * (n_reports - len(lines))]
    return found


if __name__ == "__main__":
    typer.run(main)
