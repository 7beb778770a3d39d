"""The contracts between the rooms: sources, sinks, devices, executors, events of a run. Pure."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from gpublocks.geometry import Cell, Region

__all__ = [
    "Array",
    "CellDone",
    "CellFailed",
    "CellRefused",
    "CellRetried",
    "CellSplit",
    "CellStarted",
    "DType",
    "Device",
    "Event",
    "Executor",
    "Extent",
    "Filter",
    "NewSink",
    "Order",
    "Outcome",
    "OutputWritten",
    "Reach",
    "Run",
    "Sink",
    "Source",
    "Span",
    "Stage",
    "Step",
    "StreamDevice",
    "Trouble",
]

Array = npt.NDArray[Any]
DType = np.dtype[Any]
Order = Literal["C", "F"]
Stage = Literal["load", "compute", "store"]
Step = Literal["read", "copy in", "compute", "copy out", "write"]
"""What is done with a cell: its blocks are read into the memory of this machine, copied to where
they are computed (a GPU, a worker process), and the same way back."""
Trouble = Literal["memory", "fatal", "user"]
"""What an error means for a device: it ran out of memory, it is lost for this process, or nothing:
the error is the function's own."""


class Reach(IntEnum):
    """From how far the voxels of a source or sink can be seen."""

    PROCESS = 0
    """Only from this process: an array in its memory."""
    MACHINE = 1
    """From any process of this machine: a local file, shared memory."""
    CLUSTER = 2
    """From any machine: object storage, a shared file system."""


@dataclass(frozen=True, slots=True)
class Extent:
    """The bytes that an array occupies, for telling whether two arrays share any.

    Parameters
    ----------
    store : hashable
        What the bytes lie in: ``('memory', pid)``, or ``('file', device, inode)``.
    start, stop : int
        Half-open range of byte addresses in it.
    """

    store: Hashable
    start: int
    stop: int

    def overlaps(self, other: "Extent") -> bool:
        """Tell whether the two ranges share a byte."""
        return self.store == other.store and self.start < other.stop and other.start < self.stop


@runtime_checkable
class Source(Protocol):
    """An n-D array that can be read box by box. Pickles to its address, not to its voxels."""

    @property
    def name(self) -> str:
        """Kind of source, as shown in its repr: ``'Numpy-Source'``."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""

    @property
    def dtype(self) -> DType:
        """Type of a voxel."""

    @property
    def order(self) -> Order:
        """Memory order: ``'F'`` if the first axis varies fastest, else ``'C'``."""

    @property
    def location(self) -> str | None:
        """Path, or None for an array in memory."""

    @property
    def reach(self) -> Reach:
        """From how far the voxels can be seen."""

    @property
    def extent(self) -> Extent | None:
        """The bytes it occupies; None if that cannot be known."""

    @property
    def unit(self) -> tuple[int, ...]:
        """Smallest box stored as one piece (a chunk); ones where voxels stand alone."""

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region, in `out` if that is given."""

    def __getitem__(self, slicing: Any) -> Any: ...


@runtime_checkable
class Sink(Source, Protocol):
    """A source that can also be written, box by box; no two writers touch one `unit`."""

    @property
    def writable(self) -> bool:
        """Whether writing is permitted."""

    @property
    def single_writer(self) -> bool:
        """Whether only one thread of one process may write."""

    def write(self, region: Region, array: Array) -> None:
        """Write an array of the region's shape, cast as NumPy assignment casts.

        The array is the caller's, who uses its memory again.
        """

    def sync(self) -> None:
        """Make what was written durable."""

    def finish(self) -> None:
        """Complete a new sink: move it to its final name. Does nothing for one that existed."""

    def abort(self) -> None:
        """Drop a new sink that was not finished. Does nothing for one that existed."""

    def __setitem__(self, slicing: Any, value: Any) -> None: ...


@runtime_checkable
class NewSink(Protocol):
    """A sink that does not exist yet: where and how to create it."""

    @property
    def location(self) -> str | None:
        """Final path; None for an array in memory."""

    def check(self) -> None:
        """Raise `SinkError` if it cannot be created. Creates nothing."""

    def units(self, shape: tuple[int, ...], dtype: DType) -> list[tuple[int, ...]]:
        """Return the write units that it may have, the preferred one first."""

    def create(
        self,
        shape: tuple[int, ...],
        dtype: DType,
        order: Order,
        unit: tuple[int, ...] | None = None,
    ) -> Sink:
        """Create it, preallocated, under a temporary name until `Sink.finish`.

        Parameters
        ----------
        unit : tuple of int, optional
            One of `units`; by default the first.
        """


class Filter(Protocol):
    """A function of an array that knows how far it looks and what it takes.

    Every attribute but the call is optional for a plain function.
    """

    @property
    def halo(self) -> int | tuple[int, ...]:
        """Voxels per axis and side that one output voxel looks at."""

    def memory(self, dtype: DType) -> float | None:
        """Return the bytes that a call takes per input voxel of a type, its result included.

        The input is not. None if it is not known. Plain functions may have a number here.
        """

    def result_dtype(self, dtype: DType) -> DType | None:
        """Return the type of the result for an input of this type; None if only a call tells."""

    def __call__(self, array: Array) -> Any:
        """Filter one block."""


@dataclass(frozen=True, slots=True)
class Span:
    """Time that somebody spent on a step of a cell.

    Parameters
    ----------
    step : Step
    lane : str
        Who: a thread, a process, a stream of a device. A lane does one thing at a time, but for
        the threads that read or write blocks for a device, which are one lane.
    start, seconds : float
        When it began, by `time.perf_counter` (one clock for all processes), and how long it took.
    nbytes : int
        Bytes that were moved.
    """

    step: Step
    lane: str
    start: float
    seconds: float
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class CellStarted:
    """A worker has begun a cell."""

    cell: Cell
    worker: str


@dataclass(frozen=True, slots=True)
class CellDone:
    """A cell is complete: its valid region is in the sinks.

    Parameters
    ----------
    cell : Cell
    worker : str
        Which worker did it.
    started : float
        When it began, in seconds of `time.perf_counter` (one clock for all processes).
    seconds : tuple of float
        Time spent in load, compute and store.
    read_bytes, written_bytes : int
    value : object
        What the function returned, if it was asked for.
    outputs : tuple of ndarray
        Cropped results, where the job keeps them instead of storing them.
    peak_bytes : int or None
        Most memory that the worker took for the cell, its input included, where it was measured:
        growth of a process's anonymous memory; input and memory pool of a GPU.
    idle_seconds : float or None
        How long the device had nothing to compute before this cell, where it tells.
    outside_bytes : int
        Memory that the function took for good beside that, whatever the size of the cell.
    spans : tuple of Span
        When each step was done, where it is more than `seconds` one after the other, and where it
        was asked for (`gpublocks.job.Job.recorded`).
    """

    cell: Cell
    worker: str
    started: float
    seconds: tuple[float, float, float]
    read_bytes: int
    written_bytes: int
    value: Any = None
    outputs: tuple[Array, ...] = ()
    peak_bytes: int | None = None
    idle_seconds: float | None = None
    outside_bytes: int = 0
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class CellRetried:
    """A cell that a worker or device failed at is tried once more, by the same or another one."""

    cell: Cell
    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class CellSplit:
    """A cell is computed in parts, since a device has no memory for it in one piece."""

    cell: Cell
    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class CellRefused:
    """No device could do a cell, through no fault of the function's; the run ends without it.

    Parameters
    ----------
    error : Exception
        What would be raised if nobody else could do the cell.
    """

    cell: Cell
    worker: str
    error: Exception


@dataclass(frozen=True, slots=True)
class CellFailed:
    """A cell failed for good; the run raises `error`."""

    cell: Cell
    worker: str
    stage: Stage | None
    error: BaseException


@dataclass(frozen=True, slots=True)
class OutputWritten:
    """A worker process wrote text to a standard stream."""

    stream: Literal["stdout", "stderr"]
    text: str
    worker: str = field(default="")


Event = CellStarted | CellDone | CellRetried | CellSplit | CellRefused | CellFailed | OutputWritten


class Run(Protocol):
    """Cells under way: an iterator of their events.

    The events of one cell come in order; those of different cells interleave. After a failure
    the iterator raises the error that the `CellFailed` event carried; after a cancellation
    `RunCancelledError`. When it ends, in whatever way, nothing is running any more.
    """

    def __iter__(self) -> Iterator[Event]: ...

    def cancel(self) -> None:
        """Stop soon. May be called from any thread."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel if `cancel_futures`; wait for the end unless called by the consuming thread."""


@runtime_checkable
class Device(Protocol):
    """Processors that compute in host memory."""

    @property
    def name(self) -> str:
        """For messages: ``'cpu'``."""

    @property
    def lanes(self) -> int:
        """Cells in flight at once, each loaded, computed and stored by a thread of its own."""

    def compute(self, function: Callable[[], Any]) -> Any:
        """Call a function on this device and return what it returned."""


class Outcome(Protocol):
    """What came of a computation on a `StreamDevice`; known once an event after it was reached."""

    @property
    def seconds(self) -> float:
        """Time that the device took for it."""

    @property
    def idle_seconds(self) -> float | None:
        """How long the device had nothing to compute before it; None for the first one."""

    @property
    def peak_bytes(self) -> int | None:
        """Most memory that was taken, beyond what `StreamDevice.allocate` gave; None if unknown."""

    @property
    def outside_bytes(self) -> int:
        """Memory that it took for good beside that, if it was measured: of the driver's."""

    def result(self) -> Any:
        """Return what the function returned, or raise what it raised."""


class StreamDevice(Protocol):
    """A processor with memory and streams of its own, such as a GPU.

    Operations on one stream are done in their order, those on different streams in any, all of
    them some time after the call that asks for them. Every method may be called from any thread.
    """

    @property
    def name(self) -> str:
        """For messages: ``'cuda:0'``."""

    def memory(self) -> tuple[int, int]:
        """Return free and total memory in bytes."""

    def allocate(self, nbytes: int) -> Any:
        """Return memory of the device, its bytes not set. Kept until `close`.

        Where there is none, it raises what `classify` calls ``'memory'``; so does the next one.
        """

    def allocate_pinned(self, nbytes: int) -> Array:
        """Return page-locked host memory as a 1-D array of uint8. Kept until `close`."""

    def stream(self, *, default: bool = False) -> Any:
        """Return a new stream.

        Parameters
        ----------
        default : bool
            Whether it and the device's default stream wait for each other, as those of libraries
            and threads that know of no other one expect.
        """

    def event(self) -> Any:
        """Return a new event, recorded once, so that nothing ever waits for it in vain."""

    def record(self, event: Any, stream: Any) -> None:
        """Let an event be reached when all that was asked of a stream so far is done."""

    def wait(self, stream: Any, event: Any) -> None:
        """Let a stream go on only when an event, as recorded last, is reached."""

    def sync(self, event: Any) -> None:
        """Return when an event, as recorded last, is reached; raise if the device is lost."""

    def mark(self, stream: Any) -> Any:
        """Return what `moment` tells the time of: when all that was asked of a stream is done."""

    def moment(self, mark: Any) -> float:
        """Return when a mark was reached, by `time.perf_counter` of the host.

        For marks after which an event was recorded and reached.
        """

    def upload(self, target: Any, source: Array, stream: Any) -> None:
        """Copy page-locked bytes to the first bytes of device memory."""

    def download(self, target: Array, source: Any, stream: Any) -> None:
        """Copy the first bytes of device memory to page-locked ones."""

    def host_access(self, array: Array, mode: Literal["r", "w"]) -> None:
        """Note that this thread is about to read or write page-locked memory."""

    def view(
        self, memory: Any, offset: int, shape: tuple[int, ...], dtype: DType, order: Order
    ) -> Any:
        """Return an array in device memory, from a byte offset on."""

    def compute(
        self,
        call: Callable[[], Any],
        stream: Any,
        *,
        reads: tuple[Any, ...],
        writes: tuple[Any, ...],
        measure: bool = False,
    ) -> Outcome:
        """Call a function whose array operations go to a stream.

        Parameters
        ----------
        call : callable
            May use `view`, `call`, `copy` and `to_host`.
        reads, writes : tuple
            Memory of `allocate` that it uses; what it reads it may change too.
        measure : bool
            Whether to measure `Outcome.outside_bytes`, which takes time.

        Raises
        ------
        Exception
            What the function raises is raised here, or by `Outcome.result`.
        """

    def call(self, function: Callable[[], Any]) -> Any:
        """Call the user's function, and let what follows come after all that it asked for.

        What it takes at most counts into `Outcome.peak_bytes`; what is taken after it does not.
        """

    def copy(self, target: Any, array: Any) -> None:
        """Copy an array of the device or the host to a view of the same shape, cast to its type.

        Raises
        ------
        ValueError
            If the shapes differ.
        """

    def to_host(self, value: Any) -> Any:
        """Return a value with each array of the device in it replaced by a NumPy array."""

    def classify(self, error: BaseException) -> Trouble:
        """Tell what an error means for this device."""

    def trim(self) -> None:
        """Give back memory that is kept for later. For the thread that computes."""

    def rest(self) -> None:
        """Give back what libraries keep for the thread that computes, which calls this last."""

    def retire(self, reason: str) -> None:
        """Note that this process is not to use the device again."""

    def close(self) -> None:
        """Wait for what is under way and give everything back."""


class Executor(Protocol):
    """Decides where and when the three stages of a job run, for any iterable of its cells."""

    @property
    def name(self) -> str:
        """``'serial'``, ``'threads'``, ``'processes'``."""

    @property
    def workers(self) -> int:
        """Cells in flight at once."""

    def run(self, job: Any, cells: Iterable[Cell]) -> Run:
        """Begin to process cells of a `gpublocks.job.Job`."""
