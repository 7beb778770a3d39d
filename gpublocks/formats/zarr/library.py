"""Arrays that a library reads and writes in chunks, as sources and sinks. Touches these arrays."""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np

from gpublocks.contracts import Array, DType, Extent, Order, Reach
from gpublocks.errors import ArgumentTypeError, SinkError, SourceError, line_of
from gpublocks.formats.files.picking import source_getitem, source_setitem, target
from gpublocks.geometry import Region, parts
from gpublocks.voxels import (
    source_array,
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
)

__all__ = ["LibrarySource"]


class LibrarySource:
    """An array with ``shape``, ``dtype``, ``[...]`` and ``[...] =``, stored in chunks.

    The library decodes a chunk to whatever it holds: memory is bounded in worker processes only,
    by what a worker may take.

    Parameters
    ----------
    array : object
        Each time it is read it gives new memory.
    name : str
        Kind of source, as shown in its repr.
    location : str or None
        Path or URL, for messages.
    reach : Reach
    extent : Extent
    unit, read_unit : tuple of int
        Voxels that are written, and decoded, as one piece.
    writable : bool
        Whether writing is permitted.
    single_writer : bool
        Whether only one thread of one process may write.
    metadata : mapping, optional
        What is told of the voxels beside their shape and type.
    reopen : (callable, tuple), optional
        How another process gets it; by default it gets the array.
    """

    __slots__ = (
        "_array",
        "_reopen",
        "dtype",
        "extent",
        "location",
        "metadata",
        "name",
        "reach",
        "read_unit",
        "shape",
        "single_writer",
        "unit",
        "writable",
    )

    order: Order = "C"

    def __init__(
        self,
        array: Any,
        name: str,
        *,
        location: str | None,
        reach: Reach,
        extent: Extent,
        unit: tuple[int, ...],
        read_unit: tuple[int, ...],
        writable: bool,
        single_writer: bool = False,
        metadata: Mapping[str, Any] | None = None,
        reopen: tuple[Callable[..., Any], tuple[Any, ...]] | None = None,
    ) -> None:
        self._array = array
        self._reopen = reopen
        self.name = name
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype: DType = np.dtype(array.dtype).newbyteorder("=")
        self.location = location
        self.reach = reach
        self.extent = extent
        self.unit = unit
        self.read_unit = read_unit
        self.writable = writable
        self.single_writer = single_writer
        self.metadata = dict(metadata or {})

    ndim = property(source_ndim)
    size = property(source_size)
    __len__ = source_len
    __array__ = source_array
    __getitem__ = source_getitem
    __setitem__ = source_setitem
    __repr__ = source_text
    info = source_info

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region, in `out` if given.

        Raises
        ------
        SourceError
            If the library cannot read it; the message names the chunk.
        """
        given = target(self, region, out)
        try:
            np.copyto(given, self._array[region.slices], casting="unsafe")
        except Exception as error:
            raise self._explained(region, error) from error
        return given

    def write(self, region: Region, array: Array) -> None:
        """Write an array of the region's shape, cast as NumPy assignment casts.

        Raises
        ------
        SinkError
            If it was not opened for writing, or the library cannot write it.
        """
        if not self.writable:
            raise SinkError(f"{self.location} was opened read-only; pass its path as the sink")
        voxels = target(self, region, array).astype(self.dtype, copy=False)
        try:
            self._array[region.slices] = voxels
        except Exception as error:
            raise SinkError(
                getattr(error, "errno", None),
                f"cannot write {region.start} to {region.stop} of {self.location}: "
                f"{line_of(error)}",
            ) from error

    def encoding_bytes(self, unit: tuple[int, ...], itemsize: int) -> int:
        """Return what a writer takes: a unit before it is encoded, and after."""
        return 2 * prod(unit) * itemsize

    def sync(self) -> None:
        """Do nothing: stores acknowledge what they have."""

    def finish(self) -> None:
        """Do nothing: the array is there already."""

    def abort(self) -> None:
        """Do nothing: the array was there before."""

    def __reduce__(self) -> Any:
        if self.reach < Reach.MACHINE:
            raise ArgumentTypeError(
                f"{self!r} lies in the memory of this process and does not travel to others; "
                "use a folder or a URL, or executor='threads'"
            )
        if self._reopen is not None:
            return self._reopen
        raise ArgumentTypeError(f"{self!r} does not travel to other processes; give its path")

    def _explained(self, region: Region, error: Exception) -> SourceError:
        """Return the error of the first chunk of a region that cannot be read alone."""
        for index, part in parts(region, self.read_unit):
            try:
                self._array[part.slices]
            except Exception as reason:
                return SourceError(
                    f"chunk {index} of {self.location} cannot be read: {line_of(reason)}"
                )
        return SourceError(f"{self.location} cannot be read: {line_of(error)}")
