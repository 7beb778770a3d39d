"""Boxes of voxels and the cells of a grid. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

__all__ = ["Cell", "Range", "Region", "parts"]

Range = tuple[int, int]
"""Half-open range ``(start, stop)`` along one axis."""


@dataclass(frozen=True, slots=True)
class Region:
    """A half-open box of voxels.

    Parameters
    ----------
    start, stop : tuple of int
        First voxel and the one after the last, per axis.

    Examples
    --------
    >>> Region((0, 2), (4, 5)).shape
    (4, 3)
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> "Region":
        """Return the region that covers an array of this shape."""
        return cls((0,) * len(shape), tuple(shape))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.start)

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return tuple([hi - lo for lo, hi in zip(self.start, self.stop, strict=True)])

    @property
    def size(self) -> int:
        """Number of voxels."""
        return prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index for arrays."""
        return tuple([slice(lo, hi) for lo, hi in zip(self.start, self.stop, strict=True)])

    def within(self, outer: "Region") -> "Region":
        """Return this region counted from the start of `outer`."""
        return Region(
            tuple([lo - o for lo, o in zip(self.start, outer.start, strict=True)]),
            tuple([hi - o for hi, o in zip(self.stop, outer.start, strict=True)]),
        )

    def common(self, other: "Region") -> "Region":
        """Return the box that two regions which overlap have in common."""
        return Region(
            tuple(map(max, self.start, other.start)), tuple(map(min, self.stop, other.stop))
        )

    def contains(self, other: "Region") -> bool:
        """Tell whether `other` lies inside this region."""
        return all(
            lo <= other_lo and other_hi <= hi
            for lo, hi, other_lo, other_hi in zip(
                self.start, self.stop, other.start, other.stop, strict=True
            )
        )


def parts(region: Region, unit: Sequence[int]) -> Iterator[tuple[tuple[int, ...], Region]]:
    """Yield the boxes of a lattice that a region touches: their numbers, and the common part.

    Examples
    --------
    >>> [(index, part.slices) for index, part in parts(Region((3,), (6,)), (5,))]
    [((0,), (slice(3, 5, None),)), ((1,), (slice(5, 6, None),))]
    """
    if not region.size:
        return
    ranges = [
        [(n, (max(lo, n * u), min(hi, (n + 1) * u))) for n in range(lo // u, -(-hi // u))]
        for lo, hi, u in zip(region.start, region.stop, unit, strict=True)
    ]
    for axes in product(*ranges):
        start = tuple([lo for _, (lo, _) in axes])
        yield tuple([n for n, _ in axes]), Region(start, tuple([hi for _, (_, hi) in axes]))


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of a grid: what is read and what of it is valid, along the split axes.

    Parameters
    ----------
    number : int
        Position in the order of the grid (C order).
    index : tuple of int
        Position in the grid, one number for each axis of the array.
    axes : tuple of int
        The split axes, ascending.
    read, valid : tuple of (int, int)
        Ranges along `axes`: voxels that are read, and voxels that are written.
    """

    number: int
    index: tuple[int, ...]
    axes: tuple[int, ...]
    read: tuple[Range, ...]
    valid: tuple[Range, ...]

    def read_in(self, shape: Sequence[int]) -> Region:
        """Return the region read from an array of this shape (axes not split are read whole)."""
        return self._complete(self.read, shape)

    def valid_in(self, shape: Sequence[int]) -> Region:
        """Return the valid region in an array of this shape."""
        return self._complete(self.valid, shape)

    def crop(self, ndim: int) -> tuple[slice, ...]:
        """Return the index that cuts the valid region out of a result of `ndim` axes."""
        slices = [slice(None)] * ndim
        for axis, (lo, _), (start, stop) in zip(self.axes, self.read, self.valid, strict=True):
            slices[axis] = slice(start - lo, stop - lo)
        return tuple(slices)

    def _complete(self, ranges: tuple[Range, ...], shape: Sequence[int]) -> Region:
        start, stop = [0] * len(shape), list(shape)
        for axis, (lo, hi) in zip(self.axes, ranges, strict=True):
            start[axis], stop[axis] = lo, hi
        return Region(tuple(start), tuple(stop))
