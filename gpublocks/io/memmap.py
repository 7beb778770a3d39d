"""NPY files and other plain arrays on disk, mapped into memory. Touches local files."""

import errno
import mmap
import os
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from math import prod
from typing import Any, BinaryIO

import numpy as np

from gpublocks.budget import format_bytes
from gpublocks.contracts import Array, DType, Extent, Order, Reach
from gpublocks.errors import ArgumentTypeError, SinkError, SourceError
from gpublocks.geometry import Region
from gpublocks.partial import Partial, check_target, create_partial, partial_path
from gpublocks.voxels import (
    byte_range,
    memory_order,
    put,
    source_array,
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
    take,
)

__all__ = ["Address", "Mapped", "Sink", "Source", "find"]


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
                _check_length(self.path, status.st_size, self.offset, self.nbytes)
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


@dataclass(frozen=True, slots=True)
class Mapped:
    """What is known of an array in memory that is mapped from a file.

    Parameters
    ----------
    extent : Extent
        The bytes of the file that it shows.
    address : Address or None
        For other processes to map it; None where they would not see the same voxels.
    """

    extent: Extent
    address: Address | None


def find(array: Array) -> Mapped | None:
    """Return which bytes of which file an array shows: a `numpy.memmap` or any view of one.

    None if it shows no file, or one that has no name any more.
    """
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    path = getattr(root, "filename", None)
    if not isinstance(root, np.memmap) or not isinstance(root.base, mmap.mmap) or path is None:
        return None
    path = os.path.realpath(path)
    start, stop = byte_range(array)
    if not os.path.isfile(path) or _is_deleted(root.__array_interface__["data"][0]):
        return None
    status = os.stat(path)
    file = (status.st_dev, status.st_ino)
    shift = root.offset - root.__array_interface__["data"][0] if array.size else 0
    extent = Extent(("file", *file), start + shift, stop + shift)
    if root.mode == "c" or not array.flags.forc:
        return Mapped(extent, None)
    order = memory_order(array)
    return Mapped(extent, Address(path, file, extent.start, array.shape, array.dtype, order))


class Source:
    """An array in a file, mapped into memory. Pickles to its address.

    Parameters
    ----------
    location : path or Address
        An NPY file, or where in a file the voxels are.
    writable : bool
        Whether an NPY file is opened for writing.
    array : ndarray, optional
        The voxels, if they are mapped already.
    partial : Partial, optional
        The file under way, if it is new.

    Raises
    ------
    SourceError
        If the file is missing, damaged, or not a plain NPY file.
    """

    __slots__ = ("__weakref__", "_address", "_array", "_map", "_partial", "_stamp", "unit")

    name = "Memmap-Source"
    reach = Reach.MACHINE
    single_writer = False

    def __init__(
        self,
        location: str | os.PathLike[str] | Address,
        writable: bool = False,
        *,
        array: Array | None = None,
        partial: Partial | None = None,
    ) -> None:
        if not isinstance(location, Address):
            location = _read_address(os.fspath(location), writable)
        self._address = location
        self._array = array
        self._map = _map_of(array)
        self._partial = partial
        self._stamp = _stamp(location.path)
        self.unit = (1,) * len(location.shape)

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
            fd = os.open(self.location, os.O_RDWR)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
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

    def for_writing(self) -> "Source":
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
        return Source(replace(self._address, writable=True), array=self._array)

    def verify(self) -> None:
        """Check that the file is what it was when this source was made.

        Raises
        ------
        SourceError
            If its size or time of change differ, or it was replaced.
        """
        if _stamp(self.location) != self._stamp:
            raise SourceError(
                f"{self.location} changed (time, size or file) since it was opened; "
                "results computed from it are not of one state"
            )

    def __getitem__(self, slicing: Any) -> Any:
        return self.array[slicing]

    def __setitem__(self, slicing: Any, value: Any) -> None:
        self.array[slicing] = value

    def __reduce__(self) -> Any:
        return Source, (self._address,)

    def _check_mapped(self) -> None:
        """Refuse a file that was truncated: touching the map beyond its end kills the process."""
        end = self._address.offset + self._address.nbytes
        if self._map is not None and self._map.size() < end:
            raise SourceError(
                f"{self.location} shrank while mapped, from {end} bytes or more to "
                f"{self._map.size()}; write files anew instead of changing them"
            )


@dataclass(frozen=True, slots=True)
class Sink:
    """An NPY file that will be created when its shape and type are known.

    Until it is finished the file is called ``<name>.partial``.

    Parameters
    ----------
    location : path
    overwrite : bool
        Whether a file of that name may be replaced.
    """

    location: str
    overwrite: bool = False

    def __init__(self, location: str | os.PathLike[str], overwrite: bool = False) -> None:
        path = os.fspath(location)
        if "\0" in path:
            raise SinkError(errno.EINVAL, f"the path {path!r} holds a NUL character")
        folder, name = os.path.split(os.path.abspath(path))
        object.__setattr__(self, "location", os.path.join(os.path.realpath(folder), name))
        object.__setattr__(self, "overwrite", overwrite)

    def check(self) -> None:
        """Raise `SinkError` if the file cannot be created. Creates nothing."""
        check_target(self.location, overwrite=self.overwrite)

    def create(self, shape: tuple[int, ...], dtype: DType, order: Order) -> Source:
        """Create the file, preallocated, under its partial name.

        Raises
        ------
        SinkError
            If it cannot be created, there is no room for it, or another run is writing it.
        ArgumentTypeError
            If `dtype` holds objects.
        """
        self.check()
        dtype = np.dtype(dtype)
        header = _header(shape, dtype, order)
        nbytes = len(header) + prod(shape) * dtype.itemsize
        self._check_room(nbytes)
        partial = create_partial(self.location, nbytes, header, overwrite=self.overwrite)
        address = Address(
            partial.path, partial.file, len(header), tuple(shape), dtype, order, writable=True
        )
        return Source(address, partial=partial)

    def _check_room(self, nbytes: int) -> None:
        folder = os.path.dirname(self.location)
        free = shutil.disk_usage(folder).free
        with suppress(FileNotFoundError):
            free += os.stat(partial_path(self.location)).st_size
        if nbytes > free:
            raise SinkError(
                errno.ENOSPC,
                f"{self.location} needs {format_bytes(nbytes)}, "
                f"{folder} has {format_bytes(free)} free",
            )
        limit = _file_size_limit()
        if limit is not None and nbytes > limit:
            raise SinkError(
                errno.EFBIG,
                f"{self.location} needs {format_bytes(nbytes)}, above the limit for files of this "
                f"process (RLIMIT_FSIZE {format_bytes(limit)}); raise it with ulimit -f",
            )


def _read_address(location: str, writable: bool) -> Address:
    """Return where the voxels of an NPY file are."""
    try:
        path = os.path.realpath(location)
        status = os.stat(path)
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise SourceError(errno.ENOENT, f"no such file: {location!r}") from error
        raise SourceError(errno.EINVAL, f"cannot open {location!r}: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
        raise SourceError(errno.EINVAL, f"{location} is {kind}; give an NPY file")
    if writable and not os.access(path, os.W_OK):
        raise SinkError(errno.EACCES, f"cannot write {location}: Permission denied")
    try:
        with open(path, "rb") as file:
            shape, order, dtype = _read_header(file, location)
            offset = file.tell()
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(error.errno, f"cannot read {location}: {error.strerror}") from error
    found = (status.st_dev, status.st_ino)
    address = Address(path, found, offset, shape, dtype, order, writable)
    _check_length(location, status.st_size, offset, address.nbytes)
    return address


def _read_header(file: BinaryIO, location: str) -> tuple[tuple[int, ...], Order, DType]:
    start = file.read(8)
    file.seek(0)
    if start.startswith(b"PK\x03\x04"):
        raise SourceError(f"{location} is an archive; extract it and give one of its NPY files")
    if not start.startswith(b"\x93NUMPY"):
        what = f"starts with {start!r}" if start else "is empty"
        raise SourceError(f"{location} is not an NPY file ({what})")
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"version {version[0]}.{version[1]} is not supported; save it anew")
        if min(shape, default=0) < 0:
            raise ValueError(f"the shape is {shape}")
    except Exception as error:  # Damaged headers raise what the tokenizer and the parser do, too.
        reason = str(error).partition("\n")[0]
        raise SourceError(f"{location} has no usable NPY header: {reason}") from error
    if dtype.hasobject:
        raise SourceError(f"{location} holds Python objects; object arrays are refused for safety")
    if not shape:
        raise SourceError(f"{location} holds a scalar (0 axes); give an array")
    return shape, "F" if fortran else "C", dtype


def _header(shape: tuple[int, ...], dtype: DType, order: Order) -> bytes:
    if dtype.hasobject:
        raise ArgumentTypeError(f"dtype {dtype} cannot be stored in an NPY file; use numbers")
    described = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": order == "F",
        "shape": tuple(shape),
    }
    file = BytesIO()
    np.lib.format.write_array_header_2_0(file, described)
    return file.getvalue()


def _check_length(location: str, length: int, offset: int, nbytes: int) -> None:
    if length < offset + nbytes:
        raise SourceError(
            f"{location} holds {max(length - offset, 0)} of {nbytes} data bytes (truncated)"
        )


def _file_size_limit() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _map_of(array: Array | None) -> mmap.mmap | None:
    root: Any = array
    while isinstance(root, np.ndarray):
        root = root.base
    return root if isinstance(root, mmap.mmap) else None


def _stamp(path: str) -> tuple[int, ...] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _is_deleted(address: int) -> bool:
    """Tell whether the file that is mapped at an address has lost its name (Linux)."""
    try:
        with open("/proc/self/maps") as maps:
            for line in maps:
                start, stop = line.split(" ", 1)[0].split("-")
                if int(start, 16) <= address < int(stop, 16):
                    return line.endswith(" (deleted)\n")
    except OSError:
        pass
    return False
