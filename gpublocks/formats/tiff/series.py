"""Arrays whose first axes count files, each of which is an array. Touches local files."""

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from zlib import crc32

import numpy as np

from gpublocks.contracts import Array, DType, Extent, Order, Reach, Source
from gpublocks.errors import SourceError
from gpublocks.formats.files.paths import stamp
from gpublocks.formats.files.picking import source_getitem, target
from gpublocks.formats.tiff.planes import find_planes, planes_of
from gpublocks.geometry import Region
from gpublocks.voxels import (
    source_array,
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
)

__all__ = ["SeriesSource"]

_OPEN_FILES = 64
"""Files that a process keeps open: blocks beside each other read the same ones."""


class SeriesSource:
    """An array in several files. Pickles to its address.

    Parameters
    ----------
    location : str
        Absolute path with placeholders or wildcards, see `gpublocks.formats.tiff.planes`.
    open_file : callable
        A function of a module that returns the source of one file.
    name : str
        Kind of source, as shown in its repr.

    Raises
    ------
    SourceError
        If a file is missing, cannot be opened, or differs in shape or type from the first.
    """

    __slots__ = (
        "_counts",
        "_digest",
        "_open",
        "_opened",
        "_paths",
        "_stamp",
        "dtype",
        "location",
        "metadata",
        "name",
        "shape",
        "unit",
    )

    location: str
    name: str
    shape: tuple[int, ...]
    dtype: DType
    unit: tuple[int, ...]
    metadata: dict[str, Any]
    _open: Callable[[str], Source]
    _counts: tuple[int, ...]
    _digest: int
    _paths: list[str]
    _stamp: list[tuple[int, ...] | None]

    order: Order = "C"
    reach = Reach.MACHINE
    writable = False
    single_writer = False

    def __init__(self, location: str, open_file: Callable[[str], Source], name: str) -> None:
        paths, counts = find_planes(location)
        first = open_file(paths[0])
        for path in paths[1:]:
            _check_same(open_file(path), path, first, paths[0])
        self._set(
            location=location,
            name=name,
            shape=(*counts, *first.shape),
            dtype=first.dtype,
            unit=(1,) * len(counts) + first.unit,
            metadata=dict(getattr(first, "metadata", {})),
            _open=open_file,
            _counts=counts,
            _digest=_digest(paths),
        )
        self._paths = paths
        self._stamp = [stamp(path) for path in paths]

    ndim = property(source_ndim)
    size = property(source_size)
    __len__ = source_len
    __array__ = source_array
    __repr__ = source_text
    __getitem__ = source_getitem
    info = source_info

    @property
    def extent(self) -> Extent:
        """The folder that the files lie in."""
        status = os.stat(os.path.dirname(self._files()[0]))
        return Extent(("file", status.st_dev, status.st_ino), 0, 1 << 63)

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region, in `out` if given.

        Raises
        ------
        PlanError
            If the region leaves the array, or is not of the shape of `out`.
        SourceError
            If a file cannot be read, or changed its shape or type.
        """
        out = target(self, region, out)
        count = len(self._counts)
        inner = Region(region.start[count:], region.stop[count:])
        if inner.size:
            for index, place in planes_of(region, count):
                self._file(index).read(inner, out[place])
        return out

    def verify(self) -> None:
        """Check that the files are what they were when this source was made.

        Raises
        ------
        SourceError
            If one changed its size or time of change, or was added or removed.
        """
        paths, _ = find_planes(self.location)
        if self._stamp and [stamp(path) for path in paths] != self._stamp:
            raise SourceError(
                f"files of {self.location} changed (time, size or number) since they were "
                "opened; results computed from them are not of one state"
            )

    def __reduce__(self) -> Any:
        sent = ("location", "name", "shape", "dtype", "unit", "metadata")
        own = ("_open", "_counts", "_digest")
        return _received, ({key: getattr(self, key) for key in sent + own},)

    def _set(self, **address: Any) -> None:
        for key, value in address.items():
            setattr(self, key, value)
        self._paths = []
        self._stamp = []
        self._opened = lru_cache(_OPEN_FILES)(self._open)

    def _files(self) -> list[str]:
        """Return the files, found once in each process."""
        if not self._paths:
            paths, _ = find_planes(self.location)
            if _digest(paths) != self._digest:
                raise SourceError(f"files of {self.location} were added or removed; start again")
            self._paths = paths
        return self._paths

    def _file(self, index: tuple[int, ...]) -> Source:
        """Return the source of a file, by its place along each axis of files."""
        path = self._files()[int(np.ravel_multi_index(index, self._counts))]
        file: Source = self._opened(path)
        if (*self._counts, *file.shape) != self.shape or file.dtype != self.dtype:
            raise SourceError(f"{path} became {file!r} since it was opened; start again")
        return file


def _received(address: dict[str, Any]) -> SeriesSource:
    source = SeriesSource.__new__(SeriesSource)
    source._set(**address)
    return source


def _check_same(file: Source, path: str, first: Source, first_path: str) -> None:
    if (file.shape, file.dtype) != (first.shape, first.dtype):
        raise SourceError(
            f"{path} is of shape {file.shape} and type {file.dtype}, but {first_path} of shape "
            f"{first.shape} and type {first.dtype}; give files that are all alike"
        )


def _digest(paths: list[str]) -> int:
    return crc32(os.fsencode("\n".join(paths)))
