"""Ranks in large windows, of voxels that are small numbers, by histograms that slide. Pure."""

from typing import Any

import numpy as np

from gpublocks.filters.compiled.compiling import compiled

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


_BINS, _SHIFT = 256, 4


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

    The time does not depend on the size of the window along these two (S. Perreault, P. Hebert,
    Median filtering in constant time, IEEE Transactions on Image Processing 16, 2007).

    Parameters
    ----------
    source : ndarray of unsigned integers below 256, 1-d
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
    fine : ndarray of unsigned integers, shape (columns, 256)
        Room for the histograms of columns.
    target : ndarray, shape (len(corners), n, m)
    """
    columns = len(fine)
    coarse = np.zeros((columns, _BINS >> _SHIFT), fine.dtype)
    total = np.zeros(_BINS, fine.dtype)
    groups = np.zeros(_BINS >> _SHIFT, fine.dtype)
    for o in range(len(corners)):
        fine[:] = 0
        coarse[:] = 0
        for y in range(1 - size[0], target.shape[1]):
            last = corners[o] + (y + size[0] - 1) * step[0]
            for offset in face:
                at = last + offset
                for x in range(columns):
                    v = source[at]
                    fine[x, v] += 1
                    coarse[x, v >> _SHIFT] += 1
                    at += step[1]
            if y >= 0:
                _sweep(fine, coarse, total, groups, size[1], rank, target[o, y])
                for offset in face:
                    at = last + offset - (size[0] - 1) * step[0]
                    for x in range(columns):
                        v = source[at]
                        fine[x, v] -= 1
                        coarse[x, v >> _SHIFT] -= 1
                        at += step[1]


@compiled
def _sweep(
    fine: Any, coarse: Any, total: Any, groups: Any, size: int, rank: int, target: Any
) -> None:
    """Find the ranks in the sums of so many histograms that follow each other."""
    total[:] = 0
    groups[:] = 0
    for x in range(len(fine)):
        added, group = fine[x], coarse[x]
        if x < size:
            for i in range(_BINS):
                total[i] += added[i]
            for i in range(_BINS >> _SHIFT):
                groups[i] += group[i]
        else:
            left, behind = fine[x - size], coarse[x - size]
            for i in range(_BINS):
                total[i] += added[i] - left[i]
            for i in range(_BINS >> _SHIFT):
                groups[i] += group[i] - behind[i]
        if x >= size - 1:
            below = 0
            value = 0
            while below + groups[value] <= rank:
                below += groups[value]
                value += 1
            value <<= _SHIFT
            while below + total[value] <= rank:
                below += total[value]
                value += 1
            target[x - size + 1] = value
