"""Arrays in pages of strips or tiles, decoded where a region touches them. Touches local files."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

import numpy as np

from gpublocks.contracts import Array, DType, Extent, Order, Reach
from gpublocks.errors import SourceError
from gpublocks.formats.files.paths import check_unchanged, stamp
from gpublocks.formats.files.picking import source_getitem, target
from gpublocks.formats.tiff.segments import Paging, Part
from gpublocks.geometry import Region
from gpublocks.voxels import (
    source_array,
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
)

__all__ = ["PagedAddress", "PagedSource", "Pages"]

_SLACK = 1 << 20
"""Bytes by which a packed segment may exceed twice its voxels: headers, and voxels of noise."""


@dataclass(frozen=True, slots=True)
class PagedAddress:
    """Where the voxels of an array are found in a file of pages.

    Parameters
    ----------
    path : str
        Absolute, without symbolic links.
    file : (int, int)
        Device and inode.
    choice : tuple
        Which of the arrays in the file, in terms of its format.
    shape : tuple of int
    dtype : dtype
    unit : tuple of int
        Voxels of a strip or tile along each axis.
    """

    path: str
    file: tuple[int, int]
    choice: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: DType
    unit: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pages:
    """What is known of an array in pages, as soon as its file was looked through.

    Parameters
    ----------
    paging : Paging
    offsets, counts : sequence of sequence of int
        Where in the file each segment of each page begins, and its length in bytes; a segment
        without bytes is empty.
    decode : callable or None
        Makes voxels, an array of four axes, of the bytes of a segment, by page and segment. None
        where the bytes of a segment are its voxels as they are.
    dtype : dtype
        Type of voxels as they are stored.
    empty : int or float
        Value of the voxels of an empty segment.
    """

    paging: Paging
    offsets: Sequence[Sequence[int]]
    counts: Sequence[Sequence[int]]
    decode: Callable[[bytes, int, int], Array] | None
    dtype: DType
    empty: float


class PagedSource:
    """An array in pages. Pickles to its address; each process looks through the file once.

    Parameters
    ----------
    address : PagedAddress
    load : callable
        A function of a module that returns the pages at an address.
    name : str
        Kind of source, as shown in its repr.
    metadata : mapping
        What the file says of the voxels beside their shape and type.
    pages : Pages, optional
        If they are known already.
    """

    __slots__ = ("__weakref__", "_address", "_load", "_pages", "_stamp", "metadata", "name")

    order: Order = "C"
    reach = Reach.MACHINE
    writable = False
    single_writer = False

    def __init__(
        self,
        address: PagedAddress,
        load: Callable[[PagedAddress], Pages],
        name: str,
        metadata: Mapping[str, Any],
        pages: Pages | None = None,
    ) -> None:
        self.name = name
        self.metadata = dict(metadata)
        self._address = address
        self._load = load
        self._pages = pages
        self._stamp = stamp(address.path)

    ndim = property(source_ndim)
    size = property(source_size)
    __len__ = source_len
    __array__ = source_array
    __repr__ = source_text
    __getitem__ = source_getitem
    info = source_info

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return self._address.shape

    @property
    def dtype(self) -> DType:
        """Type of a voxel."""
        return self._address.dtype

    @property
    def unit(self) -> tuple[int, ...]:
        """Voxels of a strip or tile along each axis."""
        return self._address.unit

    @property
    def location(self) -> str:
        """Absolute path, without symbolic links."""
        return self._address.path

    @property
    def extent(self) -> Extent:
        """The whole file."""
        return Extent(("file", *self._address.file), 0, 1 << 63)

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region, in `out` if given.

        Only the strips and tiles that it touches are read.

        Raises
        ------
        PlanError
            If the region leaves the array, or is not of the shape of `out`.
        SourceError
            If a strip or tile is damaged, or the file was replaced.
        """
        out = target(self, region, out)
        if not region.size:
            return out
        if self._pages is None:
            self._pages = self._load(self._address)
        pages = self._pages
        voxels = pages.paging.unfolded(region, out)
        # By the thread that reads, as others of a run do at the same time: threads that come and go
        # leave behind what their decoders took.
        self._decode(pages, pages.paging.parts(region), voxels)
        return out

    def verify(self) -> None:
        """Check that the file is what it was when this source was made.

        Raises
        ------
        SourceError
            If its size or time of change differ, or it was replaced.
        """
        check_unchanged(self.location, self._stamp)

    def __reduce__(self) -> Any:
        return PagedSource, (self._address, self._load, self.name, self.metadata)

    def _decode(self, pages: Pages, parts: Iterable[Part], voxels: Array) -> None:
        """Copy what is taken of some segments to where it belongs."""
        try:
            # A descriptor of its own for each call: no position is shared by threads or processes.
            with open(self.location, "rb") as file:
                status = os.fstat(file.fileno())
                if (status.st_dev, status.st_ino) != self._address.file:
                    raise SourceError(f"{self.location} was replaced by another file; start again")
                for part in parts:
                    voxels[part.target] = self._voxels(pages, part, file)
        except SourceError:
            raise
        except OSError as error:
            raise SourceError(
                error.errno, f"cannot read {self.location}: {error.strerror or error}"
            ) from error

    def _voxels(self, pages: Pages, part: Part, file: BinaryIO) -> Any:
        """Return what is taken of a segment."""
        offset = pages.offsets[part.page][part.segment]
        count = pages.counts[part.page][part.segment]
        if not offset or not count:
            return pages.empty
        shape = (*pages.paging.segment, pages.paging.page[4])
        packed = pages.decode is not None
        if packed and count > 2 * prod(shape) * pages.dtype.itemsize + _SLACK:
            raise self._damage(part, f"{count} bytes are too many for {shape} voxels")
        start, stop = 0, count
        if not packed:
            start, stop = [row * pages.dtype.itemsize for row in part.span(shape)]
        file.seek(offset + start)
        data = file.read(stop - start)
        if len(data) < stop - start:
            raise self._damage(part, f"{len(data)} of {stop - start} bytes are there (truncated)")
        if pages.decode is None:
            return part.of_span(np.frombuffer(data, pages.dtype), shape)
        try:
            voxels = pages.decode(data, part.page, part.segment)[part.source]
        except MemoryError:
            raise
        except Exception as error:
            raise self._damage(part, str(error)) from error
        expected = tuple([cut.stop - cut.start for cut in part.source])
        if voxels.shape != expected:
            raise self._damage(part, f"it has {voxels.shape} voxels where {expected} are wanted")
        return voxels

    def _damage(self, part: Part, reason: str) -> SourceError:
        return SourceError(
            f"segment {part.segment} of page {part.page} of {self.location} is damaged: {reason}"
        )
