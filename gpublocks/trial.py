"""The first cell, computed alone: what the function gives and takes, and where it runs.

Touches what its executor does.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace

from gpublocks.contracts import (
    CellDone,
    CellFailed,
    CellRefused,
    CellRetried,
    CellSplit,
    Event,
    Executor,
)
from gpublocks.drafting import replan
from gpublocks.enacting import cells_of, make_executor, make_job, sources_of
from gpublocks.errors import BudgetError, DeviceError, DeviceMemoryError
from gpublocks.geometry import Cell
from gpublocks.job import Job
from gpublocks.moving import line, move, warn_of_move
from gpublocks.planning import Plan
from gpublocks.recovery import MOST_HALVINGS
from gpublocks.task import Task

__all__ = ["Do", "Trial"]

Do = Callable[[Executor, Job, Iterator[Cell]], Generator[Event, None, None]]
"""Does cells with an executor, and returns the events of it."""

_Came = CellDone | CellFailed | CellRefused
"""What may come of a cell."""


class Trial:
    """The first cell of a task, which is computed without being stored.

    If GPUs that nobody asked for cannot do it, CPUs do, and shall do all others.

    Parameters
    ----------
    task : Task
    plan : Plan
    do : callable

    Attributes
    ----------
    task, plan
        How all cells are to be done, by what the first one showed.
    done : CellDone or None
        What came of it, once all events were taken: nothing where no cell is to be computed.
    sources : tuple of Source
        What it was read from: caches hold what other cells need too.
    """

    def __init__(self, task: Task, plan: Plan, do: Do) -> None:
        self.task = task
        self.plan = plan
        self.done: CellDone | None = None
        self.sources = sources_of(task, plan)
        self._do = do

    def events(self) -> Generator[Event, None, None]:
        """Compute the cell; yield all events, but for that of the cell if it is done."""
        cell = next(cells_of(self.task, self.plan.grid), None)
        if cell is None:
            return
        came = yield from self._compute(cell)
        why = self._replanned(came) if isinstance(came, CellDone) else came.error
        if why is not None and self._may_move(came):
            yield CellRetried(cell, came.worker, line(why))
            came = yield from self._on_cpus(came.worker, why)
        if isinstance(came, CellDone):
            self.done = came
        else:
            yield came

    def _replanned(self, done: CellDone) -> BudgetError | None:
        """Plan anew by what the cell took; return why GPUs that nobody asked for cannot go on."""
        try:
            self.plan = replan(self.task, self.plan, done)
        except BudgetError as error:
            if self.task.choice.otherwise is None:
                raise
            return error
        return None

    def _may_move(self, came: _Came) -> bool:
        """Tell whether CPUs may do better: not where reading failed, or several GPUs were lost."""
        if not isinstance(came, CellFailed):
            return True
        theirs = came.stage == "load" or isinstance(came.error, DeviceError)
        return self.task.choice.otherwise is not None and not theirs

    def _on_cpus(self, worker: str, why: BaseException) -> Generator[Event, None, _Came]:
        """Plan all cells for CPUs, and compute the first one there."""
        task = self.task
        self.task, self.plan = move(task, why)
        self.sources = sources_of(self.task, self.plan, self.sources)
        came = yield from self._tried(next(cells_of(self.task, self.plan.grid)))
        if isinstance(came, CellDone):
            warn_of_move(task, worker, why)
            self._replanned(came)
        else:
            came.error.add_note(f"{worker} failed before: {type(why).__name__}: {line(why)}")
        return came

    def _compute(self, cell: Cell) -> Generator[Event, None, _Came]:
        """Compute a cell, or a part of it if a GPU has no memory for the whole."""
        job = make_job(self.task, self.plan.grid, self.sources, ())
        for _ in range(MOST_HALVINGS):
            came = yield from self._tried(cell)
            halves = job.halves(cell)
            if isinstance(came, CellDone) or halves is None:
                return came
            if not isinstance(came.error, DeviceMemoryError):
                return came
            yield CellSplit(cell, came.worker, line(came.error))
            cell = halves[0]
        return (yield from self._tried(cell))

    def _tried(self, cell: Cell) -> Generator[Event, None, _Came]:
        """Compute a cell; return the event of what came of it, and yield all others."""
        try:
            # One device is enough, and memory for copies takes time to be had.
            executor = make_executor(self.task, replace(self.plan, devices=self.plan.devices[:1]))
        except DeviceError as error:
            if self.task.choice.otherwise is None:
                raise
            return CellRefused(cell, self.task.choice.name, error)
        job = make_job(self.task, self.plan.grid, self.sources, ())
        job = replace(job, outputs=len(self.task.sinks), keep_outputs=True)
        came: CellDone | CellRefused | None = None
        with closing(self._do(executor, job, iter([cell]))) as events:
            for event in events:
                if isinstance(event, CellFailed):
                    return event
                if isinstance(event, CellDone | CellRefused):
                    came = event
                else:
                    yield event
        assert came is not None
        return came
