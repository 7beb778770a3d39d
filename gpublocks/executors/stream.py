"""Cells streamed through one or more devices by threads. Touches threads."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from gpublocks.concurrency import Concurrency, Threads
from gpublocks.contracts import (
    CellFailed,
    CellRefused,
    CellStarted,
    Device,
    Event,
    StreamDevice,
)
from gpublocks.crew import Crew
from gpublocks.errors import PlanError
from gpublocks.feed import Feed
from gpublocks.geometry import Cell
from gpublocks.job import Buffers, Job, execute, explained
from gpublocks.pipeline import Pipeline
from gpublocks.running import EventRun

__all__ = ["StreamExecutor"]


class StreamExecutor:
    """One queue of cells for all devices, which take the next one when they are free.

    Fast and slow devices so keep each other busy. Events go through a bounded queue: a slow
    consumer holds the devices back, and the memory in flight is that of one block for each lane
    of the host, and of the slots for each device with streams, for ten cells or ten million.

    Parameters
    ----------
    devices : sequence of Device or of StreamDevice
        Not both: what is refused by one kind, the other would not do.
    name : str
        Name of the executor in messages.
    concurrency : Concurrency
        Threads, queues and locks.
    copiers : int
        Threads that copy blocks between arrays and page-locked memory, for all devices together.
    refuse : bool
        Whether cells that no device can do are announced by `CellRefused`, and the run ends
        without them; when all devices are lost, without the cells that were not taken either.
        By default the run fails.
    """

    def __init__(
        self,
        devices: Sequence[Device] | Sequence[StreamDevice],
        name: str = "threads",
        concurrency: Concurrency | None = None,
        *,
        copiers: int = 1,
        refuse: bool = False,
    ) -> None:
        self.name = name
        self.devices: tuple[Device | StreamDevice, ...] = tuple(devices)
        self._concurrency = concurrency or Threads()
        self._copiers = copiers
        self._refuse = refuse

    @property
    def workers(self) -> int:
        """Cells computed at once."""
        return sum(getattr(device, "lanes", 1) for device in self.devices)

    def run(self, job: Job, cells: Iterable[Cell]) -> EventRun:
        """Begin to process cells.

        Raises
        ------
        PlanError
            If devices with streams are to call a function that does not take arrays.
        """
        if job.function_type != "array" and not all(isinstance(d, Device) for d in self.devices):
            raise PlanError(
                f"function_type={job.function_type!r} is for CPUs, and {self.devices[0].name} was "
                "given; use function_type='array', or device='cpu'"
            )
        return EventRun(partial(self._drive, job, cells))

    def _drive(
        self, job: Job, cells: Iterable[Cell], run: EventRun
    ) -> Generator[Event, None, None]:
        feed = Feed(cells, run, self._concurrency)
        events = self._concurrency.queue(2 * self.workers)
        crew = Crew(self._copiers, self._concurrency)
        alone = any(sink.single_writer for sink in job.sinks)
        storing = self._concurrency.lock() if alone else nullcontext()
        pipelines: list[Pipeline] = []
        threads: list[Any] = []
        running = 0
        try:
            for name, work in self._threads(job, feed, crew, events.put, storing, pipelines):
                target = partial(_guarded, work, feed, events.put)
                threads.append(self._concurrency.start(target, name))
                running += 1
            while running:
                event = events.get()
                if event is None:
                    running -= 1
                elif isinstance(event, BaseException):
                    raise event
                else:
                    yield event
            yield from self._left(job, feed, pipelines)
        finally:
            feed.stop()
            while running:
                running -= events.get() is None
            for thread in threads:
                thread.join()
            crew.close()

    def _threads(
        self,
        job: Job,
        feed: Feed,
        crew: Crew,
        put: Callable[[Any], None],
        storing: AbstractContextManager[Any],
        pipelines: list[Pipeline],
    ) -> Generator[tuple[str, Callable[[], None]], None, None]:
        """Yield name and work of each thread to be started; fill the list of pipelines."""
        for device in self.devices:
            if isinstance(device, Device):
                for n in range(device.lanes):
                    name = f"{device.name}:{n}"
                    yield name, partial(_lane, job, feed, put, device, name, storing)
            else:
                pipeline = Pipeline(
                    job,
                    device,
                    feed,
                    crew=crew,
                    put=put,
                    concurrency=self._concurrency,
                    storing=storing,
                )
                pipelines.append(pipeline)
                yield f"{device.name} load", pipeline.run

    def _left(
        self, job: Job, feed: Feed, pipelines: Sequence[Pipeline]
    ) -> Generator[Event, None, None]:
        """Announce what nobody did, since all devices were lost."""
        lost = [pipeline.lost for pipeline in pipelines if pipeline.lost is not None]
        while lost and (work := feed.take()) is not None:
            cell, name = work.whole.cell, self.devices[-1].name
            if not self._refuse:
                yield CellFailed(cell, name, "compute", explained(lost[-1], job, cell, "compute"))
            elif feed.refuse(work):
                yield CellRefused(cell, name, lost[-1])
            if not feed.returned:
                feed.stop()


def _guarded(work: Callable[[], None], feed: Feed, put: Callable[[Any], None]) -> None:
    """Do the work of a thread; the last thing put is None."""
    try:
        work()
    except BaseException as error:
        feed.stop()
        put(error)
    finally:
        put(None)


def _lane(
    job: Job,
    feed: Feed,
    put: Callable[[Any], None],
    device: Device,
    name: str,
    storing: AbstractContextManager[Any],
) -> None:
    """Take cells until there is none, or one fails."""
    buffers = Buffers()
    while (work := feed.take()) is not None:
        put(CellStarted(work.cell, name))
        event = execute(job, work.cell, name, device.compute, storing, buffers)
        if isinstance(event, CellFailed):
            feed.stop()
            feed.give_back(work)
        else:
            feed.done(work, event)
        put(event)
