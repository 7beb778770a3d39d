"""A source read through a cache of the pieces it is stored in. Touches memory and that source."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from gpublocks.concurrency import Concurrency, Threads
from gpublocks.contracts import Array, DType, Extent, Order, Reach, Source
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.geometry import Region
from gpublocks.storage import BOX_BYTES, Usage, boxes
from gpublocks.voxels import (
    source_array,
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
)

__all__ = ["Cached"]

Index = tuple[int, ...]
"""Which piece, counted along each axis."""


class _Piece:
    """A piece that is kept, or that somebody is decoding."""

    __slots__ = ("over", "voxels")

    def __init__(self) -> None:
        self.voxels: Array | None = None
        self.over = False


class Cached:
    """Reads a source for the cells of a grid, and decodes each of its pieces once.

    Where memory is full, pieces are dropped of which all voxels have been read that the cells
    read, as many as the grid says; when there are none left, the ones used least recently. Several
    threads may read at once: each decodes what nobody else does, and takes the rest from the
    others.

    Parameters
    ----------
    source : Source
    usage : Usage
        Its pieces, and how cells read them.
    limit_bytes : int
        Memory for pieces, those included that are being decoded. What one read decodes at once is
        taken in any case.
    concurrency : Concurrency, optional
    """

    __slots__ = (
        "_bytes",
        "_condition",
        "_kept",
        "_left",
        "_reads",
        "_spent",
        "_under_way",
        "limit_bytes",
        "source",
        "usage",
    )

    reach = Reach.PROCESS

    def __init__(
        self,
        source: Source,
        usage: Usage,
        limit_bytes: int,
        concurrency: Concurrency | None = None,
    ) -> None:
        self.source = source
        self.usage = usage
        self.limit_bytes = limit_bytes
        self._condition: Any = (concurrency or Threads()).condition()
        self._kept: OrderedDict[Index, _Piece] = OrderedDict()
        # A cell that a slot has loaded may be done by another one, which has to load it again.
        self._spent: OrderedDict[Index, _Piece] = OrderedDict()
        self._under_way: dict[Index, _Piece] = {}
        self._left: dict[Index, int] = {}
        self._reads: list[dict[int, int]] = [{} for _ in source.shape]
        self._bytes = 0

    ndim = property(source_ndim)
    size = property(source_size)
    __len__ = source_len
    __array__ = source_array
    __repr__ = source_text
    info = source_info

    @property
    def name(self) -> str:
        """That of the source."""
        return self.source.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return self.source.shape

    @property
    def dtype(self) -> DType:
        """Type of a voxel."""
        return self.source.dtype

    @property
    def order(self) -> Order:
        """Memory order."""
        return self.source.order

    @property
    def location(self) -> str | None:
        """Path of the source; None for an array in memory."""
        return self.source.location

    @property
    def extent(self) -> Extent | None:
        """The bytes of the source."""
        return self.source.extent

    @property
    def unit(self) -> tuple[int, ...]:
        """Smallest box that the source stores as one piece."""
        return self.source.unit

    @property
    def kept_bytes(self) -> int:
        """Memory of the pieces that are kept or being decoded."""
        return self._bytes

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region, in `out` if given.

        Raises
        ------
        PlanError
            If the region leaves the source, or is not of the shape of `out`.
        """
        if not Region.whole(self.shape).contains(region):
            raise PlanError(f"region {region.start} to {region.stop} leaves {self!r}")
        if out is None:
            out = np.empty(region.shape, self.dtype, order=self.order)
        elif out.shape != region.shape:
            raise PlanError(
                f"region {region.start} to {region.stop} does not fit an array of shape {out.shape}"
            )
        wanted = list(_indices(self.usage.pieces.touching(region))) if region.size else []
        while wanted:
            mine, others = self._claim(wanted)
            self._decode(mine, region, out)
            wanted = self._await(others, region, out) if others else []
        return out

    def __getitem__(self, slicing: Any) -> Any:
        return self.source[slicing]

    def __reduce__(self) -> Any:
        raise ArgumentTypeError(
            f"{self!r} is read through the memory of this process and does not travel to others; "
            "use the source itself, or executor='threads'"
        )

    def _claim(self, wanted: Sequence[Index]) -> tuple[list[Index], list[tuple[Index, _Piece]]]:
        """Return the pieces that this thread is to decode, and those that others do or have."""
        mine, others = [], []
        with self._condition:
            for index in wanted:
                known = (places.get(index) for places in (self._kept, self._under_way, self._spent))
                piece = next(filter(None, known), None)
                if piece is None:
                    self._under_way[index] = _Piece()
                    mine.append(index)
                else:
                    others.append((index, piece))
        return mine, others

    def _decode(self, mine: Sequence[Index], region: Region, out: Array) -> None:
        """Read pieces from the source in few large boxes; keep those that others will read."""
        pieces = self.usage.pieces
        left = set(mine)
        try:
            for box in boxes(mine, BOX_BYTES // pieces.nbytes, pieces.order):
                found = self._read_box(box, region, out)
                self._settle(found, region)
                left.difference_update(found)
        finally:
            if left:
                self._give_up(left)

    def _read_box(self, box: Region, region: Region, out: Array) -> dict[Index, Array | None]:
        """Read the part of a box of pieces that is asked for; return the pieces to be kept."""
        found: dict[Index, Array | None] = dict.fromkeys(_indices(box))
        again = [index for index in found if self._left_after(index, region) > 0]
        whole = self.usage.pieces.voxels(box)
        part = whole.common(region)
        target = out[part.within(region).slices]
        if not again:
            self.source.read(part, out=target)
            return found
        # The box, and copies of pieces, each of which can be dropped alone.
        nbytes = (
            whole.size + sum(self._voxels(index).size for index in again)
        ) * self.dtype.itemsize
        self._take(nbytes)
        try:
            voxels = self.source.read(whole)
            target[...] = voxels[part.within(whole).slices]
            for index in again:
                piece = voxels[self._voxels(index).within(whole).slices]
                found[index] = piece if len(found) == 1 else piece.copy(self.order)
        finally:
            self._take(-nbytes)
        return found

    def _settle(self, found: dict[Index, Array | None], region: Region) -> None:
        """Let others have pieces that were decoded; None where nobody needs them."""
        with self._condition:
            for index, voxels in found.items():
                piece = self._under_way.pop(index)
                piece.voxels, piece.over = voxels, True
                if voxels is not None:
                    self._kept[index] = piece
                    self._bytes += voxels.nbytes
                self._count(index, region)
            self._shrink()
            self._condition.notify_all()

    def _give_up(self, indices: set[Index]) -> None:
        """Let others decode pieces that this thread could not."""
        with self._condition:
            for index in indices:
                self._under_way.pop(index).over = True
            self._condition.notify_all()

    def _await(
        self, others: Sequence[tuple[Index, _Piece]], region: Region, out: Array
    ) -> list[Index]:
        """Copy what other threads decode or have decoded; return what they could not."""
        ready, again = [], []
        with self._condition:
            for index, piece in others:
                while not piece.over:
                    self._condition.wait()
                if piece.voxels is None:
                    again.append(index)
                else:
                    ready.append((index, piece.voxels))
                    self._count(index, region)
        for index, voxels in ready:
            whole = self._voxels(index)
            part = whole.common(region)
            out[part.within(region).slices] = voxels[part.within(whole).slices]
        return again

    def _count(self, index: Index, region: Region) -> None:
        """Note that a region of a piece has been read."""
        left = self._left_after(index, region)
        if left > 0:
            self._left[index] = left
            if index in self._kept:
                self._kept.move_to_end(index)
        elif index in self._kept:
            self._left[index] = 0
            self._spent[index] = self._kept.pop(index)
        elif index not in self._spent:
            self._left.pop(index, None)

    def _left_after(self, index: Index, region: Region) -> int:
        """Return how many voxels of a piece are still to be read when a region has been."""
        left = self._left.get(index)
        if left is None:
            left = prod(self._reads_along(axis, p) for axis, p in enumerate(index))
        return left - self._voxels(index).common(region).size

    def _reads_along(self, axis: int, piece: int) -> int:
        known = self._reads[axis]
        if piece not in known:
            known[piece] = self.usage.along(axis).read(piece)
        return known[piece]

    def _take(self, nbytes: int) -> None:
        with self._condition:
            self._bytes += nbytes
            self._shrink()

    def _shrink(self) -> None:
        """Drop pieces until all together take no more than they may."""
        while self._bytes > self.limit_bytes and (self._spent or self._kept):
            index, piece = (self._spent or self._kept).popitem(last=False)
            if not self._left[index]:
                del self._left[index]
            assert piece.voxels is not None
            self._bytes -= piece.voxels.nbytes

    def _voxels(self, index: Index) -> Region:
        return self.usage.pieces.voxels(Region(index, tuple([i + 1 for i in index])))


def _indices(box: Region) -> Iterator[Index]:
    return product(*[range(lo, hi) for lo, hi in zip(box.start, box.stop, strict=True)])
