# ruff: noqa: N802 - the names are NVML's
"""NVML's Python binding on a machine that is made up."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

__all__ = ["FakeNvml"]


@dataclass(frozen=True)
class FakeHandle:
    index: int


class FakeNvml(ModuleType):
    """NVML's Python binding on a machine with GPUs named 0, 1, ...; each function fails if it is in ``broken``."""

    NVML_P2P_CAPS_INDEX_READ = 0
    NVML_P2P_STATUS_OK = 0
    NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED = 1

    class NVMLError(Exception):
        pass

    def __init__(self, n: int = 2, broken: tuple[object, ...] = ()) -> None:
        super().__init__("pynvml")
        self.n = n
        self.broken = broken
        self.sessions = 0
        self.p2p: dict[tuple[int, int], int] = {}

    def fail_if(self, *names: object) -> None:
        if any(name in self.broken for name in names):
            raise self.NVMLError("it does not work")

    def nvmlInit(self) -> None:
        self.fail_if("init")
        self.sessions += 1

    def nvmlShutdown(self) -> None:
        self.sessions -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        self.fail_if("driver")
        return "580.65.06"

    def nvmlDeviceGetCount(self) -> int:
        self.fail_if("count")
        return self.n

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeHandle:
        return FakeHandle(index)

    def nvmlDeviceGetName(self, handle: FakeHandle) -> str:
        return "NVIDIA H200"

    def nvmlDeviceGetMemoryInfo(self, handle: FakeHandle) -> SimpleNamespace:
        self.fail_if(("memory", handle.index))
        return SimpleNamespace(total=143771 << 20)

    def nvmlDeviceGetCudaComputeCapability(self, handle: FakeHandle) -> tuple[int, int]:
        self.fail_if("capability")
        return 9, 0

    def nvmlDeviceGetCurrPcieLinkWidth(self, handle: FakeHandle) -> int:
        self.fail_if("width")
        return 16

    def nvmlDeviceGetP2PStatus(self, one: FakeHandle, other: FakeHandle, index: int) -> int:
        assert index == self.NVML_P2P_CAPS_INDEX_READ
        self.fail_if("p2p", ("p2p", one.index, other.index))
        return self.p2p.get((one.index, other.index), self.NVML_P2P_STATUS_OK)
