"""Pieces of an array, continued beyond the borders of one axis, that windows are run over. Pure.

A sheet is a row of memory that holds a piece of an array as it lies there, so that voxels which
follow each other along the axis are always as far apart. What is done to one voxel is done to all
of a sheet at once, which compilers turn into vector instructions; what comes out of voxels at the
end of a line and the begin of the next one is not used.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from gpublocks.filters.engines.compiled.compiling import compiled

__all__ = ["layout", "load", "pieces", "room"]

_SHEET_BYTES = 1 << 20
"""Two or three sheets are to stay in the cache."""

_ROW_BYTES = 256, 4096
"""What is taken side by side of memory, at least and at most. Measured: rows of 4 kB take half of
the time of rows of 256 bytes, longer ones as long."""

_LINES_BYTES = 1 << 14
"""Lines along the fastest axis that are done at once; they begin and end in the first cache."""


def pieces(
    shape: tuple[int, ...], stretch: int, itemsize: int
) -> tuple[npt.NDArray[np.int64], tuple[int, ...], bool]:
    """Cut an array of three axes into pieces for windows along the middle one.

    Parameters
    ----------
    shape : tuple of int
    stretch : int
        Voxels of the axis and of what continues it.
    itemsize : int
        Bytes of a voxel in a sheet.

    Returns
    -------
    pieces : ndarray of int64, shape (n, 5)
        Of each the index on the first axis, and begin and end on the other two.
    shape : tuple of int
        That of the array to take them from: the axis comes last where it is the fastest.
    fastest : bool
    """
    outer, length, inner = shape
    if inner == 1:
        lines = max(1, _LINES_BYTES // (stretch * itemsize))
        first = np.arange(0, outer, lines)
        found = np.zeros((len(first), 5), np.int64)
        found[:, 1], found[:, 2], found[:, 4] = first, np.minimum(first + lines, outer), length
        return found, (1, outer, length), True
    least, most = _ROW_BYTES
    row = max(1, max(least, min(most, _SHEET_BYTES // stretch)) // itemsize)
    index, start = np.indices((outer, -(-inner // row))).reshape(2, -1)
    found = np.zeros((len(index), 5), np.int64)
    found[:, 0], found[:, 2] = index, length
    found[:, 3], found[:, 4] = start * row, np.minimum(start * row + row, inner)
    return found, shape, False


@compiled
def room(boxes: Any, stretch: int, fastest: bool) -> int:
    """Return the voxels of the largest sheet."""
    count: int = layout(boxes[0], stretch, fastest)[0]
    return count


@compiled
def layout(box: Any, stretch: int, fastest: bool) -> Any:
    """Return the voxels of a sheet, how far apart neighbours are, and how far apart rows are.

    Rows are those of the target, of which the first one begins where the sheet does.
    """
    _, first, stop, start, end = box
    if fastest:
        return stretch * (stop - first), 1, stretch
    return stretch * (end - start), end - start, end - start


@compiled
def load(
    source: Any, box: Any, indices: Any, before: int, beyond: Any, fastest: bool, sheet: Any
) -> None:
    """Fill a sheet.

    Parameters
    ----------
    source : ndarray of three axes
    box : ndarray of int, shape (5,)
        One of `pieces`.
    indices : ndarray of int, shape (stretch,)
        Voxels of the axis, those that stand for what is beyond included.
    before : int
        How many of them are before its begin.
    beyond : number
        Value of negative indices.
    """
    o, first, stop, start, end = box
    stretch = len(indices)
    if fastest:
        for r in range(stop - first):
            row = sheet[r * stretch : (r + 1) * stretch]
            voxels = source[o, first + r]
            for i in range(before):
                row[i] = beyond if indices[i] < 0 else voxels[indices[i]]
            for i in range(before + end, stretch):
                row[i] = beyond if indices[i] < 0 else voxels[indices[i]]
            _copy(voxels, row[before:], end)
    else:
        n = end - start
        for z in range(stretch):
            row = sheet[z * n : (z + 1) * n]
            if indices[z] < 0:
                row[:] = beyond
            else:
                _copy(source[o, indices[z], start:end], row, n)


@compiled
def _copy(voxels: Any, row: Any, n: int) -> None:
    for i in range(n):
        row[i] = voxels[i]
