"""Stand-ins for pynvml and CuPy that answer what a test has written down for them."""

# ruff: noqa: N801, N802, N818 - the names are those of NVML

import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

Memory = tuple[int, int]


class NVMLError(Exception):
    text = "Unknown Error"

    def __str__(self) -> str:
        return self.text


class NVMLError_NotSupported(NVMLError):
    text = "Not Supported"


class NVMLError_NoPermission(NVMLError):
    text = "Insufficient Permissions"


class NVMLError_LibraryNotFound(NVMLError):
    text = "NVML Shared Library Not Found"


class NVMLError_FunctionNotFound(NVMLError):
    text = "Function Not Found"


class NVMLError_NotFound(NVMLError):
    text = "Not Found"


class NVMLError_DriverNotLoaded(NVMLError):
    text = "Driver Not Loaded"


@dataclass
class FakeGpu:
    """A GPU or MIG device, which is its own handle.

    `memory` is (total, free), an error, or a list of them: one for each question, the last for
    all that follow. `parts` makes it a GPU in MIG mode.
    """

    name: str
    uuid: str
    memory: Memory | NVMLError | list[Memory | NVMLError] = (100, 60)
    bus: int = 0
    parts: "list[FakeGpu | None] | None" = None
    instance: int = 0
    closed: NVMLError | None = None

    def tell_memory(self) -> Memory:
        answers = self.memory if isinstance(self.memory, list) else [self.memory]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, NVMLError):
            raise answer
        return answer


@dataclass
class FakeNvml:
    """The part of pynvml that gpublocks uses. `faults` names functions and what they raise."""

    gpus: list[FakeGpu] = field(default_factory=list)
    cuda: int = 13000
    driver: str = "580.65"
    faults: dict[str, NVMLError] = field(default_factory=dict)
    sessions: int = 0
    """How often it was opened and not closed."""

    NVMLError = NVMLError
    NVMLError_NotSupported = NVMLError_NotSupported
    NVMLError_NoPermission = NVMLError_NoPermission
    NVMLError_LibraryNotFound = NVMLError_LibraryNotFound
    NVMLError_FunctionNotFound = NVMLError_FunctionNotFound
    NVMLError_NotFound = NVMLError_NotFound
    NVMLError_DriverNotLoaded = NVMLError_DriverNotLoaded
    NVML_DEVICE_MIG_ENABLE = 1

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml"):
            if name in self.faults:
                raise_it = self.faults[name]

                def fail(*args: Any) -> None:
                    raise raise_it

                return fail
            if name != "nvmlInit" and self.sessions < 1:
                raise AssertionError(f"{name} is called while NVML is not open")
        return super().__getattribute__(name)

    def nvmlInit(self) -> None:
        self.sessions += 1

    def nvmlShutdown(self) -> None:
        self.sessions -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.driver

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return self.cuda

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        gpu = self.gpus[index]
        if gpu.closed is not None:
            raise gpu.closed
        return gpu

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        parts = [part for gpu in self.gpus for part in gpu.parts or () if part is not None]
        for gpu in (*self.gpus, *parts):
            if gpu.uuid == uuid:
                return gpu
        raise NVMLError_NotFound

    def nvmlDeviceGetName(self, handle: FakeGpu) -> str:
        return handle.name

    def nvmlDeviceGetUUID(self, handle: FakeGpu) -> str:
        return handle.uuid

    def nvmlDeviceGetPciInfo(self, handle: FakeGpu) -> Any:
        return SimpleNamespace(domain=0, bus=handle.bus, device=0)

    def nvmlDeviceGetMemoryInfo(self, handle: FakeGpu) -> Any:
        total, free = handle.tell_memory()
        return SimpleNamespace(total=total, free=free, used=total - free)

    def nvmlDeviceGetMigMode(self, device: FakeGpu) -> list[int]:
        if device.uuid.startswith("MIG-"):
            raise NVMLError_NotSupported
        return [int(device.parts is not None)] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, device: FakeGpu) -> int:
        return len(device.parts or ())

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: FakeGpu, index: int) -> FakeGpu:
        part = (device.parts or [])[index]
        if part is None:
            raise NVMLError_NotFound
        return part

    def nvmlDeviceGetGpuInstanceId(self, device: FakeGpu) -> int:
        return device.instance

    def nvmlDeviceGetComputeInstanceId(self, device: FakeGpu) -> int:
        return 0


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass
class FakeCudaDevice:
    """A device as CUDA tells it; `memory` as that of `FakeGpu`, but (free, total)."""

    name: str
    uuid: str
    """32 hexadecimal digits."""
    memory: Memory | CUDARuntimeError = (60, 100)
    integrated: bool = False


class FakeCupy:
    """The part of CuPy that looks for GPUs."""

    def __init__(
        self,
        devices: list[FakeCudaDevice],
        *,
        built: int = 13020,
        driver: int = 13000,
        libraries: bool = True,
        fault: CUDARuntimeError | None = None,
    ) -> None:
        self.devices, self.fault, self.libraries = devices, fault, libraries
        self.current = [0]
        self.cuda = SimpleNamespace(
            Device=self._device,
            nvrtc=SimpleNamespace(getVersion=self._nvrtc),
            runtime=SimpleNamespace(
                CUDARuntimeError=CUDARuntimeError,
                is_hip=False,
                runtimeGetVersion=lambda: built,
                driverGetVersion=lambda: driver,
                cudaDevAttrIntegrated=18,
                getDeviceCount=self._count,
                getDeviceProperties=self._properties,
                deviceGetAttribute=self._attribute,
                memGetInfo=self._memory,
            ),
        )

    def _nvrtc(self) -> tuple[int, int]:
        if not self.libraries:
            raise RuntimeError('Failure finding "libnvrtc.so.13"')
        return 13, 0

    def _count(self) -> int:
        if self.fault is not None:
            raise self.fault
        return len(self.devices)

    def _properties(self, device: int) -> dict[str, Any]:
        known = self.devices[device]
        total = 100 if isinstance(known.memory, CUDARuntimeError) else known.memory[1]
        uuid = bytes.fromhex(known.uuid)
        return {"name": known.name.encode(), "uuid": uuid, "totalGlobalMem": total}

    def _attribute(self, attrib: int, device: int) -> int:
        assert attrib == 18
        return int(self.devices[device].integrated)

    def _memory(self) -> Memory:
        answer = self.devices[self.current[-1]].memory
        if isinstance(answer, CUDARuntimeError):
            raise answer
        return answer

    def _device(self, index: int) -> Any:
        return _Current(self, index)


class _Current:
    def __init__(self, cupy: FakeCupy, index: int) -> None:
        self.cupy, self.index = cupy, index

    def __enter__(self) -> None:
        self.cupy.current.append(self.index)

    def __exit__(self, *error: object) -> None:
        self.cupy.current.pop()


def install(monkeypatch: pytest.MonkeyPatch, nvml: Any, cupy: Any = None) -> None:
    """Let them be imported as pynvml and cupy; None as if not installed."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
