"""From a task to its blocks: such as sinks, sizes and memory allow. Pure."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from math import prod
from typing import Any

from gpublocks.budget import Budget, Need, Traffic
from gpublocks.contracts import NewSink, Reach, Source
from gpublocks.dividing import common_unit
from gpublocks.errors import BudgetError, PlanError, SinkError
from gpublocks.grid import Grid
from gpublocks.planning import Volume
from gpublocks.sizing import (
    Layout,
    automatic_grid,
    device_grid,
    documented_grid,
    normalise_axes,
)
from gpublocks.splitting import AxisSplit, as_count
from gpublocks.storage import Pieces
from gpublocks.task import Task, declared_dtype, described

__all__ = [
    "CACHE_SHARE",
    "Units",
    "check_shapes",
    "cut",
    "encoding_bytes",
    "layout_of",
    "need_of",
    "results_of",
    "traffic_of",
    "volumes_of",
]

Units = tuple[tuple[int, ...], ...]
"""Write units of all sinks."""

CACHE_SHARE = 4
"""Part of the host memory (one in so many) that decoded pieces may take at most."""


def cut(task: Task, budget: Budget, results: Sequence[Volume] = ()) -> tuple[Grid, Units]:
    """Return blocks, and the first write units of the sinks that they can be aligned to.

    Parameters
    ----------
    results : sequence of Volume
        What the sinks hold, where that is known.

    Raises
    ------
    PlanError, BudgetError
        If they cannot be aligned to any: for those that leave the most freedom.
    """
    problems: list[tuple[int, PlanError]] = []
    for units in _offers(task, results):
        try:
            return _cut_to(task, budget, results, units), units
        except PlanError as error:
            problems.append((prod(common_unit(units, len(task.sources[0].shape))), error))
    raise min(problems, key=lambda problem: problem[0])[1]


def _offers(task: Task, results: Sequence[Volume]) -> list[Units]:
    """Return the write units that the sinks may have together, the preferred ones first.

    New sinks take one step down from what they prefer at a time, all of them together.
    """
    offers = [
        described(sink, task.sources[0], result.shape).units(result.shape, result.dtype)
        if isinstance(sink, NewSink)
        else [sink.unit]
        for sink, result in zip(task.sinks, results_of(task, results), strict=True)
    ]
    steps = range(max(map(len, offers), default=1))
    chosen = [
        tuple([tuple(offer[min(step, len(offer) - 1)]) for offer in offers]) for step in steps
    ]
    return list(dict.fromkeys(chosen))


def _cut_to(task: Task, budget: Budget, results: Sequence[Volume], units: Units) -> Grid:
    first = task.sources[0]
    empty = 0 in first.shape
    if task.automatic and not empty:
        layout = layout_of(task, results, units, budget)
        if layout.stored and layout.cache_bytes:
            # What is kept of decoded pieces comes first, as long as there is room for a block.
            left = replace(budget, host_bytes=budget.host_bytes - layout.cache_bytes)
            with suppress(BudgetError):
                return _chosen(task, layout, left, results)
        return _chosen(task, layout, budget, results)
    axes = "all" if task.automatic and task.axes is None else task.axes
    axes = normalise_axes(axes, len(first.shape), first.order, first.unit)
    sizes = task.sizes
    if task.one_block:
        sizes = replace(sizes, size_max=None, size_min=None, optimization=False)
    shape = [max(1, length) for length in first.shape]
    grid = documented_grid(shape, axes, sizes, common_unit(units, len(shape)))
    return Grid(first.shape, (0,), (AxisSplit(first.shape[0], 0, 0, 0),)) if empty else grid


def _chosen(task: Task, layout: Layout, budget: Budget, results: Sequence[Volume]) -> Grid:
    if task.choice.devices:
        return device_grid(layout, traffic_of(task, results), need_of(task), budget)
    return automatic_grid(layout, budget)


def layout_of(task: Task, results: Sequence[Volume], units: Units, budget: Budget) -> Layout:
    """Return what automatic sizing needs to know of a task.

    Raises
    ------
    PlanError, SinkError
        If overlaps and axes do not belong together, or arrays differ along the latter.
    """
    first = task.sources[0]
    ndim = len(first.shape)
    axes = normalise_axes("all" if task.axes is None else task.axes, ndim, first.order)
    overlap = task.sizes.overlap
    listed = list(overlap) if isinstance(overlap, tuple | list) else [overlap] * len(axes)
    overlaps = [0 if value is None else as_count("overlap", value, 0) for value in listed]
    if len(overlaps) != len(axes):
        raise PlanError(
            f"overlap has {len(overlaps)} values (or halo has), but there are {len(axes)} axes"
        )
    if task.axes is None:
        common = [axis for axis in axes if _all_have(task, results, axis)]
        check_shapes(task, first.shape, common or axes)
        axes, overlaps = common, [overlaps[axis] for axis in common]
    need = need_of(task)
    volumes = volumes_of(task)
    staged = sum(2 * volume.dtype.itemsize for volume in volumes if volume.staged)
    stored = tuple([volume.pieces for volume in volumes[: len(task.sources)] if volume.pieces])
    kept = task.loads_blocks and bool(stored)
    return Layout(
        shape=first.shape,
        itemsize=sum(source.dtype.itemsize for source in task.sources),
        order=first.order,
        axes=tuple(axes),
        overlap=tuple(
            min(overlap, first.shape[axis] - 1)
            for overlap, axis in zip(overlaps, axes, strict=True)
        ),
        unit=common_unit(units, ndim),
        bytes_per_voxel=sum(source.dtype.itemsize for source in task.sources)
        + need.per_voxel
        + staged,
        fixed_bytes=need.fixed + _coding_bytes(task, stored, units),
        stored=stored,
        cache_bytes=budget.host_bytes // CACHE_SHARE if kept else 0,
    )


def encoding_bytes(task: Task, units: Units) -> int:
    """Return what a worker takes to encode what it writes into sinks of these units.

    Sinks that encode tell it by a method of this name, for a unit and the bytes of a voxel.
    """
    new = (task.dtype or task.sources[0].dtype).itemsize
    most = 0
    for sink, unit in zip(task.sinks, units, strict=True):
        told: Any = getattr(sink, "encoding_bytes", None)
        if told is not None:
            most = max(most, told(unit, new if isinstance(sink, NewSink) else sink.dtype.itemsize))
    return most


def _coding_bytes(task: Task, stored: Sequence[Pieces], units: Units) -> int:
    """Return about what a worker takes to decode and encode, whatever its blocks are."""
    return max([encoding_bytes(task, units), *[2 * pieces.nbytes for pieces in stored]])


def _all_have(task: Task, results: Sequence[Volume], axis: int) -> bool:
    length = task.sources[0].shape[axis]
    arrays: list[Source | Volume] = [*task.sources, *task.existing_sinks, *results]
    return all(axis < len(array.shape) and array.shape[axis] == length for array in arrays)


def results_of(task: Task, shown: Sequence[Volume] = ()) -> list[Volume]:
    """Return what the sinks hold, new ones what was shown; else what is declared, or like a source.

    Parameters
    ----------
    shown : sequence of Volume
        Whole results as the first cell shows them, one for each sink.
    """
    first = task.sources[0]
    dtype = declared_dtype(task) or first.dtype
    expected = list(shown) or [Volume(first.shape, dtype)] * len(task.sinks)
    return [
        replace(result, dtype=task.dtype or result.dtype)
        if isinstance(sink, NewSink)
        else Volume(sink.shape, sink.dtype)
        for sink, result in zip(task.sinks, expected, strict=True)
    ]


def traffic_of(task: Task, results: Sequence[Volume]) -> Traffic:
    """Return what goes through devices."""
    arrays: list[Source | Volume] = [*task.sources, *results]
    nbytes = [prod(array.shape) * array.dtype.itemsize for array in arrays]
    count = len(task.sources)
    return Traffic(prod(task.sources[0].shape), tuple(nbytes[:count]), tuple(nbytes[count:]))


def need_of(task: Task) -> Need:
    """Return what the function takes, as far as that is known."""
    return task.need or Need.default(task.sources[0].dtype.itemsize)


def volumes_of(task: Task) -> list[Volume]:
    """Return the sources, then the sinks as far as they are known.

    Sources that are read through a cache of this process are staged too, wherever they lie.
    """
    away = task.choice.name == "processes"
    sources = [(source, Pieces.of(source)) for source in task.sources]
    arrays = [*sources, *[(sink, None) for sink in task.existing_sinks]]
    return [
        Volume(
            array.shape,
            array.dtype,
            array.order,
            pieces,
            away and (array.reach == Reach.PROCESS or (pieces is not None and task.loads_blocks)),
        )
        for array, pieces in arrays
    ]


def check_shapes(task: Task, shape: tuple[int, ...], axes: Sequence[int]) -> None:
    """Check that all arrays have the lengths of the first source along the split axes."""
    for source in task.sources:
        if prod(source.shape) * source.dtype.itemsize >= 2**63:
            raise PlanError(
                f"a source of shape {source.shape} and type {source.dtype} has "
                f"{prod(source.shape)} voxels, more than can be addressed; give a part of it"
            )
    arrays: list[Source] = [*task.sources, *task.existing_sinks]
    for number, array in enumerate(arrays):
        for axis in axes:
            if axis >= len(array.shape) or array.shape[axis] != shape[axis]:
                if number < len(task.sources):
                    raise PlanError(
                        f"sources differ along split axis {axis}: shapes {shape} and "
                        f"{array.shape}; they must agree there"
                    )
                raise SinkError(
                    f"sink of shape {array.shape} does not match source of shape {shape} "
                    f"along split axis {axis}"
                )
