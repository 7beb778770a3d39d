"""Dividing work: cells into halves with the same voxels, regions into pieces. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import lcm

from gpublocks.contracts import Order
from gpublocks.geometry import Cell, Region

__all__ = ["common_unit", "halves", "pieces"]


def common_unit(units: Iterable[Sequence[int]], ndim: int) -> tuple[int, ...]:
    """Return the least lengths that are multiples of all units, for `ndim` axes.

    Examples
    --------
    >>> common_unit([(4, 1), (6, 1, 2)], 2)
    (12, 1)
    """
    common = [1] * ndim
    for unit in units:
        for axis, length in enumerate(unit[:ndim]):
            common[axis] = lcm(common[axis], length)
    return tuple(common)


def halves(cell: Cell, context: Mapping[int, int], unit: Sequence[int]) -> tuple[Cell, Cell] | None:
    """Cut a cell in two along its longest axis that can be cut.

    Each half reads the context of its own valid range, within what the whole one reads, so that a
    function which looks no further than that gives both the voxels that the whole one has.

    Parameters
    ----------
    context : mapping of int to int
        Voxels to read on each side of a valid range, for each split axis.
    unit : sequence of int
        Valid ranges are cut at multiples of it, for each axis of the array.

    Returns
    -------
    tuple of Cell or None
        None if no cut makes both halves read less.

    Examples
    --------
    >>> cell = Cell(0, (0,), (0,), read=((0, 10),), valid=((0, 9),))
    >>> [(half.read, half.valid) for half in halves(cell, {0: 1}, [1])]
    [(((0, 5),), ((0, 4),)), (((3, 10),), ((4, 9),))]
    """
    lengths = [hi - lo for lo, hi in cell.read]
    for position in sorted(range(len(lengths)), key=lambda p: lengths[p], reverse=True):
        axis = cell.axes[position]
        (read_lo, read_hi), (lo, hi) = cell.read[position], cell.valid[position]
        middle = (lo + hi) // 2 // unit[axis] * unit[axis]
        if middle <= lo:
            middle += unit[axis]
        stop, start = min(middle + context[axis], read_hi), max(middle - context[axis], read_lo)
        if lo < middle < hi and stop < read_hi and start > read_lo:
            return (
                _cut(cell, position, (read_lo, stop), (lo, middle)),
                _cut(cell, position, (start, read_hi), (middle, hi)),
            )
    return None


def _cut(cell: Cell, position: int, read: tuple[int, int], valid: tuple[int, int]) -> Cell:
    return replace(
        cell,
        read=(*cell.read[:position], read, *cell.read[position + 1 :]),
        valid=(*cell.valid[:position], valid, *cell.valid[position + 1 :]),
    )


def pieces(region: Region, size: int, order: Order, unit: Sequence[int]) -> list[Region]:
    """Cut a region into pieces of about the same size: along its slowest axis, then the next.

    Parameters
    ----------
    size : int
        Voxels that a piece should have.
    order : {'C', 'F'}
        Memory order of the array.
    unit : sequence of int
        Pieces begin at multiples of it, for each axis of the array, as far as they are cut.

    Examples
    --------
    >>> [piece.slices for piece in pieces(Region((0, 0), (5, 10)), 20, "C", (2, 1))]
    [(slice(0, 2, None), slice(0, 10, None)), (slice(2, 5, None), slice(0, 10, None))]
    """
    found = [region]
    axes = range(region.ndim)
    for axis in axes if order == "C" else reversed(axes):
        if max(piece.size for piece in found) < 2 * size:
            break
        found = [part for piece in found for part in _slices(piece, axis, size, unit[axis])]
    return found


def _slices(region: Region, axis: int, size: int, unit: int) -> list[Region]:
    """Cut a region along an axis, into pieces of some size as far as that will do."""
    lo, hi = region.start[axis], region.stop[axis]
    count = max(1, min(round(region.size / size), (hi - lo) // unit))
    cuts = [(lo + (hi - lo) * n // count) // unit * unit for n in range(1, count)]
    borders = [lo, *sorted({cut for cut in cuts if lo < cut < hi}), hi]
    return [
        Region(_with(region.start, axis, start), _with(region.stop, axis, stop))
        for start, stop in pairwise(borders)
    ]


def _with(values: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    return (*values[:axis], value, *values[axis + 1 :])
