"""Cells streamed through the lanes of one or more devices by threads. Touches threads."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from gpublocks.concurrency import Concurrency, Threads
from gpublocks.contracts import CellFailed, CellStarted, Device, Event
from gpublocks.geometry import Cell
from gpublocks.job import Buffers, Job, execute
from gpublocks.running import EventRun

__all__ = ["StreamExecutor"]


class StreamExecutor:
    """One queue of cells for the lanes of all devices.

    A lane takes the next cell when it is free, so that fast and slow devices keep each other
    busy. Events go through a bounded queue: a slow consumer holds the lanes back, and the memory
    in flight is that of one block for each lane, for ten cells or ten million.

    Parameters
    ----------
    devices : sequence of Device
    name : str
        Name of the executor in messages.
    concurrency : Concurrency
        Threads, queues and locks.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        name: str = "threads",
        concurrency: Concurrency | None = None,
    ) -> None:
        self.name = name
        self.devices = tuple(devices)
        self._concurrency = concurrency or Threads()

    @property
    def workers(self) -> int:
        """Cells in flight at once."""
        return sum(device.lanes for device in self.devices)

    def run(self, job: Job, cells: Iterable[Cell]) -> EventRun:
        """Begin to process cells."""
        return EventRun(partial(self._drive, job, cells))

    def _drive(
        self, job: Job, cells: Iterable[Cell], run: EventRun
    ) -> Generator[Event, None, None]:
        feed = _Feed(cells, run, self._concurrency.lock())
        alone = any(sink.single_writer for sink in job.sinks)
        storing = self._concurrency.lock() if alone else nullcontext()
        events = self._concurrency.queue(2 * self.workers)
        lanes = [(d, f"{d.name}:{n}") for d in self.devices for n in range(d.lanes)]
        threads: list[Any] = []
        running = 0
        try:
            for device, name in lanes:
                lane = partial(_lane, job, feed, events.put, device, name, storing)
                threads.append(self._concurrency.start(lane, name))
                running += 1
            while running:
                event = events.get()
                if event is None:
                    running -= 1
                elif isinstance(event, BaseException):
                    raise event
                else:
                    yield event
        finally:
            feed.stop()
            while running:
                running -= events.get() is None
            for thread in threads:
                thread.join()


class _Feed:
    """Hands out cells, one at a time, to many threads."""

    def __init__(self, cells: Iterable[Cell], run: EventRun, lock: Any) -> None:
        self._cells = iter(cells)
        self._run = run
        self._lock = lock
        self._stopped = False

    def next(self) -> Cell | None:
        with self._lock:
            if self._stopped or self._run.cancelled:
                return None
            return next(self._cells, None)

    def stop(self) -> None:
        self._stopped = True


def _lane(
    job: Job,
    feed: _Feed,
    put: Callable[[Any], None],
    device: Device,
    name: str,
    storing: AbstractContextManager[Any],
) -> None:
    """Take cells until there is none, or one fails; the last thing put is None."""
    buffers = Buffers()
    try:
        while (cell := feed.next()) is not None:
            put(CellStarted(cell, name))
            event = execute(job, cell, name, device.compute, storing, buffers)
            if isinstance(event, CellFailed):
                feed.stop()
            put(event)
    except BaseException as error:
        feed.stop()
        put(error)
    finally:
        put(None)
