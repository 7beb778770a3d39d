"""One cell after the other, in the calling thread: the reference for all executors. Pure."""

from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import Any

from gpublocks.contracts import CellStarted, Event
from gpublocks.geometry import Cell
from gpublocks.job import Buffers, Job, execute
from gpublocks.running import EventRun

__all__ = ["SerialExecutor"]


class SerialExecutor:
    """Runs cells one by one in the thread that iterates over the run."""

    name = "serial"
    workers = 1

    def run(self, job: Job, cells: Iterable[Cell]) -> EventRun:
        """Begin to process cells."""
        return EventRun(partial(self._drive, job, cells))

    def _drive(
        self, job: Job, cells: Iterable[Cell], run: EventRun
    ) -> Generator[Event, None, None]:
        buffers = Buffers()
        for cell in cells:
            if run.cancelled:
                return
            yield CellStarted(cell, self.name)
            yield execute(job, cell, self.name, _call, buffers=buffers)


def _call(function: Callable[[], Any]) -> Any:
    return function()
