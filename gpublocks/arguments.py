"""From the arguments of `process` to a Task: opens sources and sinks, creates nothing.

Touches the machine and files, reads only.
"""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gpublocks import executors, io, machine
from gpublocks.budget import Need, parse_bytes
from gpublocks.contracts import NewSink, Sink, Source
from gpublocks.errors import ArgumentTypeError, DeviceError, PlanError, SinkError
from gpublocks.masking import Mask
from gpublocks.sizing import Sizes, normalise_axes
from gpublocks.splitting import as_count
from gpublocks.task import Choice, Task, check_function

__all__ = ["count_workers", "make_task"]

_LENGTHS = ("size_max", "size_min", "size_multiple_of")
"""Where none of them is given, and the context of the function is known, sizes are chosen."""

_MOST_WORKERS = 4096
"""More workers than the cores of any machine are a slip of the hand."""


def make_task(
    function: Callable[..., Any],
    source: Any,
    sink: Any,
    *,
    kwargs: Mapping[str, Any],
    own: Iterable[str],
    passed: Iterable[str],
    axes: Any,
    sizes: Mapping[str, Any],
    halo: Any,
    neighbours: bool,
    function_type: str | None,
    as_memory: bool,
    return_result: bool,
    processes: int | str | None,
    device: Any,
    executor: Any,
    memory: Any,
    dtype: Any,
    casting: str | None,
    mask: Any,
) -> Task:
    """Return the task that the arguments of `gpublocks.block_processing.process` ask for.

    Parameters
    ----------
    sizes : mapping
        The documented sizes: keyword arguments of `Sizes`, without `processes`.
    own, passed : iterable of str
        Keywords of `process`; and those beyond the documented ones that were given a value.

    Raises
    ------
    PlanError, ArgumentTypeError, SourceError, SinkError, DeviceError
    """
    kind = function_type or "array"
    given_sinks = [] if sink is None else sink if isinstance(sink, list) else [sink]
    given_sources = source if isinstance(source, list) else [source]
    if not given_sources:
        raise PlanError("source is an empty list; give at least one source")
    n_arrays = len(given_sources) + (len(given_sinks) if kind == "block" else 0)
    check_function(function, kind, n_arrays, kwargs, own, passed)
    if casting not in (None, "no", "equiv", "safe", "same_kind", "unsafe"):
        raise PlanError(
            f"casting is {casting!r}; use 'no', 'equiv', 'safe', 'same_kind' or 'unsafe'"
        )
    choice = _choose(executor, processes, device)
    sources = tuple(io.as_source(item) for item in given_sources)
    sinks = tuple(io.as_sink(item) for item in given_sinks)
    _check_distinct(sinks)
    if sink is None and kind != "block" and not return_result:
        sinks = (io.new_array(shared=choice.name == "processes"),)
    if dtype is not None and sinks and not any(isinstance(s, NewSink) for s in sinks):
        raise PlanError(f"dtype is {dtype!r}, but all sinks exist; it is for new ones")
    first = sources[0]
    halo = _listed(halo)
    sizes = {name: _listed(value) for name, value in sizes.items()}
    overlap = _overlap(sizes["overlap"], _split_halo(halo, function, axes, sizes, first))
    one_block = isinstance(sizes["size_max"], str) and sizes["size_max"] == "full"
    return Task(
        function=function,
        kwargs=dict(kwargs),
        function_type=kind,  # type: ignore[arg-type]
        sources=sources,
        sinks=sinks,
        choice=choice,
        axes=axes,
        sizes=Sizes(
            **{
                **sizes,
                "overlap": overlap,
                "size_max": None if one_block else sizes["size_max"],
                "processes": choice.workers,
            }
        ),
        overlap_known=overlap is not None,
        one_block=one_block,
        memory_bytes=_host_bytes(memory),
        need=_need(function),
        dtype=None if dtype is None else _dtype(dtype),
        casting=casting,
        mask=None if mask is None else Mask.of(np.asarray(mask), first.shape),
        as_memory=as_memory,
        neighbours=neighbours,
        return_result=return_result,
    )


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


def _choose(executor: Any, processes: int | str | None, device: Any) -> Choice:
    """Decide who computes: what was asked for, else worker processes where they exist."""
    workers = count_workers(processes)
    if workers > _MOST_WORKERS:
        raise PlanError(f"processes is {workers}; at most {_MOST_WORKERS} are started")
    if device not in (None, "auto", "cpu"):
        from gpublocks import gpus

        status = gpus.gpu_status()
        raise DeviceError(
            f"device is {device!r}, but this version computes on CPUs only; use device='cpu'"
            + (f" ({status})" if status else "")
        )
    if executor is not None and not isinstance(executor, str):
        if not isinstance(getattr(executor, "workers", None), int) or not hasattr(executor, "run"):
            raise ArgumentTypeError(
                f"executor is a {type(executor).__name__}; give 'serial', 'threads', 'processes' "
                "or an object with run(job, cells), name and workers"
            )
        name = str(getattr(executor, "name", type(executor).__name__))
        return Choice(name, executor.workers, "given as an object", executor)
    if executor is not None:
        executors.check(executor)
        reason = f"executor={executor!r}"
        return Choice(executor, 1 if executor == "serial" else workers, reason)
    if processes == "serial":
        return Choice("serial", 1, "processes='serial'")
    if executors.nested():
        return Choice("serial", 1, "called from a worker process")
    reason = "all CPUs of this process" if processes is None else f"processes={processes}"
    if sys.platform != "linux":
        return Choice("threads", workers, f"{reason}; worker processes need Linux")
    return Choice("processes", workers, reason)


def _check_distinct(sinks: Sequence[Sink | NewSink]) -> None:
    """Refuse two sinks at one place (those that exist are compared by their bytes later)."""
    places = [os.path.realpath(sink.location) for sink in sinks if sink.location]
    for new in sinks:
        place = new.location if isinstance(new, NewSink) else None
        if place and places.count(os.path.realpath(place)) > 1:
            raise SinkError(f"two sinks are the same file: {place}")


def _split_halo(
    halo: Any, function: Any, axes: Any, sizes: Mapping[str, Any], first: Source
) -> Any:
    """Return the halo of the split axes: one number, one for each of them, or None.

    One that a filter declares has a number for each axis of the array, as one that was passed may
    have.
    """
    declared = halo is None
    halo = getattr(function, "halo", None) if declared else halo
    if not isinstance(halo, tuple | list):
        return halo
    if axes is None and all(sizes[name] is None for name in _LENGTHS):
        axes = "all"
    ndim = len(first.shape)
    split = normalise_axes(axes, ndim, first.order, first.unit)
    if len(halo) == ndim and (declared or len(split) < ndim):
        return [halo[axis] for axis in split]
    return halo


def _overlap(overlap: Any, halo: Any) -> Any:
    """Return the overlap that `overlap` and `halo` ask for; None if neither is known.

    Raises
    ------
    PlanError
        If the halo is meaningless, or larger than half the overlap.
    """
    if halo is None:
        return overlap
    listed = isinstance(halo, tuple | list)
    halos = [as_count("halo", value, 0) for value in (halo if listed else [halo])]
    needed: Any = [2 * value for value in halos] if listed else 2 * halos[0]
    if overlap is None:
        return needed
    given = list(overlap) if isinstance(overlap, tuple | list) else [overlap]
    wanted = needed if isinstance(needed, list) else [needed]
    longest = max(len(given), len(wanted))
    for have, want in zip(
        given * (longest if len(given) == 1 else 1),
        wanted * (longest if len(wanted) == 1 else 1),
        strict=False,
    ):
        if have is not None and as_count("overlap", have, 0) < want:
            raise PlanError(
                f"overlap {have} is less than twice the halo {want // 2}; "
                f"use an overlap of at least {want}"
            )
    return overlap


def _host_bytes(memory: Any) -> int | None:
    if memory is None:
        return None
    if isinstance(memory, Mapping):
        unknown = set(memory) - {"host", "device"}
        if unknown:
            raise PlanError(f"memory has keys {sorted(unknown)}; use 'host' and 'device'")
        limits = {key: parse_bytes(value) for key, value in memory.items() if value is not None}
        return limits.get("host")
    return parse_bytes(memory)


def _listed(value: Any) -> Any:
    """Return an array of values as a list."""
    return list(value) if getattr(value, "ndim", 0) else value


def _need(function: Any) -> Need | None:
    per_voxel = getattr(function, "memory", None)
    if isinstance(per_voxel, int | float) and not isinstance(per_voxel, bool):
        return Need(float(per_voxel), origin="filter")
    return None


def _dtype(dtype: Any) -> "np.dtype[Any]":
    try:
        found: np.dtype[Any] = np.dtype(dtype)
    except TypeError as error:
        raise ArgumentTypeError(f"dtype is {dtype!r}; give a NumPy type ({error})") from None
    if found.hasobject:
        raise ArgumentTypeError(f"dtype {found} cannot be stored block-wise; use numbers")
    return found
