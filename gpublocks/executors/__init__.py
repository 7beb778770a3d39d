"""Where and when cells are done: the executors, each imported when it is asked for. Pure."""

from importlib import import_module
from typing import Any

from gpublocks.contracts import Executor
from gpublocks.errors import PlanError
from gpublocks.workers import nesting

__all__ = [
    "NAMES",
    "ProcessExecutor",
    "SerialExecutor",
    "StreamExecutor",
    "check",
    "make",
    "nested",
    "release_workers",
]

NAMES = ("serial", "threads", "processes")

_HOMES = {
    "ProcessExecutor": "gpublocks.executors.processes",
    "SerialExecutor": "gpublocks.executors.serial",
    "StreamExecutor": "gpublocks.executors.stream",
    "release_workers": "gpublocks.workers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def check(name: str) -> None:
    """Raise if there is no executor of a name, or none on this machine; start nothing.

    Raises
    ------
    PlanError
        If the name is unknown.
    DeviceError
        If worker processes cannot be started here.
    """
    make(name, 1)


def nested() -> bool:
    """Tell whether this process is itself a worker."""
    return nesting() > 0


def make(name: str, workers: int, *, memory_limit: int | None = None) -> Executor:
    """Return the executor of a name.

    Parameters
    ----------
    name : {'serial', 'threads', 'processes'}
    workers : int
        Cells in flight at once; one for 'serial'.
    memory_limit : int, optional
        Bytes by which the private memory of a worker process may grow; others ignore it.

    Raises
    ------
    PlanError, DeviceError
        As `check` does.
    """
    if name == "serial":
        from gpublocks.executors.serial import SerialExecutor

        return SerialExecutor()
    if name == "threads":
        from gpublocks.devices.host import HostDevice
        from gpublocks.executors.stream import StreamExecutor

        return StreamExecutor([HostDevice(workers)])
    if name == "processes":
        from gpublocks.executors.processes import ProcessExecutor

        return ProcessExecutor(workers, memory_limit=memory_limit)
    raise PlanError(f"executor is {name!r}; use one of {', '.join(map(repr, NAMES))}")
