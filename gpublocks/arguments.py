"""From the arguments of `process` to a Task: opens sources and sinks, creates nothing.

Touches the machine and files, reads only.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from gpublocks import io, machine
from gpublocks.budget import Need, format_bytes, parse_bytes
from gpublocks.choosing import choose
from gpublocks.contracts import Array, DType, NewSink, Sink, Source
from gpublocks.errors import ArgumentTypeError, BudgetError, PlanError, SinkError
from gpublocks.masking import Mask
from gpublocks.sizing import Sizes, normalise_axes
from gpublocks.splitting import as_count
from gpublocks.task import Task, check_function, name_of

__all__ = ["make_task", "read_mask"]

_LENGTHS = ("size_max", "size_min", "size_multiple_of")
"""Where none of them is given, and the context of the function is known, sizes are chosen."""


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
    sources = tuple(io.as_source(item) for item in given_sources)
    sinks = tuple(io.as_sink(item) for item in given_sinks)
    _check_distinct(sinks)
    new_dtype = None if dtype is None else _dtype(dtype)
    choice = choose(
        executor=executor,
        processes=processes,
        device=device,
        function_type=kind,
        dtypes=_dtypes(sources, sinks, new_dtype),
        homes=_homes([*sources, *sinks]),
    )
    if sink is None and kind != "block" and not return_result:
        sinks = (io.new_array(shared=choice.name == "processes"),)
    if dtype is not None and sinks and not any(isinstance(s, NewSink) for s in sinks):
        raise PlanError(f"dtype is {dtype!r}, but all sinks exist; it is for new ones")
    first = sources[0]
    host_bytes, device_bytes = _limits(memory)
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
        memory_bytes=host_bytes,
        device_bytes=device_bytes,
        need=_need(function, first.dtype),
        dtype=new_dtype,
        casting=casting,
        mask=None if mask is None else Mask.of(read_mask(mask, host_bytes), first.shape),
        as_memory=as_memory,
        neighbours=neighbours,
        return_result=return_result,
    )


def read_mask(mask: Any, limit_bytes: int | None = None) -> Array:
    """Return a mask as an array; of a path the array in that file.

    Many formats have no type for truth values, so integers of a file that are not 0 are True.

    Parameters
    ----------
    mask : array_like or path
    limit_bytes : int, optional
        Memory that it may take; by default what there is.

    Raises
    ------
    BudgetError
        If it takes more memory.
    SourceError
        If the file cannot be read.
    """
    if not isinstance(mask, str | os.PathLike):
        return np.asarray(mask)
    source = io.as_source(mask)
    limit_bytes = machine.memory_available().bytes if limit_bytes is None else limit_bytes
    nbytes = prod(source.shape) * (source.dtype.itemsize + (source.dtype != np.bool_))
    if nbytes > limit_bytes:
        raise BudgetError(
            f"the mask {source.location} of shape {source.shape} and {source.dtype} takes "
            f"{format_bytes(nbytes)} of memory, and {format_bytes(limit_bytes)} may be taken; "
            "give a coarser one"
        )
    array = np.asarray(source)
    return array != 0 if array.dtype.kind in "iu" else array


def _dtypes(
    sources: Sequence[Source], sinks: Sequence[Sink | NewSink], new: DType | None
) -> list[tuple[str, DType]]:
    """Return all types that are known so far, and what has them."""
    found = [("the source", source.dtype) for source in sources]
    found += [("the sink", sink.dtype) for sink in sinks if not isinstance(sink, NewSink)]
    return found if new is None else [*found, ("the new sink", new)]


def _homes(arrays: Iterable[Any]) -> list[int]:
    """Return on which GPUs arrays lie."""
    homes = [getattr(array, "on_device", None) for array in arrays]
    return [number for number in homes if number is not None]


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
    if declared and len(halo) != ndim:
        raise PlanError(
            f"function {name_of(function)!r} has a halo for {len(halo)} axes, {halo}, but the "
            f"source has the shape {first.shape}; give one value for all axes, or one for each"
        )
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


def _limits(memory: Any) -> tuple[int | None, int | None]:
    """Return the bytes that may be taken on the host, and on each device."""
    if not isinstance(memory, Mapping):
        return (None if memory is None else parse_bytes(memory)), None
    unknown = set(memory) - {"host", "device"}
    if unknown:
        raise PlanError(f"memory has keys {sorted(unknown)}; use 'host' and 'device'")
    limits = {key: parse_bytes(value) for key, value in memory.items() if value is not None}
    return limits.get("host"), limits.get("device")


def _listed(value: Any) -> Any:
    """Return an array of values as a list."""
    return list(value) if getattr(value, "ndim", 0) else value


def _need(function: Any, dtype: DType) -> Need | None:
    """Return what a filter declares that it takes for each voxel of a type."""
    declared = getattr(function, "memory", None)
    per_voxel = declared(dtype) if callable(declared) else declared
    if isinstance(per_voxel, int | float) and not isinstance(per_voxel, bool):
        return Need(float(per_voxel), origin="filter")
    return None


def _dtype(dtype: Any) -> DType:
    try:
        found: DType = np.dtype(dtype)
    except TypeError as error:
        raise ArgumentTypeError(f"dtype is {dtype!r}; give a NumPy type ({error})") from None
    if found.hasobject:
        raise ArgumentTypeError(f"dtype {found} cannot be stored block-wise; use numbers")
    return found
