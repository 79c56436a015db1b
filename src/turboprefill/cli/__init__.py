"""The ``turboprefill`` command: one module per subcommand, errors and exit codes in one place.

A command module has ``register(app)``, which adds its command to the typer application. Handlers raise; only
this package prints and exits. Nothing here imports the native module, because the package build itself runs
this command line before there is one.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
from types import FrameType
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from turboprefill.cli.console import err, out
from turboprefill.errors import TurboPrefillError
from turboprefill.tools.gitrepo import forget_outer_repository

__all__ = ["app", "main"]

# In the order that --help shows. A module that is not there yet is left out.
COMMANDS = (
    "checkout",
    "install",
    "uninstall",
    "status",
    "diff",
    "build",
    "doctor",
    "plan",
    "simulate",
    "demo",
    "make_model",
    "prepare_tree",
)

EPILOG = (
    "Exit codes: 0 success, 1 failure, 2 usage error, 3 refused (the tree is unchanged), "
    "4 network or download failure, 5 build failure, 130 interrupted."
)

INTERRUPTED = 130


class _Group(TyperGroup):
    """Turns this package's errors and Ctrl-C into a message and an exit code, for every subcommand."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TurboPrefillError as error:
            if os.environ.get("TURBOPREFILL_TRACEBACK"):
                raise
            err.print(f"[bold red]error:[/] {escape(str(error))}")
            raise typer.Exit(getattr(error, "exit_code", 1)) from error
        except OSError as error:  # a full disk, a folder that is not ours
            if error.errno == errno.EPIPE or os.environ.get("TURBOPREFILL_TRACEBACK"):
                raise  # the reader of our output is gone
            err.print(f"[bold red]error:[/] {escape(str(error))}")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            err.print("[bold red]interrupted[/]")
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    name="turboprefill",
    cls=_Group,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from turboprefill import __version__

        out.print(f"turboprefill {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Pipeline parallelism for llama.cpp's prefill (prompt processing) over several devices.

    [bold]From nothing to a patched and built llama.cpp:[/]

      turboprefill doctor                  what this machine has, and what is missing
      turboprefill checkout llama.cpp      the pinned llama.cpp, as a git repository
      turboprefill install llama.cpp       add TurboPrefill to it
      turboprefill build llama.cpp         compile it
      TURBOPREFILL=1 llama.cpp/build/bin/llama-server -m model.gguf

    Every command has its own help: turboprefill install --help
    """


def _register_all() -> None:
    for name in COMMANDS:
        module = f"{__name__}.{name}"
        try:
            command = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            continue
        command.register(app)


_register_all()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line with ``sys.argv`` and exit with one of the documented codes."""
    # Being asked to end is handled like Ctrl-C: what was begun is undone.
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _interrupt)
    forget_outer_repository()
    app(prog_name="turboprefill")
