"""Datasets in HDF5 files, and those of h5py. Touches local files.

Numbers that are neither compressed nor cut into chunks are mapped into memory, read and written by
any process, without the library. All others are read and written by
`gpublocks.formats.hdf5.dataset_source`.
"""

import errno
import os
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np

from gpublocks.contracts import Array, DType, Order
from gpublocks.errors import ArgumentTypeError, PlanError, SinkError, SourceError
from gpublocks.formats.files.mapping import Address, MappedSource, new_file
from gpublocks.formats.files.packing import PackedSink
from gpublocks.formats.files.partial import check_target
from gpublocks.formats.files.paths import check_length, final_path, find_file
from gpublocks.formats.hdf5.dataset_files import ahead, chunk_shape, file_start, write_chunks
from gpublocks.formats.hdf5.dataset_source import DatasetSource
from gpublocks.formats.hdf5.datasets import (
    boxes,
    check_alone,
    find,
    h5py_library,
    is_plain,
    locked,
    named,
    only_array,
    open_file,
    place_of,
    reading,
    split_path,
)
from gpublocks.geometry import Region

__all__ = ["Sink", "Source", "wrap"]

_NAME = "Hdf5-Source"


def Source(  # noqa: N802
    location: str | os.PathLike[str], writable: bool = False
) -> MappedSource | DatasetSource:
    """Return a dataset in an HDF5 file.

    Parameters
    ----------
    location : path
        ``'data.h5:/group/dataset'``; ``'data.h5'`` if it holds one array of numbers only.
    writable : bool
        Whether the dataset is to be written. If it has chunks, it has one writer: see
        `DatasetSource` for what a kill does to the file then.

    Raises
    ------
    SourceError
        If the file is missing or damaged, has no such dataset or one that is no array of numbers,
        or if the path leads out of the file.
    SinkError
        If it must not be written.
    """
    given, name = split_path(os.fspath(location))
    path, _ = find_file(given, "an HDF5 file", writable=writable)
    with reading(path), locked(), named(path):
        file = open_file(path)
        try:
            dataset = find(file, name)
        except SourceError as error:
            if not writable or error.errno != errno.ENOENT:
                raise
            raise SinkError(
                f"{error.strerror}; nothing is added to files that exist: create the dataset with "
                "h5py, or give a new file"
            ) from error
        # What this process wrote, and HDF5 still keeps.
        file.flush()
        return _source(dataset, path, writable)


def wrap(x: Any) -> MappedSource | DatasetSource:
    """Return a dataset of h5py's as a source; of a group or file the only array that it holds.

    If its file was opened read-only, it travels to other processes as path and name. One that was
    opened for writing is read and written through the object itself, by this process.

    Raises
    ------
    ArgumentTypeError
        If it is something else.
    SourceError
        If its file was closed, or it is no array of numbers.
    """
    h5py = h5py_library()
    if not isinstance(x, h5py.Dataset | h5py.Group):
        raise ArgumentTypeError(f"a h5py {type(x).__name__} is no array; give the dataset itself")
    if not x:
        raise SourceError("the file of the h5py dataset was closed; give its path instead")
    with locked(), named("the object of h5py"):
        dataset = only_array(x) if isinstance(x, h5py.Group) else x
        file = dataset.file
        on_disk = file.driver in ("sec2", "stdio", "windows") and os.path.isfile(file.filename)
        path = os.path.realpath(file.filename) if on_disk else file.filename
        if on_disk and file.mode == "r" and dataset.name is not None:
            return _source(dataset, path, writable=False)
        return DatasetSource(place_of(dataset, path), file.mode != "r", dataset)


@dataclass(frozen=True, slots=True)
class Sink:
    """A dataset in an HDF5 file that will be created when its shape and type are known.

    Without compression and chunks many processes write it at once, into ``<name>.partial``. Else
    voxels are written plainly first, into ``<name>.voxels.partial``, and packed when complete.

    Parameters
    ----------
    location : path
        ``'data.h5'``, or ``'data.h5:/group/dataset'``.
    dataset : str
        Name of the dataset, unless `location` has one.
    compression : {None, 'gzip', 'lzf'}
        Of chunks. Few programs beside h5py read 'lzf'.
    chunks : tuple of int, optional
        Shape of a chunk; by default, with compression, about a megabyte.
    overwrite : bool
        Whether a file of that name may be replaced, with all that it holds.

    Raises
    ------
    SinkError
        If that is no name, no compression, or no shape.
    """

    location: str
    dataset: str = "data"
    compression: str | None = None
    chunks: tuple[int, ...] | None = None
    overwrite: bool = False

    def __init__(
        self,
        location: str | os.PathLike[str],
        dataset: str = "data",
        compression: str | None = None,
        chunks: tuple[int, ...] | None = None,
        overwrite: bool = False,
    ) -> None:
        path, name = split_path(os.fspath(location))
        name = name or dataset
        parts = name.strip("/").split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise SinkError(f"the dataset is called {name!r}; use a name such as 'group/data'")
        if compression not in (None, "gzip", "lzf"):
            raise SinkError(f"compression is {compression!r}; use None, 'gzip' or 'lzf'")
        object.__setattr__(self, "location", final_path(path))
        object.__setattr__(self, "dataset", "/" + "/".join(parts))
        object.__setattr__(self, "compression", compression)
        object.__setattr__(self, "chunks", None if chunks is None else _lengths(chunks))
        object.__setattr__(self, "overwrite", overwrite)

    def check(self) -> None:
        """Raise `SinkError` if the file cannot be created. Creates nothing."""
        try:
            h5py_library()
        except SourceError as error:
            raise SinkError(str(error)) from error
        if os.path.isfile(self.location) and not self.overwrite:
            raise SinkError(
                errno.EEXIST,
                f"{self.location} exists; pass io.hdf5.Sink(path, overwrite=True) to replace all "
                "of it, or give a dataset that it holds",
            )
        check_target(self.location, overwrite=self.overwrite)

    def units(self, shape: tuple[int, ...], dtype: DType) -> list[tuple[int, ...]]:
        """Return ones: voxels stand alone, at least until they are packed."""
        self._chunks(shape, np.dtype(dtype))
        return [(1,) * len(shape)]

    def create(
        self,
        shape: tuple[int, ...],
        dtype: DType,
        order: Order,
        unit: tuple[int, ...] | None = None,
    ) -> MappedSource | PackedSink:
        """Create the file, preallocated, under a partial name. Its order is 'C', as HDF5 has it.

        Raises
        ------
        SinkError
            If it cannot be created, there is no room for it, or another run is writing it.
        ArgumentTypeError
            If `dtype` is not of numbers.
        PlanError
            If chunks are of another number of axes, or too large.
        """
        self.check()
        shape, dtype = tuple(shape), np.dtype(dtype)
        chunks = self._chunks(shape, dtype)
        if chunks is None:
            start = file_start(self.dataset, shape, dtype)
            return new_file(
                self.location, start, shape, dtype, "C", overwrite=self.overwrite, name=_NAME
            )
        return PackedSink(
            self.location,
            shape,
            dtype,
            "C",
            pack=partial(_pack, self.dataset, chunks, self.compression),
            name=_NAME,
            overwrite=self.overwrite,
            reserves=True,
        )

    def _chunks(self, shape: tuple[int, ...], dtype: DType) -> tuple[int, ...] | None:
        """Return the shape of chunks; None if there are none."""
        if dtype.kind not in "biufc":
            raise ArgumentTypeError(f"dtype {dtype} cannot be stored in an HDF5 file; use numbers")
        if self.chunks is not None and len(self.chunks) != len(shape):
            raise PlanError(
                f"chunks {self.chunks} have {len(self.chunks)} axes, the array {len(shape)}; "
                "give one length for each"
            )
        if not prod(shape) or (self.compression is None and self.chunks is None):
            return None
        chunks = tuple(map(min, self.chunks, shape)) if self.chunks is not None else None
        if chunks is not None and prod(chunks) * dtype.itemsize >= 1 << 32:
            raise PlanError(f"chunks {chunks} of {dtype} take 4 GB or more each; use smaller ones")
        return chunks or chunk_shape(shape, dtype.itemsize)


def _lengths(chunks: Any) -> tuple[int, ...]:
    try:
        lengths = tuple([int(n) for n in chunks])
    except (TypeError, ValueError):
        lengths = ()
    if not lengths or min(lengths) < 1:
        raise SinkError(f"chunks is {chunks!r}; give a length of at least 1 for each axis")
    return lengths


def _source(dataset: Any, path: str, writable: bool) -> MappedSource | DatasetSource:
    """Return a dataset in a file: mapped, if voxels lie in it as they are in memory."""
    place = place_of(dataset, path)
    offset = dataset.id.get_offset()
    layout = dataset.id.get_create_plist().get_layout()
    contiguous = layout == h5py_library().h5d.CONTIGUOUS and offset is not None
    mapped = contiguous and is_plain(dataset, place.dtype)
    if writable:
        check_alone(dataset.file, mapped=mapped)
    if not mapped:
        return DatasetSource(place, writable)
    address = Address(path, place.file, offset, place.shape, place.dtype, "C", writable)
    check_length(str(place), os.stat(path).st_size, offset, address.nbytes)
    return MappedSource(address, _NAME)


def _pack(
    dataset: str, chunks: tuple[int, ...], compression: str | None, array: Array, path: str
) -> None:
    """Write voxels to a new file, and read it back."""
    write_chunks(path, dataset, array, chunks, compression)
    with reading(path):
        with locked():
            source = _source(find(open_file(path), dataset), path, writable=False)
        whole = Region.whole(array.shape)
        for box, same in ahead(partial(_same, array, source), boxes(whole, chunks)):
            if not same:
                raise SinkError(f"chunk {box.start} does not hold what was written to it")


def _same(array: Array, source: MappedSource | DatasetSource, box: Region) -> bool:
    part = box.common(Region.whole(array.shape))
    # As bytes: NaN is not equal to itself.
    return source.read(part).tobytes() == array[part.slices].tobytes()
