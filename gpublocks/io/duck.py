"""Any object with ``shape``, ``dtype`` and ``[...]`` as source and sink. Touches that object."""

import os
import pickle
from typing import Any

import numpy as np

from gpublocks.contracts import Array, DType, Extent, Order, Reach
from gpublocks.errors import ArgumentTypeError, PlanError, SinkError, SourceError
from gpublocks.geometry import Region
from gpublocks.voxels import (
    source_array,
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
)

__all__ = ["Source"]

ADDRESS_BYTES = 1 << 16
"""What pickles to less than this is an address; what pickles to more carries its voxels along."""


class Source:
    """An object that is read and written by ``[...]``.

    It is written by one thread at a time: nothing tells whether its assignment bears two.

    Parameters
    ----------
    array : object
        It has ``shape``, ``dtype`` and ``__getitem__``, and ``__setitem__`` if it is a sink.

    Raises
    ------
    ArgumentTypeError
        If it lacks one of these, or holds Python objects.
    PlanError
        If it is a scalar.
    """

    __slots__ = ("array", "dtype", "location", "name", "order", "reach", "shape", "unit")

    single_writer = True

    def __init__(self, array: Any) -> None:
        self.array = array
        self.shape, self.dtype = _shape_and_dtype(array)
        name = getattr(array, "name", None)
        named = isinstance(name, str) and name.endswith("-Source")
        self.name = str(name) if named else "Duck-Source"
        self.order: Order = "F" if getattr(array, "order", None) == "F" else "C"
        self.location = _location(array)
        self.unit = _unit(array, self.shape)
        self.reach = _reach(array, self.location)

    ndim = property(source_ndim)
    size = property(source_size)
    __len__ = source_len
    __array__ = source_array
    __repr__ = source_text
    info = source_info

    @property
    def extent(self) -> Extent:
        """The whole file or folder it lies in; where it has none, the object itself."""
        if self.location is not None and os.path.exists(self.location):
            status = os.stat(self.location)
            return Extent(("file", status.st_dev, status.st_ino), 0, 1 << 63)
        return Extent(("object", os.getpid(), id(self.array)), 0, 1)

    @property
    def writable(self) -> bool:
        """Whether writing is permitted."""
        array = self.array
        mode = getattr(getattr(array, "file", None), "mode", None)
        read_only = getattr(array, "read_only", False) is True or mode == "r"
        return hasattr(array, "__setitem__") and not read_only

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region, in `out` if given.

        Raises
        ------
        SourceError
            If the object gives an array of another shape.
        """
        given = self.array[region.slices]
        voxels = np.asarray(given)
        if voxels.shape != region.shape:
            raise SourceError(
                f"{self!r} gave an array of shape {voxels.shape} for region {region.start} to "
                f"{region.stop}; convert it to an ndarray"
            )
        if out is not None:
            np.copyto(out, voxels, casting="unsafe")
            return out
        return np.array(voxels, self.dtype, order=self.order)

    def write(self, region: Region, array: Array) -> None:
        """Assign an array of the region's shape; the object casts as it does.

        Raises
        ------
        SinkError
            If the object cannot be assigned to.
        PlanError
            If the shapes differ.
        """
        if not self.writable:
            raise SinkError(f"{self!r} is read-only; give one that was opened for writing")
        if array.shape != region.shape:
            raise PlanError(f"an array of shape {array.shape} does not fit {region.shape}")
        self.array[region.slices] = array

    def sync(self) -> None:
        """Flush the object's file, if it has one that can be flushed."""
        flush = getattr(getattr(self.array, "file", self.array), "flush", None)
        if callable(flush):
            flush()

    def finish(self) -> None:
        """Do nothing: the object is there already."""

    def abort(self) -> None:
        """Do nothing: the object was there before."""

    def __getitem__(self, slicing: Any) -> Any:
        return self.array[slicing]

    def __setitem__(self, slicing: Any, value: Any) -> None:
        self.array[slicing] = value

    def __reduce__(self) -> Any:
        if self.reach < Reach.MACHINE:
            raise ArgumentTypeError(
                f"{self!r} lies in the memory of this process and does not travel to others; "
                "use a file, or executor='threads'"
            )
        return Source, (self.array,)


def _shape_and_dtype(array: Any) -> tuple[tuple[int, ...], DType]:
    kind = f"{type(array).__module__}.{type(array).__qualname__}".removeprefix("builtins.")
    lacks = [a for a in ("shape", "dtype", "__getitem__") if not hasattr(array, a)]
    if lacks:
        raise ArgumentTypeError(
            f"a {kind} is no source (it has no {', '.join(lacks)}); give an array or a path"
        )
    try:
        shape = tuple([int(n) for n in array.shape])
        dtype = np.dtype(array.dtype)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(
            f"a {kind} of type {array.dtype} and shape {array.shape} is no array of NumPy's; "
            "convert it to an ndarray"
        ) from error
    if dtype.hasobject:
        raise ArgumentTypeError(f"dtype {dtype} cannot be processed block-wise; convert it")
    if not shape:
        raise PlanError(f"the {kind} is a scalar (0 axes); give one of at least one axis")
    return shape, dtype


def _location(array: Any) -> str | None:
    """Return the path that an object tells."""
    path = getattr(array, "location", None)
    return str(os.fspath(path)) if isinstance(path, str | os.PathLike) else None


def _unit(array: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    for unit in (getattr(array, "shards", None), getattr(array, "chunks", None)):
        if not isinstance(unit, tuple) or len(unit) != len(shape):
            continue
        if all(isinstance(n, int | np.integer) and n > 0 for n in unit):
            return tuple([int(n) for n in unit])
    return (1,) * len(shape)


def _reach(array: Any, location: str | None) -> Reach:
    """Return this machine for what lies in a file and pickles to its address only.

    An object without a file would be copied, and what is written to a copy is lost.
    """
    if location is None or not os.path.exists(location):
        return Reach.PROCESS
    try:
        pickle.Pickler(_Limited(), protocol=5).dump(array)
    except Exception:
        return Reach.PROCESS
    return Reach.MACHINE


class _Limited:
    """A file that takes an address, and no more."""

    def __init__(self) -> None:
        self.left = ADDRESS_BYTES

    def write(self, data: Any) -> int:
        self.left -= memoryview(data).nbytes
        if self.left < 0:
            raise OverflowError("more than an address")
        return 0
