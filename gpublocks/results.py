"""Shapes and types of results, where they are known before or after the first cell. Pure."""

from typing import Any

import numpy as np

from gpublocks.contracts import CellDone, DType, NewSink
from gpublocks.geometry import Cell
from gpublocks.planning import Plan
from gpublocks.task import Task

__all__ = ["Result", "found_results", "known_results", "like_source"]

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
    source = task.sources[0]
    result_dtype = getattr(task.function, "result_dtype", None)
    if len(task.sinks) == 1 and callable(result_dtype):
        return [(source.shape, np.dtype(result_dtype(source.dtype)))]
    return None


def found_results(done: CellDone, plan: Plan) -> list[Result]:
    """Return the results, by the valid parts of them that a cell kept."""
    return [_whole(output, done.cell, plan.grid.shape) for output in done.outputs]


def like_source(task: Task) -> Result:
    """Return a result that is like the source."""
    return task.sources[0].shape, task.sources[0].dtype


def _to_be_measured(task: Task, plan: Plan) -> bool:
    """Tell whether blocks were chosen by a guess of what the function takes that may be too low."""
    if plan.need.origin != "default" or not task.automatic or task.function_type != "array":
        return False
    tight = plan.peak_bytes * _ROOMY > plan.budget.host_bytes
    return task.choice.name == "cuda" or (tight and task.choice.name == "processes")


def _whole(output: Any, cell: Cell, shape: tuple[int, ...]) -> Result:
    lengths = list(output.shape)
    for axis in cell.axes:
        lengths[axis] = shape[axis]
    return tuple(lengths), output.dtype
