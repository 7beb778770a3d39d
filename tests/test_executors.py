"""The promises of executors, kept by each of them."""

import sys

import pytest
from contracts.executors import HostExecutorContract
from fake_nvml import FakeCupy, FakeGpu, FakeNvml, install

from gpublocks import executors
from gpublocks.devices import cuda
from gpublocks.devices.host import HostDevice
from gpublocks.errors import DeviceError, PlanError
from gpublocks.executors import ProcessExecutor, SerialExecutor, StreamExecutor


class TestSerial(HostExecutorContract):
    def make(self, workers):
        return SerialExecutor()


class TestThreads(HostExecutorContract):
    def make(self, workers):
        return StreamExecutor([HostDevice(workers)])


@pytest.mark.skipif(sys.platform != "linux", reason="worker processes need Linux")
class TestProcesses(HostExecutorContract):
    def make(self, workers):
        return ProcessExecutor(workers)


@pytest.mark.parametrize("name", [name for name in executors.NAMES if name != "cuda"])
def test_executors_by_name(name):
    made = executors.make(name, 3)
    assert made.name == name
    assert made.workers == (1 if name == "serial" else 3)
    executors.check(name)


def test_gpus_by_name(monkeypatch):
    opened = []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(cuda, "CudaDevice", lambda *given: opened.append(given) or opened[-1])
    made = executors.make("cuda", 2, devices=(0, 3), device_bytes=70)
    assert made.name == "cuda"
    assert made.devices == ((0, 70), (3, 70))
    gpu = FakeGpu("H200", f"GPU-{'a' * 8}-0000-0000-0000-{'a' * 12}")
    install(monkeypatch, FakeNvml([gpu]), FakeCupy([]))
    executors.check("cuda")
    install(monkeypatch, FakeNvml([gpu]))
    with pytest.raises(DeviceError, match="'cuda' is not available: CuPy is not installed: pip"):
        executors.check("cuda")
    assert len(opened) == 2


def test_unknown_names():
    with pytest.raises(PlanError, match="'serial', 'threads', 'processes'"):
        executors.check("dask")
    with pytest.raises(AttributeError, match="no attribute 'Pool'"):
        executors.Pool  # noqa: B018


@pytest.mark.parametrize(("platform", "name"), [("darwin", "macOS"), ("win32", "Windows")])
def test_processes_are_refused_where_they_cannot_be(monkeypatch, platform, name):
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(DeviceError, match=f"not available on {name} yet; use executor='threads'"):
        executors.check("processes")


def test_processes_need_an_interpreter(monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(DeviceError, match="without a Python interpreter"):
        executors.check("processes")


def test_pools_nest_no_deeper_than_three(monkeypatch):
    assert not executors.nested()
    monkeypatch.setenv("GPUBLOCKS_DEPTH", "2")
    executors.check("processes")
    monkeypatch.setenv("GPUBLOCKS_DEPTH", "3")
    assert executors.nested()
    with pytest.raises(PlanError, match="nested 3 deep"):
        executors.check("processes")
