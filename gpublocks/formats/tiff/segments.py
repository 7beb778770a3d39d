"""Where the voxels of an array lie in pages, and in the strips or tiles of each. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod

from gpublocks.contracts import Array
from gpublocks.errors import PlanError
from gpublocks.geometry import Range, Region

__all__ = ["Paging", "Part"]

Page = tuple[int, int, int, int, int]
"""Lengths of a page: separate samples, depth, length, width, samples side by side."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a region takes of one segment.

    Parameters
    ----------
    page : int
        Number of the page, counted along the leading axes in C order.
    segment : int
        Number of the strip or tile in the page.
    target : tuple
        Index of the part in `Paging.unfolded`; its last four axes are as those of the segment.
    source : tuple of slice
        Index of the part in the segment: depth, length, width, samples.
    """

    page: int
    segment: int
    target: tuple[int | slice, ...]
    source: tuple[slice, ...]

    def span(self, segment: tuple[int, int, int, int]) -> tuple[int, int]:
        """Return the range of voxels of a segment, in C order, that holds what is taken.

        Parameters
        ----------
        segment : tuple of int
            Its shape: depth, length, width, samples.
        """
        (_, length, width, samples), (depth, rows, *_) = segment, self.source
        start, stop = depth.start * length, depth.stop * length
        if depth.stop - depth.start == 1:
            start, stop = start + rows.start, start + rows.stop
        return start * width * samples, stop * width * samples

    def of_span(self, voxels: Array, segment: tuple[int, int, int, int]) -> Array:
        """Return what is taken, of the voxels in `span`."""
        depth, rows, *rest = self.source
        count = depth.stop - depth.start
        if count == 1:
            rows = slice(None)
        return voxels.reshape(count, -1, *segment[2:])[(slice(None), rows, *rest)]


@dataclass(frozen=True, slots=True)
class Paging:
    """How an array of C order is divided into pages, and each page into segments.

    Parameters
    ----------
    shape : tuple of int
        Voxels per axis of the array, none of them 0.
    page : tuple of int
        Voxels of a page: separate samples, depth, length, width, samples side by side.
    segment : tuple of int
        Voxels of a strip or tile: depth, length, width; with all samples side by side.

    Attributes
    ----------
    leading : int
        How many axes count pages.

    Raises
    ------
    PlanError
        If the array is not made of such pages.

    Examples
    --------
    >>> paging = Paging((10, 50, 30), page=(1, 1, 50, 30, 1), segment=(1, 16, 30))
    >>> paging.unit
    (1, 16, 30)
    >>> [part.segment for part in paging.parts(Region((3, 15, 0), (4, 32, 30)))]
    [0, 1]
    """

    shape: tuple[int, ...]
    page: Page
    segment: tuple[int, int, int]
    leading: int = field(init=False)

    def __post_init__(self) -> None:
        leading = len(self.shape)
        while leading and prod(self.shape[leading:]) < prod(self.page):
            leading -= 1
        object.__setattr__(self, "leading", leading)
        if _longer(self.shape[leading:]) != _longer(self.page):
            raise PlanError(f"pages of shape {self.page} make no array of shape {self.shape}")

    @property
    def pages(self) -> int:
        """Number of pages."""
        return prod(self.shape[: self.leading])

    @property
    def segments(self) -> int:
        """Number of segments of a page."""
        return self.page[0] * prod(self._counts)

    @property
    def unit(self) -> tuple[int, ...]:
        """Voxels of a segment along each axis of the array."""
        lengths = (1, *self.segment, self.page[4])
        inside = iter([min(n, m) for n, m in zip(lengths, self.page, strict=True) if m > 1])
        tail = [next(inside) if n > 1 else 1 for n in self.shape[self.leading :]]
        return (1,) * self.leading + tuple(tail)

    def unfolded(self, region: Region, array: Array) -> Array:
        """Return a view of an array of a region's shape, with the five axes of pages at its end.

        The region has voxels.
        """
        ranges = self._in_page(region)
        lead = region.shape[: self.leading]
        return array.reshape(lead + tuple([stop - start for start, stop in ranges]))

    def parts(self, region: Region) -> Iterator[Part]:
        """Return what a region takes of each segment that it touches, page by page."""
        if not region.size:
            return
        samples, *box, together = self._in_page(region)
        lead = list(zip(region.start, region.stop, strict=True))[: self.leading]
        touched = [
            range(start // length, (stop - 1) // length + 1)
            for (start, stop), length in zip(box, self.segment, strict=True)
        ]
        inside = [range(*ends) for ends in lead]
        for index in product(*inside, range(*samples)):
            *place, sample = index
            page = _position(place, self.shape[: self.leading])
            first = [i - start for i, (start, _) in zip(place, lead, strict=True)]
            for cell in product(*touched):
                number = _position((sample, *cell), (self.page[0], *self._counts))
                cuts = [
                    _cut(ends, n * length, length)
                    for ends, n, length in zip(box, cell, self.segment, strict=True)
                ]
                target = [cut[0] for cut in cuts]
                source = [cut[1] for cut in cuts]
                yield Part(
                    page,
                    number,
                    (*first, sample - samples[0], *target, slice(None)),
                    (*source, slice(*together)),
                )

    @property
    def _counts(self) -> tuple[int, ...]:
        return tuple([-(-n // m) for n, m in zip(self.page[1:4], self.segment, strict=True)])

    def _in_page(self, region: Region) -> list[Range]:
        """Return a region's ranges along the five axes of a page."""
        ends = list(zip(region.start, region.stop, self.shape, strict=True))[self.leading :]
        inside = iter([(start, stop) for start, stop, length in ends if length > 1])
        return [next(inside) if length > 1 else (0, 1) for length in self.page]


def _longer(shape: Sequence[int]) -> list[int]:
    return [length for length in shape if length > 1]


def _position(index: Sequence[int], shape: Sequence[int]) -> int:
    number = 0
    for i, length in zip(index, shape, strict=True):
        number = number * length + i
    return number


def _cut(ends: Range, start: int, length: int) -> tuple[slice, slice]:
    """Return what lies in a range and a segment, counted from the start of each."""
    lower, upper = max(ends[0], start), min(ends[1], start + length)
    return slice(lower - ends[0], upper - ends[0]), slice(lower - start, upper - start)
