"""A machine whose GPUs a test sets, seen by a process that has not looked for any yet."""

import fake_nvml as fake
import pytest
from fake_nvml import FakeCudaDevice, FakeCupy, FakeGpu, FakeNvml, install

from gpublocks import choosing
from gpublocks.devices import cuda

UUIDS = [f"{digit * 8}-0000-0000-0000-{digit * 12}" for digit in "ab"]
TOTAL_BYTES, FREE_BYTES = 140 * 10**9, 130 * 10**9


def nvml(count: int) -> FakeNvml:
    """Return NVML with so many GPUs; without a driver if that is none."""
    if not count:
        return FakeNvml(faults={"nvmlInit": fake.NVMLError_LibraryNotFound()})
    memory = (TOTAL_BYTES, FREE_BYTES)
    found = [FakeGpu("H200", f"GPU-{uuid}", memory, bus=n) for n, uuid in enumerate(UUIDS)]
    return FakeNvml(found[:count])


def cupy(count: int) -> FakeCupy:
    """Return CuPy with so many GPUs."""
    digits = [uuid.replace("-", "") for uuid in UUIDS[:count]]
    return FakeCupy([FakeCudaDevice("H200", uuid, (FREE_BYTES, TOTAL_BYTES)) for uuid in digits])


class Machine:
    """The machine, without GPUs to begin with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "GPUBLOCKS_DEPTH"):
            monkeypatch.delenv(name, raising=False)
        self.lose({})
        self.has(0)

    def has(self, count: int, *, usable: bool = True) -> None:
        """Let there be so many GPUs, and CuPy if they are usable."""
        self._monkeypatch.setattr(choosing, "_known", {})
        self._monkeypatch.setattr(choosing, "_told", set())
        install(self._monkeypatch, nvml(count), cupy(count) if count and usable else None)

    def lose(self, lost: dict[int, str]) -> None:
        """Let GPUs be lost for this process, with the reasons."""
        self._monkeypatch.setattr(cuda, "retired", lambda: lost)
