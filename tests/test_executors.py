"""The promises of executors, kept by each of them."""

import sys

import pytest
from contracts.executors import ExecutorContract

from gpublocks import executors
from gpublocks.devices.host import HostDevice
from gpublocks.errors import DeviceError, PlanError
from gpublocks.executors import ProcessExecutor, SerialExecutor, StreamExecutor


class TestSerial(ExecutorContract):
    def make(self, workers):
        return SerialExecutor()


class TestThreads(ExecutorContract):
    def make(self, workers):
        return StreamExecutor([HostDevice(workers)])


@pytest.mark.skipif(sys.platform != "linux", reason="worker processes need Linux")
class TestProcesses(ExecutorContract):
    def make(self, workers):
        return ProcessExecutor(workers)


@pytest.mark.parametrize("name", executors.NAMES)
def test_executors_by_name(name):
    made = executors.make(name, 3)
    assert made.name == name
    assert made.workers == (1 if name == "serial" else 3)
    executors.check(name)


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
