"""Cells spread over supervised worker processes that stay warm between runs. Touches processes.

Only the numbers of cells cross to a worker: it opens files itself, and arrays of this process
pass through shared memory. A worker that dies costs one retry of the one cell it was at.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from itertools import chain, islice
from signal import SIGKILL
from typing import Any, NamedTuple

from gpublocks import machine
from gpublocks.contracts import (
    Array,
    CellDone,
    CellFailed,
    CellRetried,
    CellStarted,
    Event,
    OutputWritten,
    Reach,
    Sink,
    Source,
    Span,
    Stage,
    Step,
)
from gpublocks.errors import (
    ArgumentTypeError,
    BlockError,
    DeviceError,
    GpublocksError,
    PlanError,
    WorkerDiedError,
)
from gpublocks.flow import Events, Feed
from gpublocks.geometry import Cell, Region
from gpublocks.io.staged import Ring, array_at
from gpublocks.job import Job, explained, place
from gpublocks.parcel import Parcel, name_of
from gpublocks.running import EventRun
from gpublocks.wire import Packed, WireClosedError, noted, revived, unpack
from gpublocks.workers import Death, Slot, WorkerProcess, leased, nesting

__all__ = ["ProcessExecutor"]

GRACE_SECONDS = 0.5
"""How long the other workers may take to finish their cells after one has failed."""

_DEEPEST = 3
_FAST_SECONDS = 0.01
_QUEUED_SECONDS = 0.002
_FORGETTING = 0.8
_SHARES = 4
_ATTEMPTS = 2
_ATTEMPTS_IF_KILLED = 5
_MEASURE_SECONDS = 0.002


class ProcessExecutor:
    """Runs cells in worker processes.

    Parameters
    ----------
    workers : int
        Cells in flight at once.
    memory_limit : int, optional
        Bytes by which the private memory of a worker may grow in a run; a function that asks for
        more gets a `MemoryError`.

    Raises
    ------
    DeviceError
        Where worker processes cannot be started: not on Linux, or in a frozen program.
    PlanError
        In a worker of a worker of a worker.
    """

    name = "processes"

    def __init__(self, workers: int, *, memory_limit: int | None = None) -> None:
        advice = "use executor='threads' or 'serial'"
        if sys.platform != "linux":
            system = {"darwin": "macOS", "win32": "Windows"}.get(sys.platform, sys.platform)
            raise DeviceError(f"executor 'processes' is not available on {system} yet; {advice}")
        if getattr(sys, "frozen", False) or not sys.executable:
            raise DeviceError(
                f"executor 'processes' is not available without a Python interpreter; {advice}"
            )
        if nesting() >= _DEEPEST:
            raise PlanError(f"process pools nested {nesting()} deep; {advice}")
        self.workers = workers
        self._memory_limit = memory_limit

    def run(self, job: Job, cells: Iterable[Cell]) -> EventRun:
        """Begin to process cells.

        Raises
        ------
        ArgumentTypeError
            If the function or its arguments cannot be sent to another process.
        """
        work = _Work(job, Parcel.of(job, self._memory_limit))
        return EventRun(partial(_drive, work, cells, self.workers), work.cancel)


def _drive(
    work: "_Work", cells: Iterable[Cell], workers: int, run: EventRun
) -> Generator[Event, None, None]:
    cells = iter(cells)
    first = list(islice(cells, workers))
    if not first:
        return
    with leased(len(first), lambda: work.stopped) as slots:
        try:
            work.begin(chain(first, cells), slots)
            while batch := work.events.take():
                for event in batch:
                    if isinstance(event, BaseException):
                        raise event
                    yield event
        finally:
            work.end()


class _Work:
    """One run: its job, the cells that are left, and the events for the consumer."""

    def __init__(self, job: Job, parcel: Parcel) -> None:
        self.job = job
        self.parcel = parcel
        self.in_place = _in_place(job)
        self.storing = threading.Lock()
        self.feed = Feed((), 0)
        self.events = Events(0, 0)
        self.lanes = 0
        self._cancelled = False
        self._grace = 0.0
        self._killers: set[int] = set()

    @property
    def stopped(self) -> bool:
        """Whether no further cell may begin."""
        return self._cancelled or self.feed.stopped

    def begin(self, cells: Iterable[Cell], slots: list[Slot]) -> None:
        """Let slots work on cells."""
        self.lanes = len(slots)
        self.feed = Feed(cells, len(self.job.grid))
        self.events = Events(2 * len(slots), len(slots))
        if self._cancelled:
            self._stop()
        for slot in slots:
            slot.give(self._serve)

    def end(self) -> None:
        """Wait until no slot works on it, killing workers that take longer than the grace."""
        try:
            self._stop()
            seconds = self._grace
            while not self.events.left(seconds):
                self._kill()
                seconds = 0.02
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Stop at once: workers that are under way are killed."""
        self._cancelled = True
        self._stop()
        self._kill()

    def fail(self, problem: CellFailed | BaseException) -> None:
        """End the run; cells that are under way may be finished within a grace period."""
        self._grace = GRACE_SECONDS
        self.events.put([problem], wait=False)
        self._stop()

    def kills_again(self, cell: Cell) -> bool:
        """Note that a cell killed its worker; return whether it has done so before."""
        again = cell.number in self._killers
        self._killers.add(cell.number)
        return again

    def _serve(self, slot: Slot) -> None:
        if not self.events.join(slot):
            return
        try:
            _Lane(self, slot).run()
        except BaseException as error:
            self.fail(error)
        finally:
            self.events.leave(slot)

    def _stop(self) -> None:
        self.feed.stopped = True
        self.events.close()

    def _kill(self) -> None:
        for slot in self.events.members:
            slot.kill()


def _in_place(job: Job) -> bool:
    """Tell whether workers may write where they also read: a cell must not be done twice then."""
    written = [sink for sink in job.sinks if sink.reach != Reach.PROCESS]
    if job.function_type == "block":
        # It sees what the sinks hold.
        return bool(written)
    return any(_shared(sink, source) for sink in written for source in job.sources)


def _shared(sink: Sink, source: Source) -> bool:
    if sink.extent is not None and source.extent is not None:
        return sink.extent.overlaps(source.extent)
    return sink.location is not None and sink.location == source.location


class _Loaded(NamedTuple):
    """A cell that has what it needs in a place of the ring."""

    cell: Cell
    place: int
    start: float
    seconds: float


class _Lane:
    """What one slot does for one run."""

    def __init__(self, work: _Work, slot: Slot) -> None:
        self._work = work
        self._job = work.job
        self._feed = work.feed
        self._parcel = work.parcel
        self._slot = slot
        self._name = slot.name
        self._worker: WorkerProcess | None = None
        self._was_warm = False
        self._ring: Ring | None = None
        self._places = list(range(work.parcel.places))
        self._flight: deque[_Loaded] = deque()
        self._ahead: _Loaded | None = None
        self._depth = 1
        self._pace_seconds = 0.0
        self._news: list[Event] = []
        self._stillborn = 0
        self._idle_bytes = 0
        self._peak_bytes = 0

    def run(self) -> None:
        """Take cells until there is none left or the run is stopped."""
        if self._parcel.place_bytes:
            self._ring = Ring(self._parcel.ring_bytes)
        try:
            self._work_off()
            if self._worker is not None:
                self._worker.wire.send(("end",))
        except WireClosedError:
            self._discard()
        except BaseException:
            # The worker may be in the middle of anything.
            self._discard()
            raise
        finally:
            if self._ring is not None:
                self._ring.close()

    def _work_off(self) -> None:
        while True:
            try:
                if not self._work.stopped:
                    self._fill()
                self._tell()
                if not self._flight:
                    return
                self._receive()
            except WireClosedError:
                self._bury()

    def _fill(self) -> None:
        """Keep the worker busy.

        Short cells queue at the worker. Others are sent when their turn comes, so that a slot
        without work can take them; the next one's arrays are already loaded then.
        """
        fresh: list[_Loaded] = []
        # Of the last cells few queue, lest those of one slot are slow while others have none.
        depth = min(self._depth, max(1, self._feed.left // (_SHARES * self._work.lanes)))
        while len(self._flight) + len(fresh) < depth and (loaded := self._next()):
            fresh.append(loaded)
        if fresh:
            self._send(fresh)
        if self._parcel.loaded and self._depth == 1 and self._ahead is None:
            cell = self._feed.next()
            if cell is not None and (loaded := self._load(cell)):
                self._ahead = loaded
                self._feed.hold(cell)

    def _next(self) -> _Loaded | None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            if self._feed.claim(ahead.cell):
                return ahead
            self._places.append(ahead.place)
        cell = self._feed.next()
        return None if cell is None else self._load(cell)

    def _load(self, cell: Cell) -> _Loaded | None:
        """Copy what the worker cannot see into a place of the ring."""
        number = self._places.pop()
        if not self._parcel.loaded:
            return _Loaded(cell, number, 0.0, 0.0)
        start = time.perf_counter()
        try:
            for source, region, view in self._views(self._parcel.loaded, cell, number):
                source.read(region, out=view)
        except BaseException as error:
            self._fail(cell, "load", error)
            return None
        return _Loaded(cell, number, start, time.perf_counter() - start)

    def _store(self, cell: Cell, number: int) -> float:
        """Copy the valid regions out of a place of the ring; return when others let it begin."""
        free = time.perf_counter()
        for n, (sink, region, view) in enumerate(self._views(self._parcel.stored, cell, number)):
            valid = cell.valid_in(sink.shape)
            with self._work.storing if sink.single_writer else nullcontext():
                free = time.perf_counter() if n == 0 else free
                sink.write(valid, view[valid.within(region).slices])
        return free

    def _views(
        self, arrays: Iterable[tuple[int, Any]], cell: Cell, number: int
    ) -> Iterator[tuple[Any, Region, Array]]:
        assert self._ring is not None
        start = number * self._parcel.place_bytes
        for offset, array in arrays:
            region = cell.read_in(array.shape)
            view = array_at(
                self._ring.buffer, start + offset, region.shape, array.dtype, array.order
            )
            yield array, region, view

    def _send(self, fresh: list[_Loaded]) -> None:
        first = not self._flight
        self._flight.extend(fresh)
        worker = self._worker = self._worker or self._told()
        if self._job.keep_outputs:
            self._idle_bytes = self._peak_bytes = machine.rss_anon(worker.pid)
        # The death of a worker is noticed where all that it had done before has been read.
        with suppress(WireClosedError):
            worker.wire.send(("cells", [(loaded.cell.number, loaded.place) for loaded in fresh]))
        if first and self._flight:
            self._news.append(CellStarted(self._flight[0].cell, self._name))

    def _told(self) -> WorkerProcess:
        """Return a worker that has loaded the job, or said that it cannot."""
        while True:
            self._was_warm = self._slot.worker is not None
            worker = self._slot.worker or self._started()
            worker.rest()
            worker.wire.send(self._parcel.message(), [self._ring.fd] if self._ring else [])
            while (answer := self._heard(worker)) == "out":
                continue
            if answer != "stale":
                return worker
            self._slot.retire()

    def _started(self) -> WorkerProcess:
        try:
            worker = self._slot.start()
        except OSError as error:
            raise DeviceError(
                f"cannot start worker processes with {sys.executable!r}: {error}; "
                "use executor='threads' or 'serial'"
            ) from error
        if self._work.stopped:
            # Who cancelled the run meanwhile found no worker to kill.
            worker.kill()
        return worker

    def _tell(self) -> None:
        if self._news:
            self._work.events.put(self._news)
            self._news = []

    def _receive(self) -> None:
        """Wait for a message; act on it and on those that came with it."""
        worker = self._worker
        assert worker is not None
        if self._job.keep_outputs:
            while not worker.wire.ready(_MEASURE_SECONDS):
                self._peak_bytes = max(self._peak_bytes, machine.rss_anon(worker.pid))
        self._heard(worker)
        while self._flight and worker.wire.pending:
            self._heard(worker)

    def _heard(self, worker: WorkerProcess) -> str:
        """Act on the next message of a worker; return its kind."""
        kind, *rest = worker.wire.receive()
        if kind == "done":
            self._done(*rest)
        elif kind == "out":
            stream, text = rest
            self._news.append(OutputWritten(stream, text, self._name))
        elif kind == "failed":
            cell = self._flight.popleft().cell
            self._end(_failed(self._job, cell, self._name, *rest))
        elif kind == "unloadable":
            self._flight.clear()
            self._end(_unloadable(self._job, *rest))
        return str(kind)

    def _done(
        self,
        started: float,
        seconds: tuple[float, float, float],
        read_bytes: int,
        written_bytes: int,
        packed: Packed | None,
    ) -> None:
        loaded = self._flight.popleft()
        cell, number = loaded.cell, loaded.place
        value, outputs, peak = None, (), None
        start = time.perf_counter()
        stage: Stage = "compute"
        try:
            if packed is not None:
                value, outputs = unpack(packed)
            if self._parcel.stored:
                stage = "store"
                start = self._store(cell, number)
        except BaseException as error:
            self._fail(cell, stage, error)
            return
        spans: tuple[Span, ...] = ()
        if self._parcel.place_bytes:
            stored = start, time.perf_counter() - start
            if self._job.recorded:
                spans = self._spans(loaded, started, seconds, stored, read_bytes, written_bytes)
            load, compute, store = seconds
            seconds = load + loaded.seconds, compute, store + stored[1]
        if self._job.keep_outputs:
            peak = self._peak_bytes - self._idle_bytes
        self._places.append(number)
        self._pace_seconds = max(sum(seconds), _FORGETTING * self._pace_seconds)
        if self._pace_seconds < _FAST_SECONDS:
            queued = int(_QUEUED_SECONDS / max(self._pace_seconds, 1e-6))
            self._depth = max(2, min(self._parcel.places, queued))
        else:
            self._depth = 1
        self._stillborn = 0
        sizes = read_bytes, written_bytes
        self._news.append(
            CellDone(cell, self._name, started, seconds, *sizes, value, outputs, peak, spans=spans)
        )
        if self._flight:
            self._news.append(CellStarted(self._flight[0].cell, self._name))

    def _spans(
        self,
        loaded: _Loaded,
        started: float,
        seconds: tuple[float, float, float],
        stored: tuple[float, float],
        read_bytes: int,
        written_bytes: int,
    ) -> tuple[Span, ...]:
        """Return when each step of a cell was done, by the slot's thread and by the worker.

        The worker copies from the ring what the thread has read into it, and back again.
        """
        here, there = f"{self._name} exchange", self._name
        load, compute, store = seconds
        spans = []
        if self._parcel.loaded:
            spans.append(Span("read", here, loaded.start, loaded.seconds, read_bytes))
        coming: Step = "copy in" if self._parcel.loaded else "read"
        leaving: Step = "copy out" if self._parcel.stored else "write"
        spans.append(Span(coming, there, started, load, read_bytes))
        spans.append(Span("compute", there, started + load, compute))
        spans.append(Span(leaving, there, started + load + compute, store, written_bytes))
        if self._parcel.stored:
            spans.append(Span("write", here, *stored, written_bytes))
        return tuple(spans)

    def _fail(self, cell: Cell, stage: Stage, error: BaseException) -> None:
        error = explained(error, self._job, cell, stage)
        self._end(CellFailed(cell, self._name, stage, error))

    def _end(self, problem: CellFailed | BaseException) -> None:
        """End the run, after the events of the cells that were done."""
        self._tell()
        self._work.fail(problem)

    def _bury(self) -> None:
        """Wait for the end of a dead worker and decide what becomes of its cells."""
        death = self._discard()
        cells = [loaded.cell for loaded in self._flight]
        self._places += [loaded.place for loaded in self._flight]
        self._flight.clear()
        if death is None or self._work.stopped:
            return
        killer = next((cell for cell in cells if cell.number == death.number), None)
        if killer is not None:
            if not self._retried(killer, death, unheard=killer is not cells[0]):
                return
        elif not self._was_warm:
            self._stillborn += 1
            if self._stillborn >= (_ATTEMPTS_IF_KILLED if death.code == -SIGKILL else _ATTEMPTS):
                error = DeviceError(
                    f"worker processes end before they begin: {self._name} {death.reason}; "
                    "use executor='threads' or 'serial'"
                )
                self._end(self._quoting(error, death))
                return
        self._was_warm = False
        self._tell()
        self._feed.give_back(cells)

    def _discard(self) -> Death | None:
        """End the worker."""
        worker = self._slot.worker
        self._slot.worker = self._worker = None
        return None if worker is None else worker.reap()

    def _retried(self, cell: Cell, death: Death, *, unheard: bool) -> bool:
        """Tell that a cell is done again, or end the run if it must not be.

        Parameters
        ----------
        unheard : bool
            Whether other cells would be done again too, of which it was not heard that they are.
        """
        stage, reason = death.stage, f"{self._name} {death.reason}"
        writes = stage == "store" or (stage == "compute" and self._job.function_type == "block")
        if (writes or unheard) and self._work.in_place:
            why = f"{reason} in stage '{stage}', perhaps after changing what it reads"
        elif self._work.kills_again(cell):
            why = f"{reason} in stage '{stage}', for the second time"
        else:
            self._news.append(CellRetried(cell, self._name, reason))
            return True
        error = WorkerDiedError(f"{place(self._job, cell)}: {why}", cell.number, stage)
        self._end(CellFailed(cell, self._name, stage, self._quoting(error, death)))
        return False

    def _quoting(self, error: BaseException, death: Death) -> BaseException:
        if death.last_words:
            error.add_note(f"last words of {self._name}:\n{death.last_words}")
        return error


def _failed(
    job: Job,
    cell: Cell,
    worker: str,
    stage: Stage,
    packed: Packed | None,
    text: str,
    notes: list[str],
) -> CellFailed:
    """Return the failure that a worker reported, its error of the type it had there if possible."""
    error = revived(packed, notes)
    if error is None:
        what = "function raised" if stage == "compute" else "raised"
        message = f"{place(job, cell)}: {what} {text}"
        error = noted(BlockError(message, cell.number, stage), notes)
    return CellFailed(cell, worker, stage, error)


def _unloadable(job: Job, packed: Packed | None, text: str, notes: list[str]) -> BaseException:
    error = revived(packed, notes)
    if isinstance(error, GpublocksError | MemoryError):
        return error
    message = f"worker processes cannot load function {name_of(job.function)!r}: {text}"
    return noted(ArgumentTypeError(f"{message}; use executor='threads'"), notes)
