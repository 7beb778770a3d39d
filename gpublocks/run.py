"""One run from start to end: first cell, sinks, events, finish or abort. Touches everything."""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import chain
from time import perf_counter
from typing import Any

import numpy as np

from gpublocks.collecting import Take, in_order
from gpublocks.contracts import (
    CellDone,
    CellFailed,
    CellRefused,
    Event,
    Executor,
    NewSink,
    Run,
    Sink,
    Source,
    Span,
    Stage,
)
from gpublocks.enacting import cells_of, make_executor, make_job, sources_of
from gpublocks.errors import DeviceError, PlanError
from gpublocks.geometry import Cell
from gpublocks.job import Job, explained, spans_of
from gpublocks.moving import line, plan_rest, warn_of_rest
from gpublocks.planning import Plan
from gpublocks.results import (
    Result,
    check_unit,
    found_results,
    known_results,
    like_source,
    unit_of,
    warn_of_axes,
)
from gpublocks.running import EventRun
from gpublocks.task import Task, described
from gpublocks.telling import forward_output
from gpublocks.trial import Trial

__all__ = ["TaskRun", "measure"]


class TaskRun:
    """A task under way.

    Iterating over `events` does the work; afterwards `sinks` and `values` hold what came of it.

    Parameters
    ----------
    task : Task
    plan : Plan
    take : callable, optional
        Called with what the function returned for each cell, in their order, instead of keeping
        it.

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

    def __init__(self, task: Task, plan: Plan, take: Take | None = None) -> None:
        self.task = task
        self.plan = plan
        self.sinks: tuple[Sink, ...] = ()
        self.values: dict[int, Any] = {}
        self.events = EventRun(self._drive, self._stop)
        self._under_way: Run | None = None
        self._done = 0
        self._take = take
        self._give: Callable[[Cell, Any], None] | None = None

    @property
    def count(self) -> int:
        """Number of cells that are computed."""
        if self.task.mask is None:
            return len(self.plan.grid)
        return sum(1 for _ in cells_of(self.task, self.plan.grid))

    def _stop(self) -> None:
        under_way = self._under_way
        if under_way is not None:
            under_way.cancel()

    def _drive(self, run: EventRun) -> Generator[Event, None, None]:
        created: list[Sink] = []
        try:
            # After a cell that failed this generator is closed, not resumed.
            yield from self._cells(run, created)
            if not run.cancelled:
                self._verify_sources()
                for sink in self._existing(created):
                    sink.sync()
                while created:
                    created[0].sync()
                    created[0].finish()
                    del created[0]
                for sink in self.sinks:
                    sink.finish()
        finally:
            with ExitStack() as stack:
                for sink in created:
                    stack.callback(sink.abort)

    def _cells(self, run: EventRun, created: list[Sink]) -> Generator[Event, None, None]:
        done: CellDone | None = None
        read: tuple[Source, ...] = ()
        results = known_results(self.task, self.plan)
        if results is None:
            done, read = yield from self._first(run)
            results = found_results(done, self.plan) if done is not None else []
        self._create(created, results or [like_source(self.task)] * len(self.task.sinks))
        sources = sources_of(self.task, self.plan, read)
        job = make_job(self.task, self.plan.grid, sources, self.sinks)
        cells = cells_of(self.task, self.plan.grid)
        # Another plan may have another first cell.
        if done is not None and next(cells, None) == done.cell:
            stored = _store(job, done)
            self._keep(stored)
            yield stored
        else:
            cells = cells_of(self.task, self.plan.grid)
        self._fill(created)
        yield from self._all(run, job, cells)

    def _first(
        self, run: EventRun
    ) -> Generator[Event, None, tuple[CellDone | None, tuple[Source, ...]]]:
        """Compute the first cell without storing it; take over what it showed of all others."""
        trial = Trial(self.task, self.plan, partial(self._events_of, run))
        for event in trial.events():
            self.task, self.plan = trial.task, trial.plan
            yield event
        self.task, self.plan = trial.task, trial.plan
        return trial.done, trial.sources

    def _all(self, run: EventRun, job: Job, cells: Iterator[Cell]) -> Generator[Event, None, None]:
        """Do cells. What GPUs that nobody asked for leave undone, CPUs do."""
        refused: list[Cell] = []
        why: Exception | None = None
        try:
            executor = make_executor(self.task, self.plan)
        except DeviceError as error:
            if self.task.choice.otherwise is None:
                raise
            why = error
        else:
            for event in self._events_of(run, executor, job, cells):
                self._keep(event)
                yield event
                if isinstance(event, CellRefused):
                    refused.append(event.cell)
                    why = event.error
        if why is not None:
            yield from self._rest(run, job, chain(refused, cells), why)

    def _rest(
        self, run: EventRun, job: Job, cells: Iterator[Cell], why: Exception
    ) -> Generator[Event, None, None]:
        """Let CPUs do cells that no GPU could do."""
        first = next(cells, None)
        if first is None:
            return
        task, plan = plan_rest(self.task, self.plan, self.sinks, why)
        warn_of_rest(self.count - self._done, self.count, why)
        executor = make_executor(task, plan)
        for event in self._events_of(run, executor, job, chain([first], cells)):
            self._keep(event)
            if isinstance(event, CellFailed):
                event.error.add_note(f"no GPU could do it before: {line(why)}")
            yield event

    def _events_of(
        self, run: EventRun, executor: Executor, job: Job, cells: Iterator[Cell]
    ) -> Generator[Event, None, None]:
        self._under_way = executor.run(job, cells)
        if run.cancelled:
            self._under_way.cancel()
        try:
            yield from self._under_way
        finally:
            self._under_way = None

    def _keep(self, event: Event) -> None:
        if isinstance(event, CellDone):
            self._done += 1
            if self.task.return_result:
                self._hold(event.cell, event.value)

    def _hold(self, cell: Cell, value: Any) -> None:
        if self._take is None:
            self.values[cell.number] = value
            return
        if self._give is None:
            # By now it is settled which cells there are.
            self._give = in_order(cells_of(self.task, self.plan.grid), self._take)
        self._give(cell, value)

    def _create(self, created: list[Sink], results: list[Result]) -> None:
        """Open the sinks: create those that are new for results of these shapes and types."""
        opened: list[Sink] = []
        grid, order = self.plan.grid, self.task.sources[0].order
        for sink, result, planned in zip(self.task.sinks, results, self.plan.units, strict=True):
            if not isinstance(sink, NewSink):
                reserve = getattr(sink, "reserve", None)
                if reserve is not None:
                    reserve()
                opened.append(sink)
                continue
            shape, dtype = result[0], self.task.dtype or result[1]
            told = described(sink, self.task.sources[0], shape)
            if told is not sink:
                warn_of_axes(told)
            sink = told
            unit = unit_of(sink, shape, dtype, planned, grid)
            new = sink.create(shape, dtype, order, unit=unit)
            created.append(new)
            opened.append(new)
            check_unit(new, planned, grid)
        self.sinks = tuple(opened)

    def _verify_sources(self) -> None:
        """Raise `SourceError` if a file that was read has changed, other than by this run."""
        written = {sink.extent.store for sink in self.sinks if sink.extent is not None}
        for source in self.task.sources:
            verify = getattr(source, "verify", None)
            if verify is not None and source.extent and source.extent.store not in written:
                verify()

    def _existing(self, created: list[Sink]) -> list[Sink]:
        return [sink for sink in self.sinks if all(sink is not new for new in created)]

    def _fill(self, created: list[Sink]) -> None:
        """Write zeros where a mask skips cells; new sinks hold zeros from the start."""
        existing = self._existing(created)
        if existing:
            for cell in cells_of(self.task, self.plan.grid, inside=False):
                for sink in existing:
                    region = cell.valid_in(sink.shape)
                    sink.write(region, np.zeros(region.shape, sink.dtype))


def measure(task: Task, plan: Plan) -> Plan:
    """Return a plan with what the function takes, from a call on the first block.

    Raises
    ------
    PlanError
        For a function that writes into the sinks itself.
    """
    if task.function_type == "block":
        raise PlanError("trial=True would let a 'block' function write; plan without it")

    def do(executor: Executor, job: Job, cells: Iterator[Cell]) -> Generator[Event, None, None]:
        yield from executor.run(job, cells)

    trial = Trial(task, plan, do)
    for event in trial.events():
        forward_output(event)
        if isinstance(event, CellFailed):
            raise event.error
    return trial.plan


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
    stored = perf_counter() - start
    # It was not stored where it was computed.
    before = [span for span in spans_of(done) if span.step != "write"]
    return replace(
        done,
        seconds=(load, compute, stored),
        written_bytes=written,
        outputs=(),
        spans=(*before, Span("write", "first block", start, stored, written)),
    )
