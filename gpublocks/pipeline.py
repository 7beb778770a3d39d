"""One device's cells: each is loaded, computed and stored while others are. Touches threads.

Three threads: one loads, one computes, one stores. Memory goes round between them: page-locked
slots and slots of the device, two of each for what goes in and two for what comes out. Who passes
a slot on has recorded the event that the next one waits for, so that nobody waits for an event of
the past. The copies to the device, its computations and the copies from it have a stream each.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

from gpublocks.budget import SLOTS
from gpublocks.concurrency import Concurrency
from gpublocks.contracts import (
    Array,
    CellDone,
    CellStarted,
    Event,
    Outcome,
    Sink,
    Source,
    Span,
    Stage,
    StreamDevice,
)
from gpublocks.crew import Crew
from gpublocks.feed import Feed, Work
from gpublocks.geometry import Cell, Region
from gpublocks.job import Job
from gpublocks.recovery import MOST_HALVINGS, Recovery
from gpublocks.slots import DeviceSlot, HostSlot, Place, copied, places, total_bytes

__all__ = ["Pipeline"]

_PIECE_BYTES = 4 << 20
"""What one thread copies at once between an array and a slot: some 1 ms."""


@dataclass(slots=True)
class _Item:
    """A cell on its way through the three threads."""

    work: Work
    stage: Stage = "load"
    error: BaseException | None = None
    slot: DeviceSlot | None = None
    host: HostSlot | None = None
    outcome: Outcome | None = None
    started: float = 0.0
    load_seconds: float = 0.0
    read_bytes: int = 0
    marks: list[Any] = field(default_factory=list)


class Pipeline:
    """Takes cells through one device.

    What becomes of a cell that fails is decided by a `Recovery`, in the thread that stores.

    Parameters
    ----------
    job : Job
    device : StreamDevice
    feed : Feed
    crew : Crew
        Threads that copy between arrays and page-locked memory.
    put : callable
        Called with each event, and with errors that nobody expected.
    concurrency : Concurrency
    storing : context manager
        Held while a cell is stored.
    """

    def __init__(
        self,
        job: Job,
        device: StreamDevice,
        feed: Feed,
        *,
        crew: Crew,
        put: Callable[[Event | BaseException], None],
        concurrency: Concurrency,
        storing: AbstractContextManager[Any],
    ) -> None:
        self._job = job
        self._device = device
        self._feed = feed
        self._crew = crew
        self._put = put
        self._concurrency = concurrency
        self._storing = storing
        self._recovery = Recovery(job, device, feed, put)

    @property
    def lost(self) -> Exception | None:
        """Why the device does nothing any more."""
        return self._recovery.lost

    def run(self) -> None:
        """Do cells until there is none; in the thread that loads."""
        try:
            if self._open():
                self._start()
        finally:
            self._device.close()

    def _open(self) -> bool:
        """Take streams and memory, for smaller blocks where needed; tell whether there is any."""
        problem: Exception | None = None
        for largest in self._smaller_and_smaller():
            try:
                self._take_memory(largest)
                return True
            except Exception as error:
                problem = error
            trouble = self._device.classify(problem)
            if trouble == "user":
                raise problem
            self._device.close()
            if trouble == "fatal":
                break
            self._device.trim()
        if problem is not None:
            self._recovery.lose(problem)
        return False

    def _smaller_and_smaller(self) -> Iterator[Cell]:
        """Yield the largest cell twice, since memory may have been freed, and then parts of it."""
        ranges = tuple((0, split.largest) for split in self._job.grid.splits)
        cell = Cell(0, (0,) * len(self._job.grid.shape), self._job.grid.axes, ranges, ranges)
        yield cell
        yield cell
        for _ in range(MOST_HALVINGS):
            halves = self._job.halves(cell)
            if halves is None:
                return
            cell = max(halves, key=lambda half: half.read_in(self._job.grid.shape).size)
            yield cell

    def _take_memory(self, largest: Cell) -> None:
        device, sizes = self._device, self._bytes_of(largest)
        self._most_bytes = sizes
        self._in, self._out = device.stream(), device.stream()
        self._compute_on = device.stream(default=True)
        in_bytes, out_bytes = (max(1, nbytes) for nbytes in sizes)
        self._device_out = [DeviceSlot.of(device, out_bytes) for _ in range(SLOTS)]
        queue = self._concurrency.queue
        self._device_in, self._host_in, self._host_out = queue(0), queue(0), queue(0)
        for _ in range(SLOTS):
            self._device_in.put(DeviceSlot.of(device, in_bytes))
            self._host_in.put(HostSlot.of(device, in_bytes))
            self._host_out.put(HostSlot.of(device, out_bytes))

    def _bytes_of(self, cell: Cell) -> tuple[int, int]:
        """Return the bytes that a cell takes in a slot of each kind."""
        return total_bytes(_coming(self._job, cell)), total_bytes(_leaving(self._job, cell))

    def _start(self) -> None:
        """Run the three threads, of which the one that loads is this one."""
        self._to_compute = self._concurrency.queue(0)
        self._to_store = self._concurrency.queue(0)
        name = self._device.name
        threads = [
            self._concurrency.start(self._compute_all, f"{name} compute", lasting=True),
            self._concurrency.start(self._store_all, f"{name} store"),
        ]
        try:
            self._load_all()
        finally:
            self._to_compute.put(None)
            for thread in threads:
                thread.join()

    def _load_all(self) -> None:
        while self.lost is None:
            host = self._host_in.get()
            work = self._feed.take()
            if work is None:
                return
            if not self._fits(work.cell):
                self._leave(work)
            else:
                item = _Item(work, started=perf_counter())
                if self._feed.begin(work):
                    self._put(CellStarted(work.whole.cell, self._device.name))
                try:
                    self._load(item, host)
                except BaseException as error:
                    item.error = error
                    self._recovery.note(error)
                self._to_compute.put(item)
            self._host_in.put(host)

    def _fits(self, cell: Cell) -> bool:
        sizes = zip(self._bytes_of(cell), self._most_bytes, strict=True)
        return self._recovery.takes(cell) and all(size <= most for size, most in sizes)

    def _leave(self, work: Work) -> None:
        """Put back a cell that is too large for the slots, or for the memory beside them."""
        reason = f"{self._device.name} had no memory for a block as large"
        if not self._recovery.divide(work, reason):
            self._recovery.lose(MemoryError(reason))
            self._feed.give_back(work, work)

    def _load(self, item: _Item, host: HostSlot) -> None:
        job, device, cell = self._job, self._device, item.work.cell
        device.sync(host.copied)
        item.started = perf_counter()
        where, regions = _coming(job, cell), job.reads(cell, _PIECE_BYTES)
        tasks = [
            partial(_read, device, source, piece, array[_within(piece, cell.read_in(source.shape))])
            for source, array, parts in zip(
                copied(job.sources), host.arrays(where), regions, strict=True
            )
            for piece in parts
        ]
        self._crew.do(tasks)
        item.load_seconds = perf_counter() - item.started
        item.read_bytes = total_bytes(where)
        item.slot = slot = self._device_in.get()
        device.wait(self._in, slot.emptied)
        with self._marked(item, self._in):
            device.upload(slot.memory, host.memory[: item.read_bytes], self._in)
        device.record(host.copied, self._in)
        device.record(slot.filled, self._in)

    def _compute_all(self) -> None:
        slots = itertools.cycle(self._device_out)
        while (item := self._to_compute.get()) is not None:
            with self._guarded():
                if item.error is None and not self._recovery.skips:
                    try:
                        self._compute(item, next(slots))
                    except BaseException as error:
                        item.error = error
                        self._recovery.note(error)
            if item.slot is not None:
                self._device_in.put(item.slot)
            self._to_store.put(item)
        self._to_store.put(None)
        with self._guarded():
            self._device.rest()

    def _compute(self, item: _Item, out: DeviceSlot) -> None:
        device, cell, slot = self._device, item.work.cell, item.slot
        assert slot is not None
        item.stage = "compute"
        if self._recovery.full:
            self._recovery.full = False
            device.trim()
        device.wait(self._compute_on, slot.filled)
        device.wait(self._compute_on, out.emptied)
        try:
            with self._marked(item, self._compute_on):
                item.outcome = device.compute(
                    partial(_call, self._job, cell, device, slot, out),
                    self._compute_on,
                    reads=(slot.memory,),
                    writes=(out.memory,),
                    measure=self._job.keep_outputs,
                )
        finally:
            device.record(slot.emptied, self._compute_on)
            device.record(out.filled, self._compute_on)
        item.host = host = self._host_out.get()
        device.wait(self._out, out.filled)
        nbytes = 0 if self._job.keep_outputs else self._bytes_of(cell)[1]
        with self._marked(item, self._out):
            device.download(host.memory[:nbytes], out.memory, self._out)
        device.record(out.emptied, self._out)
        device.record(host.copied, self._out)

    def _store_all(self) -> None:
        while (item := self._to_store.get()) is not None:
            with self._guarded():
                self._settle(item)
            # What it refers to, a function's arrays among it, is not to live until the next one.
            del item

    def _settle(self, item: _Item) -> None:
        event = None
        try:
            if item.error is None and not self._recovery.skips:
                event = self._store(item)
        except BaseException as error:
            item.error = error
            self._recovery.note(error)
        finally:
            if item.host is not None:
                self._host_out.put(item.host)
        if event is None:
            self._recovery.settle(item.work, item.stage, item.error)
        elif whole := self._feed.done(item.work, event):
            self._put(whole)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Let the run fail with whatever nobody expected; the thread goes on, to pass slots on."""
        try:
            yield
        except BaseException as error:
            self._feed.stop()
            self._put(error)

    def _store(self, item: _Item) -> CellDone:
        job, device, cell = self._job, self._device, item.work.cell
        host, outcome = item.host, item.outcome
        assert host is not None
        assert outcome is not None
        device.sync(host.copied)
        value, outputs = outcome.result()
        item.stage = "store"
        begun = perf_counter()
        written = 0
        if not job.keep_outputs:
            written = self._write(cell, host)
        seconds = perf_counter() - begun
        return CellDone(
            cell,
            device.name,
            item.started,
            (item.load_seconds, outcome.seconds, seconds),
            item.read_bytes,
            written,
            value,
            outputs,
            outcome.peak_bytes,
            outcome.idle_seconds,
            outcome.outside_bytes,
            self._spans(item, written, begun, seconds) if job.recorded else (),
        )

    @contextmanager
    def _marked(self, item: _Item, stream: Any) -> Iterator[None]:
        """Let an item know when what is asked of a stream within begins and ends."""
        if not self._job.recorded:
            yield
            return
        item.marks.append(self._device.mark(stream))
        yield
        item.marks.append(self._device.mark(stream))

    def _spans(self, item: _Item, written: int, begun: float, seconds: float) -> tuple[Span, ...]:
        """Return when each step of an item was done."""
        name = self._device.name
        moments = list(map(self._device.moment, item.marks))
        times = zip(moments[::2], moments[1::2], strict=True)
        (copied_in, computed, copied_out) = [(start, end - start) for start, end in times]
        return (
            Span("read", f"{name} read", item.started, item.load_seconds, item.read_bytes),
            Span("copy in", f"{name} copy in", *copied_in, item.read_bytes),
            Span("compute", f"{name} compute", *computed),
            Span("copy out", f"{name} copy out", *copied_out, written),
            Span("write", f"{name} write", begun, seconds, written),
        )

    def _write(self, cell: Cell, host: HostSlot) -> int:
        job, device = self._job, self._device
        where, regions = _leaving(job, cell), job.writes(cell, _PIECE_BYTES)
        tasks = [
            partial(_write, device, sink, piece, array[_within(piece, cell.valid_in(sink.shape))])
            for sink, array, parts in zip(
                copied(job.sinks), host.arrays(where), regions, strict=True
            )
            for piece in parts
        ]
        with self._storing:
            self._crew.do(tasks)
        return total_bytes(where)


def _coming(job: Job, cell: Cell) -> list[Place]:
    """Return where the blocks of the sources lie in a slot."""
    sources = copied(job.sources)
    return places(sources, [cell.read_in(source.shape) for source in sources])


def _leaving(job: Job, cell: Cell) -> list[Place]:
    """Return where the valid parts of the results lie in a slot."""
    sinks = copied(job.sinks)
    return places(sinks, [cell.valid_in(sink.shape) for sink in sinks])


def _within(piece: Region, region: Region) -> tuple[slice, ...]:
    return piece.within(region).slices


def _read(device: StreamDevice, source: Source, region: Region, out: Array) -> None:
    device.host_access(out, "w")
    source.read(region, out=out)


def _write(device: StreamDevice, sink: Sink, region: Region, array: Array) -> None:
    device.host_access(array, "r")
    sink.write(region, array)


def _call(job: Job, cell: Cell, device: StreamDevice, slot: DeviceSlot, out: DeviceSlot) -> Any:
    """Compute a cell on the device and copy its valid voxels, cast, to where they leave from."""
    blocks = _arrays(job.sources, cell.read_in, slot.arrays(device, _coming(job, cell)))
    # Copies, since a function may change its arguments, keep them, or return views of them.
    arrays = [block.copy("K") for block in blocks]
    value, outputs = job.compute(cell, arrays, device.call)
    kept = device.to_host(value) if job.return_result else None
    if job.keep_outputs:
        return kept, tuple([device.to_host(output) for output in outputs])
    targets = _arrays(job.sinks, cell.valid_in, out.arrays(device, _leaving(job, cell)))
    for target, output in zip(targets, outputs, strict=True):
        device.copy(target, output)
    return kept, ()


def _arrays(
    ends: Sequence[Source], region_in: Callable[[Sequence[int]], Region], views: list[Any]
) -> list[Any]:
    """Return the block of each source or sink: a view of its slot, or of itself on the device."""
    rest = iter(views)
    return [
        next(rest) if getattr(end, "on_device", None) is None else end[region_in(end.shape).slices]
        for end in ends
    ]
