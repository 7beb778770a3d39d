"""Plain arrays in local files, mapped into memory: what all formats without compression are.

Touches local files.
"""

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Protocol

import numpy as np

from gpublocks.budget import format_bytes
from gpublocks.contracts import Array, DType, Extent, Order, Reach
from gpublocks.errors import SinkError, SourceError
from gpublocks.formats.files.partial import (
    create_partial,
    preallocate,
    sync_path,
)
from gpublocks.formats.files.paths import check_length, check_unchanged, stamp
from gpublocks.formats.files.room import check_room
from gpublocks.geometry import Region
from gpublocks.voxels import (
    put,
    source_array,
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
    take,
)

__all__ = [
    "Address",
    "MappedSource",
    "Unfinished",
    "new_file",
]


@dataclass(frozen=True, slots=True)
class Address:
    """Where the voxels of an array are found in a file.

    Parameters
    ----------
    path : str
        Absolute, without symbolic links.
    file : (int, int)
        Device and inode.
    offset : int
        Where in the file the voxels begin, in bytes.
    shape : tuple of int
    dtype : dtype
    order : {'C', 'F'}
    writable : bool
        Whether the file is to be opened for writing.
    """

    path: str
    file: tuple[int, int]
    offset: int
    shape: tuple[int, ...]
    dtype: DType
    order: Order
    writable: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of voxels."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def extent(self) -> Extent:
        """The bytes of the file that the voxels occupy."""
        return Extent(("file", *self.file), self.offset, self.offset + self.nbytes)

    def map(self) -> Array:
        """Return the voxels as an array that is mapped from the file."""
        try:
            with open(self.path, "r+b" if self.writable else "rb") as file:
                status = os.fstat(file.fileno())
                if (status.st_dev, status.st_ino) != self.file:
                    raise SourceError(f"{self.path} was replaced by another file; start again")
                check_length(self.path, status.st_size, self.offset, self.nbytes)
                if not self.nbytes:
                    # An empty file cannot be mapped.
                    return np.empty(self.shape, self.dtype, self.order)
                whole: Array = np.memmap(
                    file,
                    self.dtype,
                    "r+" if self.writable else "r",
                    self.offset,
                    self.shape,
                    self.order,
                )
        except SourceError:
            raise
        except OSError as error:
            raise SourceError(
                error.errno, f"cannot open {self.path}: {error.strerror or error}"
            ) from error
        # Indexing np.memmap itself takes microseconds of Python for each slice.
        return whole.view(np.ndarray)


class Unfinished(Protocol):
    """What is still to be done to a new file, or to several that belong together."""

    final: str
    """Where the voxels will be."""

    def rename(self) -> None:
        """Complete it: move it to its final name."""

    def remove(self) -> None:
        """Drop it."""


class MappedSource:
    """An array in a file, mapped into memory. Pickles to its address.

    Parameters
    ----------
    address : Address
        Where in the file the voxels are.
    name : str
        Kind of source, as shown in its repr.
    array : ndarray, optional
        The voxels, if they are mapped already.
    partial : Unfinished, optional
        The file under way, if it is new.
    metadata : mapping, optional
        What the file says of the voxels beside their shape and type.
    """

    __slots__ = (
        "__weakref__",
        "_address",
        "_array",
        "_map",
        "_partial",
        "_stamp",
        "metadata",
        "name",
        "unit",
    )

    reach = Reach.MACHINE
    single_writer = False

    def __init__(
        self,
        address: Address,
        name: str = "Memmap-Source",
        *,
        array: Array | None = None,
        partial: Unfinished | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.metadata = dict(metadata or {})
        self._address = address
        self._array = array
        self._map = _map_of(array)
        self._partial = partial
        self._stamp = stamp(address.path)
        self.unit = (1,) * len(address.shape)

    ndim = property(source_ndim)
    size = property(source_size)
    __len__ = source_len
    __array__ = source_array
    __repr__ = source_text
    info = source_info

    @property
    def array(self) -> Array:
        """The voxels, mapped from the file: once in each process, when first asked for."""
        if self._array is None:
            self._array = self._address.map()
            self._map = _map_of(self._array)
        return self._array

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return self._address.shape

    @property
    def dtype(self) -> DType:
        """Type of a voxel."""
        return self._address.dtype

    @property
    def order(self) -> Order:
        """Memory order."""
        return self._address.order

    @property
    def location(self) -> str:
        """Absolute path, without symbolic links."""
        return self._address.path

    @property
    def extent(self) -> Extent:
        """The bytes of the file that it occupies."""
        return self._address.extent

    @property
    def writable(self) -> bool:
        """Whether writing is permitted."""
        return self._address.writable

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region, in `out` if given.

        Raises
        ------
        SourceError
            If the file has become too short.
        """
        array = self.array
        self._check_mapped()
        return take(array, region, self.order, out)

    def write(self, region: Region, array: Array) -> None:
        """Write an array of the region's shape, cast as NumPy assignment casts.

        Raises
        ------
        SinkError
            If it was not opened for writing.
        SourceError
            If the file has become too short.
        """
        if not self.writable:
            raise SinkError(f"{self.location} was opened read-only; pass its path as the sink")
        mapped = self.array
        self._check_mapped()
        put(mapped, region, array)

    def reserve(self) -> None:
        """Take room on the disk for voxels in holes of the file, as programs leave them.

        Raises
        ------
        SinkError
            If there is none. Writing to the map of a hole kills the process on a full disk.
        """
        address = self._address
        try:
            fd = os.open(address.path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
            try:
                status = os.fstat(fd)
                if getattr(status, "st_blocks", status.st_size) * 512 < status.st_size:
                    preallocate(fd, address.nbytes, address.offset)
            finally:
                os.close(fd)
        except OSError as error:
            raise SinkError(
                error.errno,
                f"cannot write into {address.path}: {error.strerror} (it has holes, and its voxels "
                f"need {format_bytes(address.nbytes)})",
            ) from error

    def sync(self) -> None:
        """Make what any process wrote to the file durable.

        Raises
        ------
        SinkError
            If the disk reports an error. It may be reported once only: do not try again.
        """
        try:
            if self._map is not None:
                self._map.flush()
            sync_path(self.location)
        except OSError as error:
            raise SinkError(
                error.errno, f"cannot make {self.location} durable: {error.strerror}"
            ) from error

    def finish(self) -> None:
        """Move a new file to its final name; it is durable only if `sync` came before."""
        if self._partial is not None:
            partial, self._partial = self._partial, None
            partial.rename()
            self._address = replace(self._address, path=partial.final)

    def abort(self) -> None:
        """Remove a new file that was not finished."""
        if self._partial is not None:
            partial, self._partial = self._partial, None
            partial.remove()

    def for_writing(self) -> "MappedSource":
        """Return this source as a sink.

        Raises
        ------
        SinkError
            If neither it nor the array it was made from is writable.
        """
        if self.writable:
            return self
        if self._array is None or not self._array.flags.writeable:
            raise SinkError(f"{self.location} was opened read-only; pass its path as the sink")
        address = replace(self._address, writable=True)
        return MappedSource(address, self.name, array=self._array, metadata=self.metadata)

    def verify(self) -> None:
        """Check that the file is what it was when this source was made.

        Raises
        ------
        SourceError
            If its size or time of change differ, or it was replaced.
        """
        check_unchanged(self.location, self._stamp)

    def __getitem__(self, slicing: Any) -> Any:
        return self.array[slicing]

    def __setitem__(self, slicing: Any, value: Any) -> None:
        self.array[slicing] = value

    def __reduce__(self) -> Any:
        return _mapped, (self._address, self.name, self.metadata)

    def _check_mapped(self) -> None:
        """Refuse a file that was truncated: touching the map beyond its end kills the process."""
        end = self._address.offset + self._address.nbytes
        if self._map is not None and self._map.size() < end:
            raise SourceError(
                f"{self.location} shrank while mapped, from {end} bytes or more to "
                f"{self._map.size()}; write files anew instead of changing them"
            )


def new_file(
    final: str,
    header: bytes,
    shape: tuple[int, ...],
    dtype: DType,
    order: Order,
    *,
    overwrite: bool,
    name: str = "Memmap-Source",
) -> MappedSource:
    """Create a file of a header and voxels, preallocated, under its partial name.

    Raises
    ------
    SinkError
        If it cannot be created, there is no room for it, or another run is writing it.
    """
    nbytes = len(header) + prod(shape) * dtype.itemsize
    check_room(final, nbytes)
    partial = create_partial(final, nbytes, header, overwrite=overwrite)
    address = Address(
        partial.path, partial.file, len(header), tuple(shape), dtype, order, writable=True
    )
    return MappedSource(address, name, partial=partial)


def _map_of(array: Array | None) -> mmap.mmap | None:
    root: Any = array
    while isinstance(root, np.ndarray):
        root = root.base
    return root if isinstance(root, mmap.mmap) else None


def _mapped(address: Address, name: str, metadata: dict[str, Any]) -> MappedSource:
    """Return the source that another process sent."""
    return MappedSource(address, name, metadata=metadata)
