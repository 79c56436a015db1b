"""What ``plan`` and ``simulate`` read from the command line in the same way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from turboprefill.lists import split_list

if TYPE_CHECKING:
    from turboprefill.planner import DeviceSpec
    from turboprefill.planner.resolve import Measure

__all__ = ["JsonOption", "ModelArgument", "RpcOption", "UbatchOption", "devices_of", "ubatch_of"]

_UBATCH_LIMIT = 65536

ModelArgument = Annotated[str, typer.Argument(help="GGUF file, or the shape of a synthetic model, such as llama70.")]
RpcOption = Annotated[str | None, typer.Option(help="RPC servers to use: HOST:PORT,HOST:PORT")]
UbatchOption = Annotated[str, typer.Option(help="Ubatch size in tokens, or auto.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def ubatch_of(text: str) -> int | None:
    """A number of tokens; None for ``auto``.

    Raises:
        BadParameter: it is neither.
    """
    if text == "auto":
        return None
    if not text.isdigit() or not 0 < int(text) <= _UBATCH_LIMIT:
        raise typer.BadParameter(f"--n-ubatch is {text!r}: expected 1 to {_UBATCH_LIMIT} tokens, or auto")
    return int(text)


def devices_of(model: str, devices: str | None, rpc: str | None, measure: Measure | None = None) -> list[DeviceSpec]:
    """The devices that the options mean.

    Raises:
        BadParameter: the options contradict each other.
        PlanError, EndpointError: there are no such devices.
    """
    from turboprefill.planner.errors import DescribedDevicesError
    from turboprefill.planner.resolve import find_devices

    try:
        return find_devices(model, devices, split_list(rpc), measure)
    except DescribedDevicesError as error:
        raise typer.BadParameter(str(error)) from error
