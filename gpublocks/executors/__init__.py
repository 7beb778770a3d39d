"""Where and when cells are done: executors, each imported when asked for. Touches what they do."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from gpublocks import gpus, machine
from gpublocks.contracts import Executor
from gpublocks.errors import DeviceError, PlanError
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

NAMES = ("serial", "threads", "processes", "cuda")

_COPIERS = 14
"""Threads for each GPU that copy blocks: one gathers or scatters some 4 to 10 GB/s, and a link
takes some 25 to 50 each way."""

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
        If worker processes cannot be started here, or no GPU can be used.
    """
    trouble = gpus.gpu_status() if name == "cuda" else ""
    if trouble:
        raise DeviceError(f"executor 'cuda' is not available: {trouble}")
    if name != "cuda":
        make(name, 1)


def nested() -> bool:
    """Tell whether this process is itself a worker."""
    return nesting() > 0


def make(
    name: str,
    workers: int,
    *,
    memory_limit: int | None = None,
    devices: Sequence[int] = (0,),
    device_bytes: int | None = None,
    refuse: bool = False,
) -> Executor:
    """Return the executor of a name.

    Parameters
    ----------
    name : {'serial', 'threads', 'processes', 'cuda'}
    workers : int
        Cells in flight at once; one for 'serial'. Those of 'cuda' are its devices.
    memory_limit : int, optional
        Bytes by which the private memory of a worker process may grow; others ignore it.
    devices : sequence of int
        Numbers of the GPUs of 'cuda'.
    device_bytes : int, optional
        Bytes that may be taken on each of them.
    refuse : bool
        Whether cells that no GPU can do are announced by `CellRefused`; else they fail the run.

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
    if name == "cuda":
        from gpublocks.devices.cuda import CudaDevice
        from gpublocks.executors.stream import StreamExecutor

        opened = [CudaDevice(number, device_bytes) for number in devices]
        copiers = min(machine.cpu_count(), _COPIERS * len(opened))
        return StreamExecutor(opened, "cuda", copiers=copiers, refuse=refuse)
    raise PlanError(f"executor is {name!r}; use one of {', '.join(map(repr, NAMES))}")
