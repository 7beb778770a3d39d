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
    "CellRetried",
    "CellStarted",
    "DType",
    "Device",
    "Event",
    "Executor",
    "Extent",
    "Filter",
    "NewSink",
    "Order",
    "OutputWritten",
    "Reach",
    "Run",
    "Sink",
    "Source",
    "Stage",
]

Array = npt.NDArray[Any]
DType = np.dtype[Any]
Order = Literal["C", "F"]
Stage = Literal["load", "compute", "store"]


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
        """Write an array of the region's shape, cast as NumPy assignment casts."""

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

    def create(self, shape: tuple[int, ...], dtype: DType, order: Order) -> Sink:
        """Create it, preallocated, under a temporary name until `Sink.finish`."""


class Filter(Protocol):
    """A function of arrays that knows how far it looks and what it takes.

    Every attribute but the call is optional for a plain function.
    """

    @property
    def halo(self) -> int | tuple[int, ...]:
        """Voxels per axis and side that one output voxel looks at."""

    @property
    def memory(self) -> float:
        """Bytes that a call takes per input voxel, its result included and its input not."""

    def result_dtype(self, dtype: DType) -> DType:
        """Type of the result for an input of this type."""

    def __call__(self, *arrays: Array, **kwargs: Any) -> Any:
        """Filter one block."""


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
        Measured growth of the worker's anonymous memory, where it was measured.
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


@dataclass(frozen=True, slots=True)
class CellRetried:
    """A worker died of a cell, which goes to another one."""

    cell: Cell
    worker: str
    reason: str


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


Event = CellStarted | CellDone | CellRetried | CellFailed | OutputWritten


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


class Device(Protocol):
    """Where the stream executor computes."""

    @property
    def name(self) -> str:
        """For messages: ``'cpu'``, ``'cuda:0'``."""

    @property
    def lanes(self) -> int:
        """Cells in flight at once, each loaded, computed and stored by a thread of its own."""

    def compute(self, function: Callable[[], Any]) -> Any:
        """Call a function on this device and return what it returned."""


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
