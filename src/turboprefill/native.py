"""The native module and the files that are installed beside it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from turboprefill.errors import NativeModuleError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["core", "rpc_server_path", "virtual_backend_path"]


def _load() -> ModuleType:
    try:
        return importlib.import_module("turboprefill._core")
    except ImportError as error:
        msg = (
            f"the native module turboprefill._core does not load ({error}); expected it in {Path(__file__).parent}. "
            "Build it with `pip install .` in the source folder, with the Python that you run"
        )
        raise NativeModuleError(msg) from error


def _installed(*parts: str) -> Path:
    # Beside the native module, which an editable install keeps away from the Python files.
    path = Path(str(core.__file__)).parent.joinpath(*parts)
    if not path.is_file():
        raise NativeModuleError(f"{path} is missing; install the package again with `pip install .`")
    return path


def rpc_server_path() -> Path:
    """Path of the ``ggml-rpc-server`` that was built with this package.

    Raises:
        NativeModuleError: it is not installed.
    """
    return _installed("bin", "ggml-rpc-server")


def virtual_backend_path() -> Path:
    """Path of the backend with virtual devices, for ``GGML_BACKEND_PATH``.

    Raises:
        NativeModuleError: it is not installed.
    """
    return _installed("lib", "libturboprefill-virtual.so")


if TYPE_CHECKING:
    import turboprefill._core as core
else:
    core = _load()
