"""Shapes, types and write units of results, known before or after the first cell. Pure."""

from typing import Any

from gpublocks.contracts import CellDone, DType, NewSink, Sink
from gpublocks.errors import SinkError
from gpublocks.geometry import Cell
from gpublocks.grid import Grid
from gpublocks.notice import warn_user
from gpublocks.planning import Plan
from gpublocks.task import Task, declared_dtype

__all__ = [
    "Result",
    "check_unit",
    "found_results",
    "known_results",
    "like_source",
    "unit_of",
    "warn_of_axes",
]

Result = tuple[tuple[int, ...], DType]
"""Shape and type of a whole result."""

_ROOMY = 4
"""A guess of what a function takes is not measured where so many times as much would fit."""


def known_results(task: Task, plan: Plan) -> list[Result] | None:
    """Return the results, if they are known before the first cell and need not be measured.

    A GPU that nobody asked for is always tried with the first cell alone.
    """
    if task.choice.otherwise is not None or _to_be_measured(task, plan):
        return None
    new = [sink for sink in task.sinks if isinstance(sink, NewSink)]
    if not new:
        return [(sink.shape, sink.dtype) for sink in task.existing_sinks]
    if task.function_type == "block":
        return [like_source(task)] * len(task.sinks)
    declared = declared_dtype(task)
    if len(task.sinks) == 1 and declared is not None:
        return [(task.sources[0].shape, declared)]
    return None


def found_results(done: CellDone, plan: Plan) -> list[Result]:
    """Return the results, by the valid parts of them that a cell kept."""
    return [_whole(output, done.cell, plan.grid.shape) for output in done.outputs]


def like_source(task: Task) -> Result:
    """Return a result that is like the source."""
    return task.sources[0].shape, task.sources[0].dtype


def warn_of_axes(sink: NewSink) -> None:
    """Warn if a new sink will call axes other than the source does, of which it was told."""
    names = (getattr(sink, "metadata", None) or {}).get("axes", ())
    given: Any = sink
    axes = given.arrangement(names) if getattr(sink, "has_fixed_axes", False) else None
    if axes is not None:
        called = ", ".join([names[axis] for axis in axes])
        warn_user(
            f"{sink.location} calls its axes {called}, and those of the source are "
            f"{', '.join(names)}: give the function's result transposed, or a source that is "
            f"io.permuted.Permuted(source, {axes})"
        )


def unit_of(
    sink: NewSink, shape: tuple[int, ...], dtype: DType, planned: tuple[int, ...], grid: Grid
) -> tuple[int, ...]:
    """Return the write unit of a new sink whose blocks were planned for one of its units.

    Along the axes that are cut it is the planned one. Along the others a result may have another
    length than the source, or there may be others: it is then one that the sink offers for that,
    or else the planned one as far as the result goes.
    """
    if shape == grid.shape:
        return planned
    cut = _cut_axes(grid)
    for unit in sink.units(shape, dtype):
        if all(unit[axis] == planned[axis] for axis in cut):
            return unit
    lengths = (*planned, *shape[len(planned) :])
    return tuple([min(unit, max(1, n)) for unit, n in zip(lengths, shape, strict=False)])


def check_unit(sink: Sink, planned: tuple[int, ...], grid: Grid) -> None:
    """Check that blocks planned for a write unit are whole units of the sink that came of it.

    Raises
    ------
    SinkError
        If two blocks may share a unit.
    """
    if any(planned[axis] % sink.unit[axis] for axis in _cut_axes(grid)):
        raise SinkError(
            f"{sink!r} is written in units of {sink.unit}, and blocks were planned for "
            f"{planned}, which it had offered; create it first, and give it as the sink"
        )


def _cut_axes(grid: Grid) -> list[int]:
    return [axis for axis, split in zip(grid.axes, grid.splits, strict=True) if split.count > 1]


def _to_be_measured(task: Task, plan: Plan) -> bool:
    """Tell whether blocks were chosen by a guess of what the function takes that may be too low."""
    if plan.need.origin != "default" or not task.automatic or task.function_type != "array":
        return False
    guessed, room = plan.peak_bytes - plan.cache_bytes, plan.budget.host_bytes - plan.cache_bytes
    tight = guessed * _ROOMY > room
    return task.choice.name == "cuda" or (tight and task.choice.name == "processes")


def _whole(output: Any, cell: Cell, shape: tuple[int, ...]) -> Result:
    lengths = list(output.shape)
    for axis in cell.axes:
        lengths[axis] = shape[axis]
    return tuple(lengths), output.dtype
