"""One run from start to end: first cell, sinks, events, finish or abort. Touches everything."""

from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np

from gpublocks import executors
from gpublocks.contracts import (
    CellDone,
    CellFailed,
    DType,
    Event,
    Executor,
    NewSink,
    Run,
    Sink,
    Stage,
)
from gpublocks.drafting import replan
from gpublocks.errors import PlanError
from gpublocks.geometry import Cell
from gpublocks.grid import Grid
from gpublocks.job import Job, explained
from gpublocks.planning import Plan
from gpublocks.running import EventRun
from gpublocks.task import Task
from gpublocks.telling import forward_output

__all__ = ["TaskRun", "measure"]

_ROOMY = 4
"""A guess of what a function takes is not measured where so many times as much would fit."""


class TaskRun:
    """A task under way.

    Iterating over `events` does the work; afterwards `sinks` and `values` hold what came of it.

    Parameters
    ----------
    task : Task
    plan : Plan

    Attributes
    ----------
    events : EventRun
        Events of all cells; can be cancelled.
    plan : Plan
        The plan; after the first cell with what was measured.
    sinks : tuple of Sink
        Where the results are.
    values : dict of int to object
        What the function returned for each cell, if that was asked for.
    """

    def __init__(self, task: Task, plan: Plan) -> None:
        self.task = task
        self.plan = plan
        self.sinks: tuple[Sink, ...] = ()
        self.values: dict[int, Any] = {}
        self.events = EventRun(self._drive, self._stop)
        self._under_way: Run | None = None

    def cells(self, *, inside: bool = True) -> Iterator[Cell]:
        """Return the cells that are computed: those inside the mask; or the others."""
        mask = self.task.mask
        if mask is None:
            return iter(self.plan.grid) if inside else iter(())
        return (cell for cell in self.plan.grid if mask.holds(cell) == inside)

    @property
    def count(self) -> int:
        """Number of cells that are computed."""
        return len(self.plan.grid) if self.task.mask is None else sum(1 for _ in self.cells())

    def _stop(self) -> None:
        under_way = self._under_way
        if under_way is not None:
            under_way.cancel()

    def _drive(self, run: EventRun) -> Generator[Event, None, None]:
        created: list[Sink] = []
        try:
            failed = yield from self._cells(run, created)
            if not failed and not run.cancelled:
                self._verify_sources()
                while created:
                    created[0].sync()
                    created[0].finish()
                    del created[0]
        finally:
            with ExitStack() as stack:
                for sink in created:
                    stack.callback(sink.abort)

    def _cells(self, run: EventRun, created: list[Sink]) -> Generator[Event, None, bool]:
        cells = self.cells()
        results = _known_results(self.task, self.plan)
        first = next(cells, None) if results is None else None
        done: CellDone | None = None
        if first is not None:
            done = yield from self._first(run, first)
            if done is None:
                return True
            results = [_whole(output, first, self.plan.grid) for output in done.outputs]
            plan = replan(self.task, self.plan, done)
            if plan.grid is not self.plan.grid:
                done = None
            self.plan = plan
            cells = self.cells() if done is None else cells
        self._create(created, results or [_like_source(self.task)] * len(self.task.sinks))
        job = make_job(self.task, self.plan.grid, self.sinks)
        if done is not None:
            stored = _store(job, done)
            self._keep(stored)
            yield stored
            if isinstance(stored, CellFailed):
                return True
        self._fill(created)
        return (yield from self._pass_on(run, make_executor(self.task, self.plan), job, cells))

    def _first(self, run: EventRun, cell: Cell) -> Generator[Event, None, CellDone | None]:
        """Compute the first cell without storing it: it shows shape, type and need of memory."""
        job = _trial_job(self.task, self.plan.grid)
        done: CellDone | None = None
        for event in self._events_of(run, make_executor(self.task, self.plan), job, iter([cell])):
            if isinstance(event, CellDone):
                done = event
            else:
                yield event
        return done

    def _pass_on(
        self, run: EventRun, executor: Executor, job: Job, cells: Iterator[Cell]
    ) -> Generator[Event, None, bool]:
        failed = False
        for event in self._events_of(run, executor, job, cells):
            self._keep(event)
            failed = failed or isinstance(event, CellFailed)
            yield event
        return failed

    def _events_of(
        self, run: EventRun, executor: Executor, job: Job, cells: Iterator[Cell]
    ) -> Iterator[Event]:
        self._under_way = executor.run(job, cells)
        if run.cancelled:
            self._under_way.cancel()
        try:
            yield from self._under_way
        finally:
            self._under_way = None

    def _keep(self, event: Event) -> None:
        if self.task.return_result and isinstance(event, CellDone):
            self.values[event.cell.number] = event.value

    def _create(self, created: list[Sink], results: list[tuple[tuple[int, ...], DType]]) -> None:
        """Open the sinks: create those that are new for results of these shapes and types."""
        opened: list[Sink] = []
        for sink, (shape, dtype) in zip(self.task.sinks, results, strict=True):
            if not isinstance(sink, NewSink):
                opened.append(sink)
                continue
            order = self.task.sources[0].order
            new = sink.create(shape, self.task.dtype or dtype, order)
            created.append(new)
            opened.append(new)
        self.sinks = tuple(opened)

    def _verify_sources(self) -> None:
        """Raise `SourceError` if a file that was read has changed, other than by this run."""
        written = {sink.extent.store for sink in self.sinks if sink.extent is not None}
        for source in self.task.sources:
            verify = getattr(source, "verify", None)
            if verify is not None and source.extent and source.extent.store not in written:
                verify()

    def _fill(self, created: list[Sink]) -> None:
        """Write zeros where a mask skips cells; new sinks hold zeros from the start."""
        existing = [sink for sink in self.sinks if all(sink is not new for new in created)]
        if existing:
            for cell in self.cells(inside=False):
                for sink in existing:
                    region = cell.valid_in(sink.shape)
                    sink.write(region, np.zeros(region.shape, sink.dtype))


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
    )


def _trial_job(task: Task, grid: Grid) -> Job:
    """Return the job that computes a cell without storing it."""
    return replace(make_job(task, grid, ()), outputs=len(task.sinks), keep_outputs=True)


def make_executor(task: Task, plan: Plan) -> Executor:
    """Return the executor that a plan names."""
    if task.choice.given is not None:
        return task.choice.given
    limit = plan.worker_limit_bytes
    return executors.make(task.choice.name, plan.budget.workers, memory_limit=limit)


def measure(task: Task, plan: Plan) -> Plan:
    """Return a plan with what the function takes, from a call on the first block.

    Raises
    ------
    PlanError
        For a function that writes into the sinks itself.
    """
    if task.function_type == "block":
        raise PlanError("trial=True would let a 'block' function write; plan without it")
    cell = next(TaskRun(task, plan).cells(), None)
    if cell is None:
        return plan
    for event in make_executor(task, plan).run(_trial_job(task, plan.grid), [cell]):
        forward_output(event)
        if isinstance(event, CellDone):
            plan = replan(task, plan, event)
    return plan


def _known_results(task: Task, plan: Plan) -> list[tuple[tuple[int, ...], DType]] | None:
    """Return shapes and types of the results, if they are known before the first cell."""
    source = task.sources[0]
    new = [sink for sink in task.sinks if isinstance(sink, NewSink)]
    guessed = plan.need.origin == "default" and task.automatic and task.function_type == "array"
    if not new:
        tight = plan.peak_bytes * _ROOMY > plan.budget.host_bytes
        if guessed and tight and task.choice.name == "processes":
            return None
        return [(sink.shape, sink.dtype) for sink in task.existing_sinks]
    if task.function_type == "block":
        return [_like_source(task)] * len(task.sinks)
    result_dtype = getattr(task.function, "result_dtype", None)
    if len(task.sinks) == 1 and callable(result_dtype):
        return [(source.shape, np.dtype(result_dtype(source.dtype)))]
    return None


def _like_source(task: Task) -> tuple[tuple[int, ...], DType]:
    return task.sources[0].shape, task.sources[0].dtype


def _whole(output: Any, cell: Cell, grid: Grid) -> tuple[tuple[int, ...], DType]:
    """Return shape and type of a whole result from those of one cell's valid part."""
    shape = list(output.shape)
    for axis in cell.axes:
        shape[axis] = grid.shape[axis]
    return tuple(shape), output.dtype


def _store(job: Job, done: CellDone) -> CellDone | CellFailed:
    """Store the outputs that the first cell kept."""
    start = perf_counter()
    stage: Stage = "compute"
    try:
        job.admit(done.cell, done.outputs)
        stage = "store"
        written = job.store(done.cell, done.outputs)
    except Exception as error:
        return CellFailed(done.cell, done.worker, stage, explained(error, job, done.cell, stage))
    load, compute, _ = done.seconds
    seconds = (load, compute, perf_counter() - start)
    return replace(done, seconds=seconds, written_bytes=written, outputs=())
