"""New arrays of which each plane becomes a file, in a new folder. Touches local files."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product
from math import prod
from typing import Any

import numpy as np

from gpublocks.contracts import Array, DType, Extent, Order, Reach, Source
from gpublocks.errors import SinkError
from gpublocks.formats.files.folder import PartialFolder, check_folder, create_folder, sync_files
from gpublocks.formats.files.partial import partial_path
from gpublocks.formats.files.picking import source_getitem, source_setitem, target
from gpublocks.formats.files.room import check_disk
from gpublocks.formats.tiff.planes import Numbering, has_placeholder, planes_of
from gpublocks.geometry import Region
from gpublocks.voxels import (
    source_array,
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
)

__all__ = ["PlanesSink", "check_planes"]

Save = Callable[[Array, str], None]
"""Writes an array to a new file at a path."""

Open = Callable[[str], Source]
"""Opens the file of a plane."""


class PlanesSink:
    """New files of one plane each, in a new folder, which gets its name when all are complete.

    A file is written whole. Where only a part of a plane is given, the file is read before.

    Parameters
    ----------
    location : str
        Absolute path of which the last part has placeholders, see `gpublocks.formats.tiff.planes`.
    shape : tuple of int
        An axis for each placeholder, then those of a plane.
    dtype : dtype
    save, open_file : callable
        How a plane is written, and read again. They travel to other processes.
    name : str
        Kind of sink, as shown in its repr.
    overwrite : bool
        Whether planes of these names may be replaced.
    compressed : bool
        Whether files are smaller than their voxels, as a rule.

    Raises
    ------
    SinkError
        If the folder cannot be created, there is no room, or another run is writing it.
    """

    __slots__ = (
        "__weakref__",
        "_files",
        "_folder",
        "_open",
        "_save",
        "_under_way",
        "dtype",
        "name",
        "shape",
    )

    shape: tuple[int, ...]
    dtype: DType
    _under_way: PartialFolder | None

    order: Order = "C"
    reach = Reach.MACHINE
    single_writer = False

    def __init__(
        self,
        location: str,
        shape: tuple[int, ...],
        dtype: DType,
        *,
        save: Save,
        open_file: Open,
        name: str,
        overwrite: bool,
        compressed: bool = False,
    ) -> None:
        final, pattern = os.path.split(location)
        names = Numbering(pattern)
        count = len(names.names)
        if len(shape) <= count:
            raise SinkError(f"{location} numbers {count} axes and planes, of {len(shape)} axes")
        files = names.first(shape[:count])
        under_way = create_folder(final, overwrite=overwrite)
        nbytes = prod(shape) * dtype.itemsize
        try:
            check_disk(final, 0 if compressed else nbytes, most=nbytes)
        except BaseException:
            under_way.remove()
            raise
        self._set(under_way.path, files, shape, dtype, save, open_file, name)
        self._under_way = under_way

    ndim = property(source_ndim)
    size = property(source_size)
    __len__ = source_len
    __array__ = source_array
    __repr__ = source_text
    __getitem__ = source_getitem
    __setitem__ = source_setitem
    info = source_info

    @property
    def writable(self) -> bool:
        """Whether writing is permitted: until it is finished."""
        return self._folder.endswith(partial_path(""))

    @property
    def unit(self) -> tuple[int, ...]:
        """A whole plane."""
        return (1,) * len(self._files.counts) + self._plane.shape

    @property
    def location(self) -> str:
        """Absolute path with placeholders; of the files under way until it is finished."""
        return os.path.join(self._folder, self._files.template)

    @property
    def extent(self) -> Extent:
        """The folder that the files lie in."""
        status = os.stat(self._folder)
        return Extent(("file", status.st_dev, status.st_ino), 0, 1 << 63)

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region, in `out` if given; zeros where none is."""
        out = target(self, region, out)
        count = len(self._files.counts)
        inner = Region(region.start[count:], region.stop[count:])
        for index, place in planes_of(region, count):
            path = self._path(index)
            if os.path.exists(path):
                self._open(path).read(inner, out[place])
            else:
                out[place] = 0
        return out

    def write(self, region: Region, array: Array) -> None:
        """Write an array of the region's shape, cast as NumPy assignment casts.

        Raises
        ------
        PlanError
            If the shapes differ: nothing is broadcast.
        SinkError
            If a file cannot be written.
        """
        target(self, region, array)
        count = len(self._files.counts)
        inner = Region(region.start[count:], region.stop[count:])
        for index, place in planes_of(region, count):
            path = self._path(index)
            if inner == self._plane or not os.path.exists(path):
                plane = np.zeros(self._plane.shape, self.dtype)
            else:
                plane = self._open(path).read(self._plane)
            plane[inner.slices] = array[place]
            self._store(path, plane)

    def sync(self) -> None:
        """Make what any process wrote durable.

        Raises
        ------
        SinkError
            If the disk reports an error. It may be reported once only: do not try again.
        """
        try:
            sync_files(self._folder)
        except OSError as error:
            raise SinkError(
                error.errno, f"cannot make {self.location} durable: {error.strerror}"
            ) from error

    def finish(self) -> None:
        """Write zeros to the planes that nobody wrote, and give the folder its name.

        It is durable only if `sync` came before.

        Raises
        ------
        SinkError
            If that fails. The planes are kept then, and the message says where.
        """
        if self._under_way is None:
            return
        under_way, self._under_way = self._under_way, None
        missing = [path for path in self._paths() if not os.path.exists(path)]
        for path in missing:
            self._store(path, np.zeros(self._plane.shape, self.dtype))
        if missing:
            self.sync()
        under_way.rename()
        self._folder = under_way.final

    def abort(self) -> None:
        """Remove what was written, if it was not finished."""
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            under_way.remove()

    def __reduce__(self) -> Any:
        state = (self._folder, self._files, self.shape, self.dtype)
        return _received, (*state, self._save, self._open, self.name)

    def _set(
        self,
        folder: str,
        files: Numbering,
        shape: tuple[int, ...],
        dtype: DType,
        save: Save,
        open_file: Open,
        name: str,
    ) -> None:
        self._folder = folder
        self._files = files
        self._save = save
        self._open = open_file
        self.shape = shape
        self.dtype = dtype
        self.name = name
        self._under_way = None

    @property
    def _plane(self) -> Region:
        return Region.whole(self.shape[len(self._files.counts) :])

    def _path(self, index: tuple[int, ...]) -> str:
        return os.path.join(self._folder, self._files.path(index))

    def _paths(self) -> Iterator[str]:
        return map(self._path, product(*map(range, self._files.counts)))

    def _store(self, path: str, plane: Array) -> None:
        """Write a plane under a partial name, which is then given its own."""
        partial = partial_path(path)
        try:
            self._save(plane, partial)
            os.replace(partial, path)
        except Exception as error:
            with suppress(OSError):
                os.unlink(partial)
            raise SinkError(f"cannot write {path}: {error}") from error


def check_planes(location: str, *, overwrite: bool) -> None:
    """Raise `SinkError` if the folder of new planes cannot be created. Creates nothing.

    Parameters
    ----------
    location : str
        Absolute path of which the last part has placeholders.
    overwrite : bool
        Whether the folder may hold planes of these names, and nothing else.
    """
    folder, pattern = os.path.split(location)
    if has_placeholder(folder):
        raise SinkError(f"cannot create {location}: only the name of a file can be numbered")
    names = Numbering(pattern)
    first = names.first((1,) * len(names.names)).path((0,) * len(names.names))
    if overwrite and os.path.isdir(folder) and not os.path.islink(folder):
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_file(follow_symlinks=False) or not names.holds(entry.name):
                    raise SinkError(
                        errno.EEXIST,
                        f"{folder} holds {entry.name} beside planes of these names; name a new "
                        "folder",
                    )
    advice = "name a new folder, or pass overwrite=True to the Sink to replace its planes"
    check_folder(folder, [first], overwrite=overwrite, advice=advice)


def _received(*state: Any) -> PlanesSink:
    """Return the sink that another process sent: it can write, and neither finish nor abort."""
    sink = PlanesSink.__new__(PlanesSink)
    sink._set(*state)
    return sink
