"""What the first things cost that a process does with a GPU, and what it finds. Touches the GPU."""

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any, TypeVar

import numpy as np

from benchmarks.gpu.lab import Lab
from gpublocks import gpus, machine

__all__ = ["start"]

_Value = TypeVar("_Value")


def start(lab: Lab, *, folder: str | None) -> None:
    """Note why there is no GPU; or time and memory of the first steps, and all facts.

    Has to be the first part of its process.
    """
    memory = machine.memory_available()
    lab.note("host", {"available_bytes": memory.bytes, "available_reason": memory.reason})
    lab.note("host", {"cpus": machine.cpu_count(), "folder_free_bytes": _free(folder)})
    known = gpus.gpus()
    used = _nvml_used(known[0].uuid) if known and known[0].uuid else None
    before = used() if used else None
    _timed(lab, "import CuPy", _import_cupy)
    status = _timed(lab, "look for GPUs", lambda: gpus.gpu_status(exact=True))
    lab.note("status", status)
    if status:
        return
    found = gpus.gpus(exact=True)[0]
    lab.note("gpu", {"uuid": found.uuid, "driver": found.driver, "limit": found.limit})
    _timed(lab, "begin", lambda: lab.cuda.synchronize())
    lab.note("gpu", lab.cuda.facts())
    _note_used(lab, "context_bytes", used, before)
    image = _timed(lab, "first copy", lambda: lab.cuda.asarray(np.ones((32, 32, 32), np.float32)))
    _timed(lab, "first kernel", lambda: _added(lab, image))
    _timed(lab, "second kernel", lambda: _added(lab, image))
    _note_used(lab, "context_and_kernels_bytes", used, before)


def _timed(lab: Lab, name: str, step: Callable[[], _Value]) -> _Value:
    begun = time.perf_counter()
    value = step()
    lab.note(f"seconds/{name}", time.perf_counter() - begun)
    return value


def _import_cupy() -> None:
    with suppress(Exception):  # the status says what is wrong with it
        import_module("cupy")


def _added(lab: Lab, image: Any) -> None:
    (image + 1.5).sum()
    lab.cuda.synchronize()


def _note_used(lab: Lab, name: str, used: Callable[[], int] | None, before: int | None) -> None:
    if used is not None and before is not None:
        lab.note(name, used() - before)


def _nvml_used(uuid: str) -> Callable[[], int] | None:
    """Return what tells the memory of a GPU in use without CUDA; None where nothing does."""
    with suppress(Exception):  # not installed, no library, no permission, not supported
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetMemoryInfo(handle)
        return lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
    return None


def _free(folder: str | None) -> int:
    return shutil.disk_usage(folder or tempfile.gettempdir()).free
