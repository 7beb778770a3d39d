"""From a task and its plan to a job, its cells and its executor. Touches what the executor does."""

from collections.abc import Iterator

from gpublocks import executors
from gpublocks.contracts import Executor, Sink, Source
from gpublocks.geometry import Cell
from gpublocks.grid import Grid
from gpublocks.job import Job
from gpublocks.planning import Plan
from gpublocks.task import Task

__all__ = ["cells_of", "make_executor", "make_job"]


def cells_of(task: Task, grid: Grid, *, inside: bool = True) -> Iterator[Cell]:
    """Return the cells that are computed: those inside the mask; or the others."""
    mask = task.mask
    if mask is None:
        return iter(grid) if inside else iter(())
    return (cell for cell in grid if mask.holds(cell) == inside)


def make_job(task: Task, grid: Grid, sinks: tuple[Sink, ...]) -> Job:
    """Return the job of a task on a grid."""
    return Job(
        function=task.function,
        sources=task.sources,
        sinks=sinks,
        grid=grid,
        kwargs=task.kwargs,
        function_type=task.function_type,
        outputs=len(sinks),
        as_memory=task.as_memory,
        neighbours=task.neighbours,
        return_result=task.return_result,
        casting=task.casting,
        divisible=_divisible(task, sinks),
    )


def make_executor(task: Task, plan: Plan) -> Executor:
    """Return the executor that a plan names.

    Raises
    ------
    DeviceError
        If it is not available, or a GPU does not start.
    """
    if task.choice.given is not None:
        return task.choice.given
    return executors.make(
        task.choice.name,
        plan.budget.workers,
        memory_limit=plan.worker_limit_bytes,
        devices=plan.devices,
        device_bytes=plan.budget.device_bytes,
        refuse=task.choice.otherwise is not None,
    )


def _divisible(task: Task, sinks: tuple[Sink, ...]) -> bool:
    """Tell whether a cell may be done in parts.

    Not in place: if nobody could do the second part, the whole cell would be done again, and read
    what the first one wrote.
    """
    if not task.overlap_known or task.function_type != "array":
        return False
    return not any(_shared(source, sink) for source in task.sources for sink in sinks)


def _shared(source: Source, sink: Sink) -> bool:
    if source.extent is None or sink.extent is None:
        return source.location is not None and source.location == sink.location
    return source.extent.overlaps(sink.extent)
