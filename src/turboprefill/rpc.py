"""Registration of RPC servers.

llama.cpp ends the process if a server cannot be reached or speaks another protocol, so each endpoint is tried with a
plain socket first. A server that dies later still takes the process with it.
"""

from __future__ import annotations

import socket
import struct
import time

from turboprefill.errors import EndpointError
from turboprefill.native import core

__all__ = ["add_server", "parse_endpoint", "silent_servers"]

_CONNECT_TIMEOUT_S = 5.0
_KNOWN_TIMEOUT_S = 0.25
_HELLO = 14  # RPC_CMD_HELLO, the one command that may never change
_CAPS_SIZE = 24
_added: set[str] = set()
_START = "start one with `ggml-rpc-server -H HOST -p PORT`"


def parse_endpoint(endpoint: str) -> tuple[str, int]:
    """Split ``host:port``.

    Raises:
        EndpointError: it is not of that form.
    """
    host, colon, port = endpoint.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise EndpointError(f"RPC endpoint {endpoint!r} is not of the form host:port", endpoint=endpoint)
    return host, int(port)


def _receive(connection: socket.socket, n: int, until: float) -> bytes:
    data = b""
    while len(data) < n:
        connection.settimeout(max(until - time.monotonic(), 1e-3))  # for all parts together
        part = connection.recv(n - len(data))
        if not part:
            raise ConnectionError(f"it closed the connection after {len(data)} of {n} bytes")
        data += part
    return data


def _protocol(connection: socket.socket) -> tuple[int, int]:
    """Shake hands as llama.cpp does; the server's protocol version (major, minor)."""
    until = time.monotonic() + _CONNECT_TIMEOUT_S
    connection.sendall(struct.pack("<BQ", _HELLO, _CAPS_SIZE) + bytes(_CAPS_SIZE))
    (size,) = struct.unpack("<Q", _receive(connection, 8, until))
    if size != 4 + _CAPS_SIZE:
        raise ConnectionError(f"it answered with {size} bytes instead of {4 + _CAPS_SIZE}")
    major, minor = _receive(connection, size, until)[:2]
    return major, minor


def _check_known(endpoint: str) -> None:
    """A server talks to one client at a time, and that may be this process: only ask whether the port is open."""
    try:
        socket.create_connection(parse_endpoint(endpoint), timeout=_KNOWN_TIMEOUT_S).close()
    except TimeoutError:
        return  # the queue in front of a busy server is full
    except OSError as error:
        msg = f"the RPC server at {endpoint}, used before by this process, is gone ({error}); {_START}"
        raise EndpointError(msg, endpoint=endpoint) from error


def _check(endpoint: str) -> None:
    try:
        with socket.create_connection(parse_endpoint(endpoint), timeout=_CONNECT_TIMEOUT_S) as connection:
            major, minor = _protocol(connection)
    except TimeoutError as error:
        msg = (
            f"RPC server {endpoint} did not answer within {_CONNECT_TIMEOUT_S:.0f} s. "
            "It may be busy with another client (it serves one at a time), or it is not a ggml-rpc-server"
        )
        raise EndpointError(msg, endpoint=endpoint) from error
    except OSError as error:
        msg = f"no RPC server answers at {endpoint} ({error}); {_START}"
        raise EndpointError(msg, endpoint=endpoint) from error

    ours = core.RPC_PROTOCOL
    if major != ours[0] or minor > ours[1]:
        msg = (
            f"RPC server {endpoint} speaks protocol {major}.{minor}, this package {ours[0]}.{ours[1]}; "
            "start the ggml-rpc-server that was built with it (turboprefill.native.rpc_server_path())"
        )
        raise EndpointError(msg, endpoint=endpoint)


def add_server(endpoint: str) -> list[str]:
    """Register an RPC server, once per process; the names of its devices.

    Raises:
        EndpointError: it cannot be reached, or speaks another version of the protocol.
    """
    parse_endpoint(endpoint)
    if core.has_rpc_server(endpoint):
        _check_known(endpoint)
    else:
        _check(endpoint)
    names = core.add_rpc_server(endpoint)
    _added.add(endpoint)
    return names


def silent_servers() -> list[str]:
    """Endpoints that models of this process have used and that are gone: asking them anything would end the process."""
    gone = []
    for endpoint in sorted(_added):
        try:
            _check_known(endpoint)
        except EndpointError:
            gone.append(endpoint)
    return gone
