"""Datasets of HDF5 files that h5py reads and writes, each file opened once in a process.

Touches local files. Chunks that gzip compressed are inflated here, beside the lock of the library
(1.7 times as fast in two threads, 0.9 times in one), and never to more than their size.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np

from gpublocks.contracts import Array, DType, Extent, Order, Reach
from gpublocks.errors import ArgumentTypeError, PlanError, SinkError, SourceError
from gpublocks.formats.files.partial import sync_path
from gpublocks.formats.files.paths import check_unchanged, stamp
from gpublocks.formats.files.picking import source_getitem, source_setitem
from gpublocks.formats.files.room import check_room
from gpublocks.formats.hdf5 import deflating
from gpublocks.formats.hdf5.datasets import (
    Place,
    boxes,
    find,
    locked,
    named,
    open_file,
    place_of,
    reading,
    reason,
    writing,
)
from gpublocks.geometry import Region
from gpublocks.voxels import (
    source_array,
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
)

__all__ = ["DatasetSource"]

_LATER_BYTES = 32 << 20
"""Room for what HDF5 writes beside the voxels, and writes late."""


class DatasetSource:
    """A dataset that is read and written through h5py. Pickles to its path and name.

    HDF5 has one writer: as a sink it is written by this process alone, and the file is open during
    each write only. If the process is killed in the midst of one, **the file may be corrupt**: all
    that it holds, not this dataset alone. Where that matters, use a new file, or a dataset without
    chunks.

    Parameters
    ----------
    place : Place
    writable : bool
        Whether it may be written.
    dataset : h5py.Dataset, optional
        The object itself, where other processes would not see the same voxels.
    """

    __slots__ = (
        "__weakref__",
        "_given",
        "_opened",
        "_place",
        "_seen",
        "_stamp",
        "unit",
        "writable",
    )

    name = "Hdf5-Source"
    order: Order = "C"
    single_writer = True

    def __init__(self, place: Place, writable: bool = False, dataset: Any = None) -> None:
        self._place = place
        self._given = dataset
        self._opened: Any = None
        self._seen: Any = None
        self._stamp = stamp(place.path)
        self.unit = place.chunks or (1,) * len(place.shape)
        self.writable = writable
        if writable:
            _sinks.add(self)

    ndim = property(source_ndim)
    size = property(source_size)
    __len__ = source_len
    __array__ = source_array
    __repr__ = source_text
    info = source_info
    __getitem__ = source_getitem
    __setitem__ = source_setitem

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return self._place.shape

    @property
    def dtype(self) -> DType:
        """Type of a voxel."""
        return self._place.dtype

    @property
    def location(self) -> str | None:
        """Absolute path of the file, without symbolic links; None if it is in memory."""
        return None if self._stamp is None else self._place.path

    @property
    def reach(self) -> Reach:
        """Any process of this machine; this one alone where it has a sink in the file."""
        alone = self._given is not None or any(s._place.file == self._place.file for s in _sinks)
        return Reach.PROCESS if alone else Reach.MACHINE

    @property
    def extent(self) -> Extent:
        """The whole file: nothing tells which bytes of it HDF5 will use."""
        kind = "object" if self._stamp is None else "file"
        return Extent((kind, *self._place.file), 0, 1 << 63)

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region, in `out` if given.

        Raises
        ------
        SourceError
            If the file, or a chunk of it, cannot be read.
        PlanError
            If the region leaves the dataset, or is not of the shape of `out`.
        """
        if not Region.whole(self.shape).contains(region):
            raise PlanError(f"region {region.start} to {region.stop} leaves {self!r}")
        if out is None:
            out = np.empty(region.shape, self.dtype)
        if out.shape != region.shape:
            raise PlanError(
                f"region {region.start} to {region.stop} does not fit an array of shape {out.shape}"
            )
        if not region.size:
            return out
        chunks = self._place.chunks
        with reading(self._place.path):
            if chunks is None or self._place.filters is None:
                self._read_by_library(region, out)
            else:
                for box in boxes(region, chunks):
                    part = box.common(region)
                    self._read_chunk(box, part, out[part.within(region).slices])
        return out

    def write(self, region: Region, array: Array) -> None:
        """Write an array of the region's shape, cast as NumPy assignment casts.

        Raises
        ------
        SinkError
            If it was not opened for writing, there is no room, or the disk reports an error.
        PlanError
            If the shapes differ, or the region leaves the dataset.
        """
        if not self.writable:
            raise SinkError(f"{self._place} was opened read-only; pass its path as the sink")
        if array.shape != region.shape or not Region.whole(self.shape).contains(region):
            raise PlanError(
                f"an array of shape {array.shape} does not fit region {region.start} to "
                f"{region.stop} of {self!r}"
            )
        if not region.size:
            return
        # HDF5 casts otherwise than NumPy, and does not survive a full disk.
        voxels = np.asarray(array).astype(self.dtype, copy=False)
        if self._stamp is not None:
            check_room(self._place.path, voxels.nbytes + _LATER_BYTES)
        _sinks.add(self)
        try:
            with locked(), self._for_writing() as dataset:
                dataset[region.slices] = voxels
        except Exception as error:
            raise SinkError(f"cannot write {self._place}: {reason(error)}") from error

    def encoding_bytes(self, unit: tuple[int, ...], itemsize: int) -> int:
        """Return what a writer takes: a chunk before it is encoded, and after."""
        return 2 * prod(unit) * itemsize

    def sync(self) -> None:
        """Make what was written durable.

        Raises
        ------
        SinkError
            If the disk reports an error.
        """
        try:
            if self._given is not None:
                with locked():
                    self._given.file.flush()
            if self._stamp is not None:
                sync_path(self._place.path)
        except Exception as error:
            raise SinkError(f"cannot make {self._place} durable: {reason(error)}") from error

    def finish(self) -> None:
        """Let other processes read the file again, until the next write."""
        _sinks.discard(self)

    def abort(self) -> None:
        """Let other processes read the file again: the dataset was there before."""
        _sinks.discard(self)

    def verify(self) -> None:
        """Check that the file is what it was when this source was made.

        Raises
        ------
        SourceError
            If its size or time of change differ, or it was replaced.
        """
        if self._given is None:
            check_unchanged(self._place.path, self._stamp)

    def __reduce__(self) -> Any:
        if self.reach < Reach.MACHINE:
            raise ArgumentTypeError(
                f"{self!r} is open for writing in this process and does not travel to others; "
                "use a sink in another file, or executor='threads'"
            )
        return DatasetSource, (self._place,)

    def _dataset(self) -> Any:
        """Return the dataset, open for reading. With the lock held."""
        if self._given is not None:
            if not self._given:
                raise SourceError(f"the file of {self._place} was closed; give its path instead")
            return self._given
        if not self._opened:
            with named(str(self._place)):
                self._opened = self._found_in(open_file(self._place.path))
        return self._opened

    @contextmanager
    def _for_writing(self) -> Iterator[Any]:
        if self._given is not None:
            yield self._dataset()
            return
        with writing(self._place.path) as file:
            yield self._found_in(file)

    def _found_in(self, file: Any) -> Any:
        seen = stamp(self._place.path)
        if seen == self._seen:
            return file[self._place.dataset]
        found = find(file, self._place.dataset)
        if place_of(found, self._place.path) != self._place:
            raise SourceError(f"{self._place} was replaced by another one; start again")
        self._seen = seen
        return found

    def _read_by_library(self, region: Region, out: Array) -> None:
        direct = out.flags.c_contiguous and out.dtype == self.dtype
        voxels = out if direct else np.empty(region.shape, self.dtype)
        try:
            with locked():
                self._dataset().read_direct(voxels, region.slices)
        except (SourceError, MemoryError):
            raise
        except Exception as error:
            raise SourceError(
                f"{self._place}{self._damaged(region)} cannot be read: {reason(error)}"
            ) from error
        if not direct:
            np.copyto(out, voxels, casting="unsafe")

    def _damaged(self, region: Region) -> str:
        """Return which chunk of a region HDF5 cannot read, for messages."""
        for box in boxes(region, self._place.chunks) if self._place.chunks else ():
            try:
                with locked():
                    self._dataset()[box.start]
            except Exception:
                return f", chunk {box.start},"
        return ""

    def _is_written(self, box: Region) -> bool:
        """Tell whether there is a chunk, or none can be found for damage."""
        try:
            with locked():
                return bool(self._dataset().id.get_chunk_info_by_coord(box.start).size)
        except Exception:  # HDF5 raises whatever it stumbles on.
            return True

    def _read_chunk(self, box: Region, part: Region, out: Array) -> None:
        """Read a part of a chunk."""
        nbytes = box.size * self.dtype.itemsize
        # Room for what could not be compressed, and takes a little more.
        data = np.empty(nbytes + nbytes // 64 + 1024, np.uint8)
        where = f"{self._place}, chunk {box.start},"
        try:
            with locked():
                skipped, stored = self._dataset().id.read_direct_chunk(box.start, out=data)
        except (SourceError, MemoryError):
            raise
        except Exception as error:
            if self._is_written(box):
                raise SourceError(f"{where} cannot be read: {reason(error)}") from error
            # Voxels that nobody wrote.
            self._read_by_library(part, out)
            return
        filters = self._place.filters or ()
        try:
            found = deflating.inflated(stored, filters, skipped, nbytes, self.dtype.itemsize)
        except ValueError as error:
            # Files may say that chunks beyond the border are not compressed.
            if len(stored) != nbytes or Region.whole(self.shape).contains(box):
                raise SourceError(f"{where} is damaged: {error}") from error
            found = stored
        voxels = np.frombuffer(found, self.dtype).reshape(box.shape)
        np.copyto(out, voxels[part.within(box).slices], casting="unsafe")


_sinks: "weakref.WeakSet[DatasetSource]" = weakref.WeakSet()
"""Those of this process. Others would read their files in between two states."""
