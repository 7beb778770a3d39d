"""Ranks in large windows, of voxels that are small numbers, by histograms that slide. Pure."""

from typing import Any

import numpy as np

from gpublocks.filters.engines.compiled.compiling import compiled

__all__ = ["ranked_along", "ranked_by_columns"]


@compiled
def ranked_along(
    source: Any,
    starts: Any,
    length: int,
    step: int,
    footprint: Any,
    leaving: Any,
    entering: Any,
    rank: int,
    fine: Any,
    shift: int,
    target: Any,
) -> None:
    """Slide a histogram along one axis (T. S. Huang, G. J. Yang, G. Y. Tang, 1979).

    Parameters
    ----------
    source : ndarray of unsigned integers, 1-d
    starts : ndarray of int64
        Voxels where lines begin.
    length : int
        Voxels of a line.
    step : int
        From one of its voxels to the next.
    footprint, leaving, entering : ndarray of int64
        Voxels that are looked at from a voxel; those that are not from the next one, and those that
        are from it only, as seen from the voxel itself.
    rank : int
        From 0 on.
    fine : ndarray of int32
        Zeros, one for each value of a voxel.
    shift : int
        So many bits are left out by the coarse histogram.
    target : ndarray, shape (len(starts), length)
    """
    coarse = np.zeros((len(fine) >> shift) + 1, np.int32)
    bin_ = 1 << shift
    for o in range(len(starts)):
        p = starts[o]
        value: Any = np.int64(source[p])
        below = 0
        for offset in footprint:
            v = np.int64(source[p + offset])
            fine[v] += 1
            coarse[v >> shift] += 1
            below += v < value
        for i in range(length):
            while below > rank:
                if value % bin_ == 0 and below - coarse[(value >> shift) - 1] > rank:
                    value -= bin_
                    below -= coarse[value >> shift]
                else:
                    value -= 1
                    below -= fine[value]
            while below + fine[value] <= rank:
                if value % bin_ == 0 and below + coarse[value >> shift] <= rank:
                    below += coarse[value >> shift]
                    value += bin_
                else:
                    below += fine[value]
                    value += 1
            target[o, i] = value
            if i < length - 1:
                for j in range(len(entering)):
                    v = np.int64(source[p + leaving[j]])
                    fine[v] -= 1
                    coarse[v >> shift] -= 1
                    below -= v < value
                    v = np.int64(source[p + entering[j]])
                    fine[v] += 1
                    coarse[v >> shift] += 1
                    below += v < value
                p += step
        for offset in footprint:
            v = np.int64(source[p + offset])
            fine[v] -= 1
            coarse[v >> shift] -= 1


@compiled
def ranked_by_columns(
    source: Any,
    corners: Any,
    face: Any,
    size: Any,
    step: Any,
    rank: int,
    fine: Any,
    target: Any,
) -> None:
    """Slide histograms of columns along one axis, and their sum along another one.

    The time does not depend on the size of the window along these two. Only the part of the sum
    where the rank lies is made up to date (S. Perreault, P. Hebert, Median filtering in constant
    time, IEEE Transactions on Image Processing 16, 2007).

    Parameters
    ----------
    source : ndarray of unsigned integers, 1-d
    corners : ndarray of int64
        First voxels of the windows of the first voxels of the result, for each of its planes.
    face : ndarray of int64
        Voxels of a window in other planes, as seen from its first voxel.
    size : tuple of two int
        Voxels of a window along the one axis and along the other one.
    step : tuple of two int
        From one voxel to the next along them.
    rank : int
        From 0 on.
    fine : ndarray of unsigned integers, shape (columns, parts, bins)
        Zeros. The histogram of a column in parts, of which each has a power of two bins.
    target : ndarray, shape (len(corners), n, m)
    """
    columns, parts, bins = fine.shape
    coarse = np.zeros((columns, parts), fine.dtype)
    sums = np.zeros((parts + 1, max(parts, bins)), fine.dtype)
    known = np.zeros(parts, np.int64)
    rows = target.shape[1]
    cleared = parts * bins < _CLEARED * len(face) * size[0]
    for o in range(len(corners)):
        for y in range(1 - size[0], rows):
            first = corners[o] + y * step[0]
            ahead = first + (size[0] - 1) * step[0]
            _count(source, ahead, face, step[1], 1, fine, coarse)
            if y >= 0:
                _sweep(fine, coarse, sums, known, size[1], rank, target[o, y])
                _count(source, first, face, step[1], -1, fine, coarse)
        if cleared:
            fine[:] = 0
            coarse[:] = 0
        else:
            for y in range(rows, rows + size[0] - 1):
                _count(source, corners[o] + y * step[0], face, step[1], -1, fine, coarse)


_CLEARED = 16
"""So many bins are cleared in the time that it takes to count one voxel."""


@compiled
def _count(
    source: Any, first: int, face: Any, step: int, change: int, fine: Any, coarse: Any
) -> None:
    """Add the voxels of a row to the histograms of their columns, or take them away."""
    columns, _, bins = fine.shape
    shift = 0
    while 1 << shift < bins:
        shift += 1
    for offset in face:
        at = first + offset
        for x in range(columns):
            v = source[at]
            fine[x, v >> shift, v & (bins - 1)] += change
            coarse[x, v >> shift] += change
            at += step


@compiled
def _sweep(
    fine: Any, coarse: Any, sums: Any, known: Any, size: int, rank: int, target: Any
) -> None:
    """Find the ranks in the sums of so many histograms that follow each other.

    The sums of the parts are up to date for the columns from `known` on; the last row of `sums` has
    the coarse ones.
    """
    parts, bins = fine.shape[1:]
    groups = sums[parts]
    groups[:] = 0
    known[:] = -size
    for x in range(size - 1):
        added = coarse[x]
        for i in range(parts):
            groups[i] += added[i]
    for x in range(len(target)):
        added = coarse[x + size - 1]
        for i in range(parts):
            groups[i] += added[i]
        below = 0
        part = 0
        while below + groups[part] <= rank:
            below += groups[part]
            part += 1
        total = sums[part]
        if 2 * (x - known[part]) > size:
            total[:] = 0
            for column in range(x, x + size):
                added = fine[column, part]
                for i in range(bins):
                    total[i] += added[i]
        else:
            for column in range(known[part], x):
                added, left = fine[column + size, part], fine[column, part]
                for i in range(bins):
                    total[i] += added[i] - left[i]
        known[part] = x
        value = 0
        while below + total[value] <= rank:
            below += total[value]
            value += 1
        target[x] = part * bins + value
        left = coarse[x]
        for i in range(parts):
            groups[i] -= left[i]
