"""New HDF5 files of one dataset: the bytes before its voxels, and chunks packed in threads.

Touches local files.
"""

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from math import prod
from typing import Any

from gpublocks.contracts import Array, DType
from gpublocks.formats.files.room import check_room
from gpublocks.formats.hdf5 import deflating
from gpublocks.formats.hdf5.datasets import boxes, h5py_library
from gpublocks.geometry import Region
from gpublocks.machine import cpu_count

__all__ = ["ahead", "chunk_shape", "file_start", "write_chunks"]

_CHUNK_BYTES = 1 << 20
"""As much as HDF5 1 keeps in memory of a dataset."""
_VERSIONS = ("earliest", "v110")
"""For any program. Files of the newest version cannot be opened again after a kill."""


def chunk_shape(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return the shape of chunks of at most a megabyte.

    Examples
    --------
    >>> chunk_shape((100, 2000, 2000), 2)
    (100, 63, 63)
    """
    lengths = list(shape)
    while prod(lengths) * itemsize > _CHUNK_BYTES:
        longest = lengths.index(max(lengths))
        lengths[longest] = -(-lengths[longest] // 2)
    return tuple(lengths)


def ahead(
    function: Callable[[Region], Any], regions: Iterator[Region]
) -> Iterator[tuple[Region, Any]]:
    """Yield regions in order and what a function makes of each, in threads that are a few ahead."""
    workers = cpu_count()
    under_way: deque[tuple[Region, Future[Any]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for region in regions:
            under_way.append((region, pool.submit(function, region)))
            if len(under_way) > 2 * workers:
                first, future = under_way.popleft()
                yield first, future.result()
        for region, future in under_way:
            yield region, future.result()


def file_start(dataset: str, shape: tuple[int, ...], dtype: DType) -> bytes:
    """Return the bytes of an HDF5 file before the voxels of its only dataset, which end it."""
    file = _Start()
    aligned = {"alignment_threshold": 1 << 16, "alignment_interval": 1 << 12}
    with h5py_library().File(file, "w", libver=_VERSIONS, **aligned) as hdf5:
        created = hdf5.create_dataset(dataset, shape, dtype)
        if prod(shape):
            # HDF5 takes room for voxels when the first one is written: behind all that describes
            # them, which is complete by then.
            created[(0,) * len(shape)] = 0
        offset = created.id.get_offset()
    end = file.size if offset is None else int(offset)
    return bytes(file.data[:end]).ljust(end, b"\0")


def write_chunks(
    path: str,
    dataset: str,
    array: Array,
    chunks: tuple[int, ...],
    compression: str | None,
) -> None:
    """Write voxels to a new file, chunk by chunk."""
    h5py = h5py_library()
    with h5py.File(path, "w", libver=_VERSIONS) as file:
        file.create_dataset(
            dataset,
            array.shape,
            array.dtype,
            chunks=chunks,
            compression=compression,
            shuffle=compression is not None,
        )
    _reserve(path, array, chunks)
    found = boxes(Region.whole(array.shape), chunks)
    with h5py.File(path, "r+") as file:
        created = file[dataset]
        if compression == "gzip":
            for box, data in ahead(partial(_deflated, array, chunks), found):
                created.id.write_direct_chunk(box.start, data)
        else:
            for box in found:
                created[box.slices] = array[box.slices]


def _deflated(array: Array, chunks: tuple[int, ...], box: Region) -> bytes:
    return deflating.deflated(array[box.slices], chunks)


def _reserve(path: str, array: Array, chunks: tuple[int, ...]) -> None:
    """Take room for a file before HDF5 writes to it, which gives back what it does not need.

    On a full disk HDF5 cannot close the file, and crashes when the interpreter ends.
    """
    count = prod([-(-length // n) for length, n in zip(array.shape, chunks, strict=True)])
    stored = prod(chunks) * array.itemsize
    indexed = 64 + 32 * (array.ndim + 2)
    nbytes = (1 << 20) + count * (stored + stored // 64 + indexed)
    check_room(path, nbytes)
    if not hasattr(os, "posix_fallocate"):
        return
    fd = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(fd, 0, nbytes)
    except OSError as error:
        # File systems that copy on write (ZFS) cannot reserve.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(fd)


class _Start:
    """A file in memory that keeps what is written to it, and not what lies between or behind."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.size = 0
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go somewhere."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return where it is."""
        return self._position

    def write(self, data: Any) -> int:
        """Write here."""
        start, stop = self._position, self._position + len(data)
        self.data.extend(bytes(max(0, stop - len(self.data))))
        self.data[start:stop] = data
        self.size = max(self.size, stop)
        self._position = stop
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """Return what was written from here on."""
        found = bytes(self.data[self._position :][: None if size < 0 else size])
        self._position += len(found)
        return found

    def readinto(self, data: Any) -> int:
        """Copy what was written from here on."""
        found = self.read(len(data))
        data[: len(found)] = found
        return len(found)

    def truncate(self, size: int) -> int:
        """Set where it ends."""
        self.size = size
        return size

    def flush(self) -> None:
        """Do nothing."""
