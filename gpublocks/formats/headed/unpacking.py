"""Compressed voxels in local files: unpacked once, into a file without a name, and mapped there.

Touches local files.
"""

import errno
import mmap
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

from gpublocks.budget import format_bytes
from gpublocks.contracts import Array, DType, Extent, Order, Reach
from gpublocks.errors import SinkError, SourceError
from gpublocks.formats.files.compressed import Codec, pieces
from gpublocks.formats.files.mapping import Address, MappedSource
from gpublocks.formats.files.paths import check_length, check_unchanged, stamp
from gpublocks.geometry import Region
from gpublocks.voxels import (
    array_at,
    source_array,
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
    take,
)

__all__ = ["Packed", "UnpackedSource", "open_voxels"]

_TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True)
class Packed:
    """Where compressed voxels are found in a file.

    Parameters
    ----------
    path : str
        Absolute, without symbolic links.
    file : (int, int)
        Device and inode.
    offset : int
        Where in the file the compressed stream begins, in bytes.
    codec : {'gzip', 'bz2', 'zlib'}
    skip : int
        Bytes of the unpacked stream before the voxels.
    shape : tuple of int
    dtype : dtype
    order : {'C', 'F'}
    """

    path: str
    file: tuple[int, int]
    offset: int
    codec: Codec
    skip: int
    shape: tuple[int, ...]
    dtype: DType
    order: Order

    @property
    def nbytes(self) -> int:
        """Bytes of voxels, as the header promises them."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class _Unpacked:
    """Where the unpacked voxels are found: a descriptor of the process that unpacked them.

    They are followed by a random token. Numbers of processes, descriptors and files are used again
    and again, and what is found under them must not be taken for these voxels.
    """

    pid: int
    fd: int
    token: bytes

    def map(self, nbytes: int) -> mmap.mmap | None:
        """Map them; None if that process is gone, or has closed them."""
        length = nbytes + len(self.token)
        try:
            fd = os.open(f"/proc/{self.pid}/fd/{self.fd}", os.O_RDONLY)
        except OSError:
            return None
        try:
            if os.fstat(fd).st_size != length:
                return None
            buffer = mmap.mmap(fd, length, access=mmap.ACCESS_READ)
        finally:
            os.close(fd)
        return buffer if buffer[nbytes:] == self.token else None


class UnpackedSource:
    """An array in a compressed file, which is unpacked when voxels are first asked for.

    They are in a temporary file without a name, which is gone with the last process that uses
    it, however that ends. The processes of a run share it, and it pickles to its address; where it
    is gone by then, the receiver unpacks the file again.

    Parameters
    ----------
    packed : Packed
        Where the compressed voxels are.
    name : str
        Kind of source, as shown in its repr.
    metadata : mapping
        What the file says of the voxels beside their shape and type.
    """

    __slots__ = ("__weakref__", "_array", "_packed", "_stamp", "_unpacked", "metadata", "name")

    reach = Reach.MACHINE
    writable = False
    single_writer = False

    def __init__(self, packed: Packed, name: str, metadata: Mapping[str, Any]) -> None:
        self.name = name
        self.metadata = dict(metadata)
        self._packed = packed
        self._stamp = stamp(packed.path)
        self._unpacked: _Unpacked | None = None
        self._array: Array | None = None

    ndim = property(source_ndim)
    size = property(source_size)
    __len__ = source_len
    __array__ = source_array
    __repr__ = source_text
    info = source_info

    @property
    def array(self) -> Array:
        """The voxels, unpacked when first asked for."""
        if self._array is None:
            with _lock:
                if self._array is None:
                    self._array = self._map()
        return self._array

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return self._packed.shape

    @property
    def dtype(self) -> DType:
        """Type of a voxel."""
        return self._packed.dtype

    @property
    def order(self) -> Order:
        """Memory order."""
        return self._packed.order

    @property
    def unit(self) -> tuple[int, ...]:
        """Ones: voxels stand alone once they are unpacked."""
        return (1,) * len(self.shape)

    @property
    def location(self) -> str:
        """Absolute path of the compressed file, without symbolic links."""
        return self._packed.path

    @property
    def extent(self) -> Extent:
        """The whole compressed file."""
        return Extent(("file", *self._packed.file), 0, 1 << 63)

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region, in `out` if given.

        Raises
        ------
        SourceError
            If the file is damaged, unpacks to more or less than its header promises, or there is
            no room to unpack it.
        """
        return take(self.array, region, self.order, out)

    def verify(self) -> None:
        """Check that the compressed file is what it was when this source was made.

        Raises
        ------
        SourceError
            If its size or time of change differ, or it was replaced.
        """
        check_unchanged(self.location, self._stamp)

    def __getitem__(self, slicing: Any) -> Any:
        return self.array[slicing]

    def __reduce__(self) -> Any:
        # What is wrong with the file is told where it is read.
        with suppress(SourceError):
            _ = self.array
        return _received, (self._packed, self.name, self.metadata, self._unpacked)

    def _map(self) -> Array:
        packed = self._packed
        buffer = None if self._unpacked is None else self._unpacked.map(packed.nbytes)
        if buffer is None:
            token = os.urandom(_TOKEN_BYTES)
            fd = _unpack(packed, token)
            buffer = mmap.mmap(fd, packed.nbytes + len(token), access=mmap.ACCESS_READ)
            weakref.finalize(buffer, os.close, fd)
            self._unpacked = _Unpacked(os.getpid(), fd, token)
        return array_at(buffer, 0, packed.shape, packed.dtype, packed.order)


def open_voxels(
    location: str,
    path: str,
    status: os.stat_result,
    *,
    offset: int,
    shape: tuple[int, ...],
    dtype: DType,
    order: Order = "F",
    codec: Codec | None = None,
    skip: int = 0,
    writable: bool,
    name: str,
    metadata: Mapping[str, Any],
) -> "MappedSource | UnpackedSource":
    """Return the source of voxels that a header describes.

    Parameters
    ----------
    location : str
        Of the file that was asked for, for messages.
    path : str
        Of the file that holds the voxels: absolute, without symbolic links.
    status : os.stat_result
        Of that file.
    offset : int
        Where in it the voxels, or the compressed stream, begin.
    codec : {'gzip', 'bz2', 'zlib'}, optional
        How they are compressed.
    skip : int
        Bytes of the unpacked stream before the voxels.

    Raises
    ------
    SourceError
        If the file is too short.
    SinkError
        If compressed voxels are to be written.
    """
    found = (status.st_dev, status.st_ino)
    if codec is None:
        address = Address(path, found, offset, shape, dtype, order, writable)
        check_length(path, status.st_size, offset, address.nbytes)
        return MappedSource(address, name, metadata=metadata)
    if writable:
        raise SinkError(
            f"{location} is compressed, which cannot be written in place; give a new file as sink"
        )
    return UnpackedSource(
        Packed(path, found, offset, codec, skip, shape, dtype, order), name, metadata
    )


def _received(
    packed: Packed, name: str, metadata: dict[str, Any], unpacked: _Unpacked | None
) -> UnpackedSource:
    """Return the source that another process sent."""
    source = UnpackedSource(packed, name, metadata)
    source._unpacked = unpacked
    return source


def _unpack(packed: Packed, token: bytes) -> int:
    """Return the descriptor of a new file without a name that holds the voxels and a token."""
    folder = _folder()
    free = shutil.disk_usage(folder).free
    if packed.nbytes > free:
        raise SourceError(
            errno.ENOSPC,
            f"{packed.path} unpacks to {format_bytes(packed.nbytes)}, {folder} has "
            f"{format_bytes(free)} free; set TMPDIR to a folder with more",
        )
    try:
        with (
            open(packed.path, "rb") as file,
            tempfile.TemporaryFile(prefix="gpublocks-", dir=folder) as target,
        ):
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) != packed.file:
                raise SourceError(f"{packed.path} was replaced by another file; start again")
            file.seek(packed.offset)
            _copy(packed, file, target)
            target.write(token)
            target.flush()
            return os.dup(target.fileno())
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(
            error.errno, f"cannot unpack {packed.path} in {folder}: {error.strerror}"
        ) from error


def _copy(packed: Packed, file: BinaryIO, target: Any) -> None:
    """Unpack the voxels from one file to another; what is beyond them ends it."""
    skip, left = packed.skip, packed.nbytes
    for piece in pieces(file, packed.codec):
        part = memoryview(piece)[min(skip, len(piece)) :]
        skip -= len(piece) - len(part)
        if len(part) > left:
            raise SourceError(
                f"{packed.path} unpacks to more than the {packed.nbytes} bytes that its header "
                "promises; it is damaged, or made to fill disks"
            )
        target.write(part)
        left -= len(part)
    if left:
        raise SourceError(
            f"{packed.path} holds {packed.nbytes - left} of {packed.nbytes} data bytes (truncated)"
        )


def _folder() -> str:
    """Return where large temporary files belong: ``/tmp`` is in memory on many systems."""
    folder = tempfile.gettempdir()
    if folder == "/tmp" and os.access("/var/tmp", os.W_OK | os.X_OK):
        return "/var/tmp"
    return folder


_lock = threading.Lock()
"""Held while a file is unpacked, so that threads that want one file do not unpack it each."""


def _renew_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    # A thread that unpacks does not exist in a child, and would never release its lock there.
    os.register_at_fork(after_in_child=_renew_lock)
