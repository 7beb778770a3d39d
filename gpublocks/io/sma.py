"""Arrays in shared memory, which the other processes of this user can map. Touches memory only."""

import mmap
import os
import weakref
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from gpublocks.contracts import Array, DType, Extent, Order, Reach
from gpublocks.errors import ArgumentTypeError, SourceError
from gpublocks.geometry import Region
from gpublocks.sharing import shared_file
from gpublocks.voxels import (
    array_at,
    byte_range,
    memory_order,
    put,
    single_units,
    source_array,
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
    take,
)

__all__ = ["NewArray", "Shared", "Source", "empty", "find", "zeros"]


@dataclass(frozen=True, slots=True)
class _Memory:
    """Where a piece of shared memory is found: a descriptor of the process that made it."""

    pid: int
    fd: int
    nbytes: int
    file: tuple[int, int]

    @property
    def path(self) -> str:
        return f"/proc/{self.pid}/fd/{self.fd}"


@dataclass(frozen=True, slots=True)
class Shared:
    """The part of a piece of shared memory that an array shows.

    Parameters
    ----------
    memory : object
        For other processes to find it.
    extent : Extent
        The bytes of it.
    """

    memory: _Memory
    extent: Extent


_memories: "weakref.WeakKeyDictionary[mmap.mmap, _Memory]" = weakref.WeakKeyDictionary()
"""All maps of shared memory in this process."""


def empty(shape: int | tuple[int, ...], dtype: npt.DTypeLike = float, order: Order = "C") -> Array:
    """Return a new array in shared memory, filled with zeros.

    Processes write to it directly. The memory is freed with the last array that lies in it.

    Raises
    ------
    BudgetError
        If there is no room for it.
    ArgumentTypeError
        If `dtype` holds objects.
    """
    shape = tuple(np.atleast_1d(np.asarray(shape, np.intp)).tolist())
    dtype = np.dtype(dtype)
    if dtype.hasobject:
        raise ArgumentTypeError(f"dtype {dtype} cannot lie in shared memory; use numbers")
    nbytes = max(prod(shape) * dtype.itemsize, 1)
    fd = shared_file(nbytes)
    status = os.fstat(fd)
    memory = _Memory(os.getpid(), fd, nbytes, (status.st_dev, status.st_ino))
    buffer = mmap.mmap(fd, nbytes)
    weakref.finalize(buffer, os.close, fd)
    _memories[buffer] = memory
    return array_at(buffer, 0, shape, dtype, order)


zeros = empty


def find(array: Array) -> Shared | None:
    """Return which part of which shared memory an array shows; None if it lies in none."""
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    buffer = root.base
    if not isinstance(buffer, mmap.mmap) or buffer not in _memories:
        return None
    memory = _memories[buffer]
    origin = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    start, stop = byte_range(array)
    shift = origin if array.size else 0
    return Shared(memory, Extent(("file", *memory.file), start - shift, stop - shift))


class Source:
    """An array in shared memory, as a source and a sink.

    Parameters
    ----------
    array : ndarray
        One made by `empty` or `zeros`, or a contiguous view of one.

    Raises
    ------
    ArgumentTypeError
        If it is neither.
    """

    __slots__ = ("_shared", "array", "dtype", "order", "shape", "unit", "writable")

    name = "Shared-Source"
    location: None = None
    single_writer = False

    def __init__(self, array: Array) -> None:
        shared = find(array)
        if shared is None or not array.flags.forc:
            raise ArgumentTypeError(
                f"the array of shape {array.shape} is not a contiguous one in shared memory; "
                "make it with io.sma.zeros, or use io.as_source"
            )
        self.array = array
        self._shared = shared
        self.shape = array.shape
        self.dtype: DType = array.dtype
        self.order: Order = memory_order(array)
        self.writable = array.flags.writeable
        self.unit = (1,) * array.ndim

    ndim = property(source_ndim)
    size = property(source_size)
    __len__ = source_len
    __array__ = source_array
    __repr__ = source_text
    info = source_info

    @property
    def extent(self) -> Extent:
        """The bytes it occupies in the shared memory."""
        return self._shared.extent

    @property
    def reach(self) -> Reach:
        """The machine, where processes can open each other's descriptors, as Linux has it."""
        return Reach.MACHINE if os.path.exists(self._shared.memory.path) else Reach.PROCESS

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region, in `out` if given."""
        return take(self.array, region, self.order, out)

    def write(self, region: Region, array: Array) -> None:
        """Write an array of the region's shape, cast as NumPy assignment casts."""
        put(self.array, region, array)

    def sync(self) -> None:
        """Do nothing: memory does not last."""

    def finish(self) -> None:
        """Do nothing: the array is there already."""

    def abort(self) -> None:
        """Do nothing: the array was there before."""

    def __getitem__(self, slicing: Any) -> Any:
        return self.array[slicing]

    def __setitem__(self, slicing: Any, value: Any) -> None:
        self.array[slicing] = value

    def __reduce__(self) -> Any:
        if self.reach < Reach.MACHINE:
            raise ArgumentTypeError(f"{self!r} cannot be reached by other processes; use a file")
        return _attach, (self._shared, self.shape, self.dtype, self.order, self.writable)


@dataclass(frozen=True, slots=True)
class NewArray:
    """An array in shared memory that will be created when its shape and type are known."""

    @property
    def location(self) -> None:
        """None: it is in memory."""
        return

    def check(self) -> None:
        """Do nothing: there is nothing in the way of a new array."""

    units = single_units

    def create(
        self,
        shape: tuple[int, ...],
        dtype: DType,
        order: Order,
        unit: tuple[int, ...] | None = None,
    ) -> Source:
        """Return a new array of zeros.

        Raises
        ------
        BudgetError
            If there is not enough memory.
        """
        return Source(empty(shape, dtype, order))


def _attach(
    shared: Shared, shape: tuple[int, ...], dtype: DType, order: Order, writable: bool
) -> Source:
    """Return the source that another process described."""
    memory = shared.memory
    gone = (
        f"the shared array of shape {shape} is gone with process {memory.pid}, which made it; "
        "keep that process running, or use a file"
    )
    try:
        fd = os.open(memory.path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise SourceError(gone) from error
    try:
        status = os.fstat(fd)
        if (status.st_dev, status.st_ino) != memory.file:
            raise SourceError(gone)
        buffer = mmap.mmap(fd, memory.nbytes)
    finally:
        os.close(fd)
    _memories[buffer] = memory
    array = array_at(buffer, shared.extent.start, shape, dtype, order)
    array.flags.writeable = writable
    return Source(array)
