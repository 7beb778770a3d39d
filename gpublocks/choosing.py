"""Who computes: the executor of a run, by what was asked for and what there is.

Touches NVML and CuPy, reads only.
"""

import os
import re
import sys
import threading
from collections.abc import Iterable
from typing import Any

from gpublocks import executors, gpus, machine
from gpublocks.contracts import DType
from gpublocks.errors import ArgumentTypeError, DeviceError, PlanError
from gpublocks.gpus import Gpu
from gpublocks.notice import warn_user
from gpublocks.splitting import as_count
from gpublocks.task import Choice

__all__ = ["agree", "choose", "count_workers"]

_MOST_WORKERS = 4096
"""More workers than the cores of any machine are a slip of the hand."""

_ON_GPUS = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8), "c": (8, 16)}
"""Kinds and bytes of the types for which CuPy has kernels (``cupy/_core/_scalar.pyx``)."""

_DEVICES = "give 'auto', 'cpu', 'cuda', one such as 'cuda:0', or a list of such"

_known: dict[tuple[str | None, ...], tuple[tuple[Gpu, ...], str]] = {}
"""What was seen before, by the variables that hide GPUs."""
_told: set[str] = set()
"""Why GPUs are not used, as far as it was said."""


def choose(
    *,
    executor: Any,
    processes: int | str | None,
    device: Any,
    function_type: str,
    dtypes: Iterable[tuple[str, DType]],
    homes: Iterable[int] = (),
) -> Choice:
    """Decide who computes.

    An executor that is asked for wins; then a device that is named, or there is an error; then
    `processes`, and functions that read and write by themselves, mean CPUs; then come the GPUs
    that can be used, and worker processes where there are none.

    Parameters
    ----------
    device : None, 'auto', 'cpu', 'cuda', 'cuda:N' or list of 'cuda:N'
        ``'auto'`` is what None is, but says if there is no GPU.
    dtypes : iterable of (str, numpy.dtype)
        What is read and written, each with a name for messages.
    homes : iterable of int
        Numbers of the GPUs in whose memory arrays lie that are read or written.

    Raises
    ------
    PlanError, ArgumentTypeError
        If what was asked for makes no sense, or contradicts itself.
    DeviceError
        If it is not here.
    """
    chosen = _choose(executor, processes, device, function_type, dtypes)
    places = sorted(set(homes))
    if not places:
        return chosen
    where = " and ".join(f"cuda:{number}" for number in places)
    if len(places) > 1 or places[0] not in chosen.devices:
        raise DeviceError(
            f"arrays lie in the memory of {where}, but {chosen.name} computes "
            f"({chosen.reason}); convert them with .get(), or use device='cuda:{places[0]}' for "
            "arrays on one GPU"
        )
    reason = f"an array lies in the memory of {where}"
    return Choice("cuda", 1, f"{chosen.reason}; {reason}", devices=tuple(places))


def _choose(
    executor: Any,
    processes: int | str | None,
    device: Any,
    function_type: str,
    dtypes: Iterable[tuple[str, DType]],
) -> Choice:
    workers = count_workers(processes)
    if workers > _MOST_WORKERS:
        raise PlanError(f"processes is {workers}; at most {_MOST_WORKERS} are started")
    numbers = _numbers(device)
    if not agree(executor, device):
        raise PlanError(
            f"executor={executor!r} and device={device!r} contradict each other; give one of them"
        )
    if executor is not None and not _is(executor, "cuda"):
        return _asked_for(executor, workers)
    if executor is not None or numbers is not None:
        asked = "executor='cuda'" if numbers is None else f"device={device!r}"
        return _on_gpus(asked, numbers or (), function_type, dtypes)
    cpus = _on_cpus(processes, workers)
    if _is(device, "cpu") or processes is not None or _nested():
        return cpus
    if function_type != "array":
        return _because(cpus, f"functions of type {function_type!r} read and write there")
    found, trouble = _usable()
    if trouble:
        if found or device is not None:
            _tell(f"no GPU is used: {trouble}; device='cpu' asks for none")
        return _because(cpus, f"no GPU is used: {trouble}")
    unfit = _unfit(dtypes)
    if unfit:
        return _because(cpus, f"no GPU is used: {unfit}")
    names = " and ".join(dict.fromkeys(gpu.name for gpu in found))
    chosen = tuple(gpu.index for gpu in found)
    reason = f"all GPUs of this process ({names})"
    return Choice("cuda", len(chosen), reason, devices=chosen, otherwise=cpus)


def agree(executor: Any, device: Any) -> bool:
    """Tell whether an executor and a device can both be meant; None and 'auto' go with all."""
    if executor is None or device is None or _is(device, "auto"):
        return True
    return _is(executor, "cuda") is not _is(device, "cpu")


def count_workers(processes: int | str | None) -> int:
    """Return the number of workers that `processes` asks for.

    Raises
    ------
    PlanError, ArgumentTypeError
        If it is neither a positive number, nor 'serial', nor None.
    """
    if processes is None:
        return machine.cpu_count()
    if isinstance(processes, str):
        if processes != "serial":
            raise PlanError(f"processes is {processes!r}; give a number, 'serial' or None")
        return 1
    return as_count("processes", processes, 1)


def _numbers(device: Any) -> tuple[int, ...] | None:
    """Return the numbers of the GPUs that are named; none for all; None if no GPU is named."""
    if device is None or _is(device, "auto") or _is(device, "cpu"):
        return None
    if _is(device, "cuda"):
        return ()
    if not isinstance(device, str | tuple | list):
        raise ArgumentTypeError(f"device is a {type(device).__name__}; {_DEVICES}")
    names = [device] if isinstance(device, str) else list(device)
    matches = [re.fullmatch("cuda:([0-9]{1,4})", str(name)) for name in names]
    numbers = tuple([int(match[1]) for match in matches if match])
    if not names or len(numbers) < len(names):
        raise DeviceError(f"device is {device!r}; {_DEVICES}")
    if len(set(numbers)) < len(numbers):
        raise DeviceError(f"device is {device!r}, which names one twice; give each once")
    return numbers


def _is(value: Any, word: str) -> bool:
    """Compare with a word what may be anything, an array too."""
    return isinstance(value, str) and value == word


def _asked_for(executor: Any, workers: int) -> Choice:
    if isinstance(executor, str):
        executors.check(executor)
        reason = f"executor={executor!r}"
        return Choice(executor, 1 if executor == "serial" else workers, reason)
    if not isinstance(getattr(executor, "workers", None), int) or not hasattr(executor, "run"):
        raise ArgumentTypeError(
            f"executor is a {type(executor).__name__}; give 'serial', 'threads', 'processes', "
            "'cuda' or an object with run(job, cells), name and workers"
        )
    name = str(getattr(executor, "name", type(executor).__name__))
    return Choice(name, executor.workers, "given as an object", executor)


def _on_cpus(processes: int | str | None, workers: int) -> Choice:
    if processes == "serial":
        return Choice("serial", 1, "processes='serial'")
    within = _nested()
    if within:
        return Choice("serial", 1, f"called from {within}")
    reason = "all CPUs of this process" if processes is None else f"processes={processes}"
    if sys.platform != "linux":
        return Choice("threads", workers, f"{reason}; worker processes need Linux")
    return Choice("processes", workers, reason)


def _on_gpus(
    asked: str, numbers: tuple[int, ...], function_type: str, dtypes: Iterable[tuple[str, DType]]
) -> Choice:
    """Return the choice of the GPUs with these numbers, of all if there are none."""
    if function_type != "array":
        raise PlanError(
            f"{asked} computes with arrays only, but function_type is {function_type!r}; "
            "use function_type='array', or device='cpu'"
        )
    trouble = _unfit(dtypes)
    if trouble:
        raise DeviceError(f"{asked}, but {trouble}; use device='cpu'")
    within = _nested()
    if within:
        raise DeviceError(
            f"{asked} in a call from {within}, where no GPU is started; use device='cpu' there"
        )
    found, trouble = _usable()
    if trouble and not found:
        # Where NVML does not tell, CUDA itself may.
        found = gpus.gpus(exact=True)
        trouble = "" if found else trouble
    if trouble:
        raise DeviceError(f"{asked}, but no GPU can be used: {trouble}; or use device='cpu'")
    there = [gpu.index for gpu in found]
    lost = _lost()
    for number in numbers:
        if number in lost:
            raise DeviceError(f"{asked}, but {lost[number]}; or use device='cpu'")
        if number not in there:
            raise DeviceError(
                f"{asked}, but there is no cuda:{number}, only "
                f"{', '.join(f'cuda:{n}' for n in there)}; use one of them, or device='cpu'"
            )
    chosen = numbers or tuple(there)
    return Choice("cuda", len(chosen), asked, devices=chosen)


def _because(choice: Choice, why: str) -> Choice:
    return Choice(choice.name, choice.workers, f"{choice.reason}; {why}")


def _usable() -> tuple[tuple[Gpu, ...], str]:
    """Return the GPUs that can be used, or those there are and why none of them can be."""
    found, trouble = _seen()
    if trouble or not found:
        return found, trouble
    lost = _lost()
    left = tuple([gpu for gpu in found if gpu.index not in lost])
    return (left, "") if left else (found, "; ".join(lost.values()))


def _seen() -> tuple[tuple[Gpu, ...], str]:
    """Return the GPUs, and why none can be used.

    Without a driver, and where all is well, nothing changes as long as this process lives; what
    is not installed may be meanwhile.
    """
    key = tuple(map(os.environ.get, ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")))
    if key not in _known:
        seen = gpus.gpus(), gpus.gpu_status()
        if all(seen):
            return seen
        _known[key] = seen
    return _known[key]


def _lost() -> dict[int, str]:
    """Return the GPUs that this process is not to use again, and why."""
    from gpublocks.devices.cuda import retired

    return {
        number: f"cuda:{number} is lost for this process ({reason}); start it again"
        for number, reason in retired().items()
    }


def _nested() -> str:
    """Return whose function the call comes from, if it is one that is run here."""
    if executors.nested():
        return "a worker process"
    match = re.fullmatch("(cuda:[0-9]+) compute", threading.current_thread().name)
    return f"a function on {match[1]}" if match else ""


def _unfit(dtypes: Iterable[tuple[str, DType]]) -> str:
    """Return which type GPUs do not have, if there is one."""
    for name, dtype in dtypes:
        if dtype.itemsize not in _ON_GPUS.get(dtype.kind, ()):
            return f"{name} has the type {dtype}, with which GPUs do not compute"
    return ""


def _tell(text: str) -> None:
    """Warn, once in this process."""
    if text not in _told:
        _told.add(text)
        warn_user(text)
