"""From a task and its plan to a job, its cells and its executor. Touches what the executor does."""

from collections.abc import Iterator, Sequence

from gpublocks import executors
from gpublocks.caching import Cached
from gpublocks.contracts import Executor, Sink, Source
from gpublocks.geometry import Cell
from gpublocks.grid import Grid
from gpublocks.job import Job
from gpublocks.planning import Plan
from gpublocks.task import Task

__all__ = ["cells_of", "make_executor", "make_job", "sources_of"]


def cells_of(task: Task, grid: Grid, *, inside: bool = True) -> Iterator[Cell]:
    """Return the cells that are computed: those inside the mask; or the others.

    They come in the order in which the first source is stored.
    """
    mask = task.mask
    cells = grid.walk(task.sources[0].order)
    if mask is None:
        return cells if inside else iter(())
    return (cell for cell in cells if mask.holds(cell) == inside)


def sources_of(task: Task, plan: Plan, before: Sequence[Source] = ()) -> tuple[Source, ...]:
    """Return the sources of a task, read through caches where its plan says so.

    Parameters
    ----------
    before : sequence of Source
        What this returned for an earlier plan: caches for the same blocks are used again.
    """
    known = [cached for cached in before if isinstance(cached, Cached)]
    sources: list[Source] = []
    for n, source in enumerate(task.sources):
        usage, limit_bytes = plan.usage(n), plan.caches[n] if plan.caches else 0
        if usage is None or not limit_bytes:
            sources.append(source)
            continue
        same = [c for c in known if c.source is source and c.usage == usage]
        cached = same[0] if same else Cached(source, usage, limit_bytes)
        cached.limit_bytes = limit_bytes
        sources.append(cached)
    return tuple(sources)


def make_job(task: Task, grid: Grid, sources: tuple[Source, ...], sinks: tuple[Sink, ...]) -> Job:
    """Return the job of a task on a grid, with the sources that `sources_of` gave."""
    return Job(
        function=task.function,
        sources=sources,
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
        recorded=task.recorded,
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
