"""Whether a chain of filters had better be two passes over the volume. Pure."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Protocol, runtime_checkable

from gpublocks.budget import Budget, Need
from gpublocks.contracts import DType, Filter
from gpublocks.cutting import cut
from gpublocks.errors import PlanError
from gpublocks.grid import Grid
from gpublocks.sizing import normalise_axes
from gpublocks.task import Task

__all__ = ["advice_for", "passes_of"]

_WORTH_IT = 0.9
"""Part of the bytes that two passes may move to be advised: a second pass has costs of its own."""


@runtime_checkable
class _Chain(Filter, Protocol):
    """Filters that follow each other."""

    steps: tuple[Any, ...]

    def cut(self, at: int) -> "tuple[_Chain, _Chain]":
        """Return the chain of the first steps, and that of the others."""


@dataclass(frozen=True, slots=True)
class _Passes:
    """Two passes over a volume, and the bytes that they move for each voxel."""

    first: _Chain
    second: _Chain
    moved: float


def advice_for(task: Task, grid: Grid, budget: Budget) -> str:
    """Return how a chain would move fewer bytes in two passes; nothing if it would not.

    The halos of a chain add up, and what lies within them is read for every block anew. Two passes
    read less of that, but read the volume twice, and the first one writes what the second reads.
    """
    chain = task.function
    if not isinstance(chain, _Chain) or len(chain.steps) < 2:
        return ""
    if task.one_block or len(task.sources) > 1:
        return ""
    if 0 in grid.shape or _listed(task) != _overlap(task, chain):
        return ""
    before = _read(grid) * task.sources[0].dtype.itemsize
    best = min(_in_two(chain, task, budget), key=lambda passes: passes.moved, default=None)
    if best is None or best.moved > _WORTH_IT * before:
        return ""
    return (
        f"one pass reads {before:.3g} B for each voxel; {best.first!r}, and then {best.second!r}, "
        f"would move {best.moved:.3g} B, what lies between included"
    )


def passes_of(function: Any) -> str:
    """Return how a chain is done in two passes, neither of which looks far; nothing for others."""
    if not isinstance(function, _Chain) or len(function.steps) < 2:
        return ""
    cuts = [function.cut(at) for at in range(1, len(function.steps))]
    first, second = min(cuts, key=lambda parts: max(_reach(part) for part in parts))
    return f"{first!r}, and then {second!r}"


def _reach(function: _Chain) -> int:
    halo = function.halo
    return max(halo) if isinstance(halo, tuple) else halo


def _in_two(chain: _Chain, task: Task, budget: Budget) -> Iterator[_Passes]:
    """Return all ways to do a chain in two passes of which the planner knows what they read."""
    dtype = task.sources[0].dtype
    for at in range(1, len(chain.steps)):
        first, second = chain.cut(at)
        between = first.result_dtype(dtype)
        if between is None:
            continue
        with suppress(PlanError):
            reads = _read(_grid(task, first, dtype, budget)) * dtype.itemsize
            reads += _read(_grid(task, second, between, budget)) * between.itemsize
            yield _Passes(first, second, reads + between.itemsize)


def _grid(task: Task, function: _Chain, dtype: DType, budget: Budget) -> Grid:
    """Return the blocks for a part of the chain, on a source of some type."""
    memory = function.memory(dtype)
    need = None if memory is None else Need(memory, origin="filter")
    sizes = replace(task.sizes, overlap=_overlap(task, function))
    return cut(replace(task, function=function, need=need, sizes=sizes), budget)[0]


def _read(grid: Grid) -> float:
    return grid.read_voxels / prod(grid.shape)


def _axes(task: Task) -> list[int]:
    first = task.sources[0]
    axes = "all" if task.automatic and task.axes is None else task.axes
    return normalise_axes(axes, len(first.shape), first.order, first.unit)


def _listed(task: Task) -> list[Any]:
    overlap = task.sizes.overlap
    return list(overlap) if isinstance(overlap, tuple | list) else [overlap] * len(_axes(task))


def _overlap(task: Task, function: _Chain) -> list[int]:
    """Return the overlap for each split axis that the halo of a filter asks for."""
    halo = function.halo
    return [2 * (halo[axis] if isinstance(halo, tuple) else halo) for axis in _axes(task)]
