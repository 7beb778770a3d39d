"""Arrays stored in pieces: which ones a box touches, how much of each is read. Pure."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from gpublocks.contracts import Order, Source
from gpublocks.dividing import pieces
from gpublocks.geometry import Range, Region
from gpublocks.grid import Grid
from gpublocks.splitting import AxisSplit

__all__ = ["BOX_BYTES", "Pieces", "Usage", "boxes"]

BOX_BYTES = 16 << 20
"""Pieces beside each other are decoded in one call of their library, up to so many bytes."""
_LEAST_BYTES = 64 << 10
"""Smaller pieces are taken together: each one that is kept costs some microseconds."""
_COUNTED = 16
"""What so few blocks read is counted; what more of them do is reckoned, which is as good."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """The boxes in which an array is stored, each of which is decoded as a whole.

    Parameters
    ----------
    shape : tuple of int
        Of the array.
    unit : tuple of int
        Voxels of a piece per axis.
    origin : tuple of int
        Voxels by which the first piece begins before the array does.
    itemsize : int
    order : {'C', 'F'}
        Order of the voxels in memory, and of the pieces.
    """

    shape: tuple[int, ...]
    unit: tuple[int, ...]
    origin: tuple[int, ...]
    itemsize: int
    order: Order = "C"

    @classmethod
    def of(cls, source: Source) -> "Pieces | None":
        """Return the pieces of a source, small ones taken together; None if voxels stand alone."""
        unit = list(getattr(source, "read_unit", source.unit))
        if all(length == 1 for length in unit) or not prod(source.shape):
            return None
        origin = tuple(getattr(source, "read_origin", (0,) * len(unit)))
        nbytes = prod(unit) * source.dtype.itemsize
        axes = range(len(unit))
        for axis in axes if source.order == "F" else reversed(axes):
            count = -(-(source.shape[axis] + origin[axis]) // unit[axis])
            together = min(count, -(-_LEAST_BYTES // nbytes))
            unit[axis] *= together
            nbytes *= together
        return cls(source.shape, tuple(unit), origin, source.dtype.itemsize, source.order)

    @property
    def nbytes(self) -> int:
        """Bytes of the largest piece."""
        return prod(map(min, self.unit, self.shape)) * self.itemsize

    def touching(self, region: Region) -> Region:
        """Return the box of pieces, counted along each axis, that have voxels of a region."""
        along = list(zip(self.unit, self.origin, strict=True))
        return Region(
            tuple([(lo + o) // u for lo, (u, o) in zip(region.start, along, strict=True)]),
            tuple([-(-(hi + o) // u) for hi, (u, o) in zip(region.stop, along, strict=True)]),
        )

    def voxels(self, box: Region) -> Region:
        """Return the region that a box of pieces covers."""
        along = list(zip(self.unit, self.origin, strict=True))
        start = [max(0, p * u - o) for p, (u, o) in zip(box.start, along, strict=True)]
        stop = [min(n, p * u - o) for n, p, (u, o) in zip(self.shape, box.stop, along, strict=True)]
        return Region(tuple(start), tuple(stop))


@dataclass(frozen=True, slots=True)
class _Axis:
    """An axis that is stored in pieces of `unit` voxels and read in blocks."""

    size: int
    unit: int
    origin: int
    split: AxisSplit | None

    @property
    def count(self) -> int:
        """Number of pieces."""
        return -(-(self.size + self.origin) // self.unit)

    @property
    def apart(self) -> bool:
        """Whether no piece is read by two blocks, as far as that is seen at once."""
        split = self.split
        if split is None or split.count == 1:
            return True
        step, even = split.unit, True
        if split.unit == 1:
            step, even = split.width, not split.extra and not split.pulled
        return even and not split.overlap and not self.origin and step % self.unit == 0

    @property
    def shared(self) -> int:
        """Voxels of the pieces, at most, that two blocks beside each other both read."""
        split = self.split
        if split is None or self.apart:
            return 0
        overlap = split.overlap
        if split.pulled:
            overlap = split.block(split.count - 2)[1] - split.block(split.count - 1)[0]
        pieces = (overlap - 2) // self.unit + 2 if overlap > 1 else 1
        return min(pieces * self.unit, self.size)

    @property
    def block(self) -> int:
        """Voxels of the pieces that a block reads, at most."""
        if self.split is None or self.split.count == 1:
            return self.size
        length = self.split.largest
        pieces = -(-length // self.unit) if self.apart else (length - 2) // self.unit + 2
        return min(pieces * self.unit, self.size)

    @property
    def touched(self) -> float:
        """About how often a piece is read by a block."""
        split = self.split
        if split is None or self.apart:
            return 1.0
        if split.count <= _COUNTED:
            ranges = map(split.block, range(split.count))
            return sum(self._pieces(lo, hi) for lo, hi in ranges) / self.count
        if split.unit % self.unit == 0 and not self.origin:
            context = self.unit * -(-((split.overlap + 1) // 2) // self.unit)
            return 1 + 2 * context * (split.count - 1) / self.size
        # A range that begins anywhere touches so many pieces on average.
        return (split.read + split.count * (self.unit - 1)) / self.size

    def _pieces(self, lo: int, hi: int) -> int:
        return -(-(hi + self.origin) // self.unit) - (lo + self.origin) // self.unit

    def read(self, piece: int) -> int:
        """Return how many voxels of a piece all blocks together read."""
        lo = max(0, piece * self.unit - self.origin)
        hi = min(self.size, (piece + 1) * self.unit - self.origin)
        split = self.split
        if split is None:
            return hi - lo
        if hi - lo == self.size:
            return split.read
        blocks = range(split.count)
        first = bisect_right(blocks, lo, key=lambda k: split.block(k)[1])
        last = bisect_left(blocks, hi, key=lambda k: split.block(k)[0])
        ranges = map(split.block, range(first, last))
        return sum(min(hi, stop) - max(lo, start) for start, stop in ranges)


@dataclass(frozen=True, slots=True)
class Usage:
    """How the cells of a grid read the pieces of an array.

    Parameters
    ----------
    pieces : Pieces
    grid : Grid
    """

    pieces: Pieces
    grid: Grid

    def along(self, axis: int) -> _Axis:
        """Return how one axis is stored and read."""
        splits = dict(zip(self.grid.axes, self.grid.splits, strict=True))
        pieces = self.pieces
        return _Axis(pieces.shape[axis], pieces.unit[axis], pieces.origin[axis], splits.get(axis))

    @property
    def axes(self) -> list[_Axis]:
        """All axes."""
        return [self.along(axis) for axis in range(len(self.pieces.shape))]

    @property
    def apart(self) -> bool:
        """Whether each piece is read by one cell only."""
        return all(axis.apart for axis in self.axes)

    def decoding_bytes(self, workers: int) -> int:
        """Return the memory of pieces that workers decode at once, in a box and a copy of each."""
        block = prod(axis.block for axis in self.axes) * self.pieces.itemsize
        return 2 * workers * min(block, max(BOX_BYTES, self.pieces.nbytes))

    def useful_bytes(self, workers: int) -> int:
        """Return the most memory that pieces can take which cells to come need again.

        Cells are done in the order of the storage. Those of one row leave to the next row the
        pieces that both read, those of one layer to the next layer; beside them there is what is
        being decoded.
        """
        if self.apart:
            return 0
        return self.decoding_bytes(workers) + sum(self._levels())

    def decoded(self, limit_bytes: int, workers: int) -> float:
        """Return about how often a piece is decoded, where so many bytes of them are kept."""
        axes = self.axes
        fastest_first = axes if self.pieces.order == "F" else axes[::-1]
        taken = self.decoding_bytes(workers)
        times = 1.0
        for axis, level in zip(fastest_first, self._levels(), strict=True):
            taken += level
            if taken > limit_bytes:
                times *= axis.touched
        return times

    def _levels(self) -> list[int]:
        """Return the bytes that cells leave to their next ones along each axis, fastest first."""
        axes = self.axes if self.pieces.order == "F" else self.axes[::-1]
        levels = []
        for n, axis in enumerate(axes):
            faster = prod(other.size for other in axes[:n])
            slower = prod(other.block for other in axes[n + 1 :])
            levels.append(faster * axis.shared * slower * self.pieces.itemsize)
        return levels


def boxes(indices: Sequence[tuple[int, ...]], most: int, order: Order) -> list[Region]:
    """Return few boxes that together hold so many pieces, and no other one.

    Parameters
    ----------
    indices : sequence of tuple of int
        Pieces, counted along each axis.
    most : int
        Pieces that a box holds at most.
    order : {'C', 'F'}
        Order of the pieces: boxes are long along the fast axes.

    Examples
    --------
    >>> [box.slices for box in boxes([(0, 1), (0, 2), (1, 1), (1, 2), (2, 2)], 5, "C")]
    [(slice(0, 2, None), slice(1, 3, None)), (slice(2, 3, None), slice(2, 3, None))]
    """
    found = [(index, tuple([i + 1 for i in index])) for index in indices]
    if not found:
        return []
    axes = range(len(indices[0]))
    for axis in axes if order == "F" else reversed(axes):
        found = _joined(found, axis)
    unit = (1,) * len(indices[0])
    # What is cut is smaller than twice the size that is asked for.
    size = max(1, (most + 1) // 2)
    return [
        part for start, stop in found for part in pieces(Region(start, stop), size, order, unit)
    ]


def _joined(
    found: list[tuple[tuple[int, ...], tuple[int, ...]]], axis: int
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Join boxes that lie behind each other along an axis and are alike along all others."""
    rows: dict[tuple[Range, ...], list[Range]] = {}
    for box in found:
        ranges = tuple(zip(*box, strict=True))
        rows.setdefault((*ranges[:axis], *ranges[axis + 1 :]), []).append(ranges[axis])
    joined = []
    for others, row in rows.items():
        row.sort()
        cuts = [0, *[n for n, (a, b) in enumerate(pairwise(row), 1) if a[1] != b[0]], len(row)]
        for first, end in pairwise(cuts):
            ranges = (*others[:axis], (row[first][0], row[end - 1][1]), *others[axis:])
            joined.append((tuple([lo for lo, _ in ranges]), tuple([hi for _, hi in ranges])))
    return joined
