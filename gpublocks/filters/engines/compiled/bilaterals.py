"""Means of neighbours that are weighted by how far and how different they are. Pure.

Exponentials are those of `gpublocks.filters.denoising`. All loops without a branch become vector
instructions.
"""

from typing import Any

import numpy as np

from gpublocks.filters.engines.compiled.compiling import compiled

__all__ = ["bilateral_rows"]


@compiled
def bilateral_rows(
    source: Any,
    target: Any,
    lengths: Any,
    sizes: Any,
    tables: Any,
    cval: float,
    spatial: Any,
    factor: float,
    most: float,
    whole: bool,
    low: float,
    high: float,
) -> None:
    """Filter rows of voxels that lie side by side in memory.

    Parameters
    ----------
    source, target : ndarray, shape (rows, n), contiguous, of integers, float32 or float64
    lengths, sizes : ndarray of int64, shape (axes,)
        Of the array and of the window, along each axis.
    tables : ndarray of int64, shape (axes, any)
        Which voxels of an axis stand for those from ``size // 2`` before its begin on; negative
        for the constant.
    cval : float
    spatial : ndarray of float64, shape (rows of the window, its last size)
        Weights of places.
    factor, most : float
        What squares of differences are multiplied by, and from where on they have no weight.
    whole : bool
        Whether the target is of integers, from `low` to `high`.
    """
    count, n = source.shape
    last = len(lengths) - 1
    size = sizes[last]
    before = size // 2
    row = np.empty(n + size - 1)
    centre, total, weights = np.empty(n), np.empty(n), np.empty(n)
    for r in range(count):
        for i in range(n):
            centre[i] = source[r, i]
        total[:] = 0
        weights[:] = 0
        for k in range(spatial.shape[0]):
            found = _row_at(r, k, lengths, sizes, tables)
            _extend(source, found, tables[last], cval, before, row)
            for j in range(size):
                _add(row[j:], centre, spatial[k, j], factor, most, total, weights)
        for i in range(n):
            value = total[i] / weights[i]
            if whole:
                value = np.rint(value)
                value = 0.0 if np.isnan(value) else min(max(value, low), high)
            target[r, i] = value


@compiled
def _row_at(row: int, offset: int, lengths: Any, sizes: Any, tables: Any) -> int:
    """Return the row that lies at some offset from another one; -1 beyond a constant border."""
    found = 0
    stride = 1
    for axis in range(len(lengths) - 2, -1, -1):
        place = row % lengths[axis] + offset % sizes[axis]
        row //= lengths[axis]
        offset //= sizes[axis]
        index = tables[axis, place]
        if index < 0:
            return -1
        found += index * stride
        stride *= lengths[axis]
    return found


@compiled
def _extend(source: Any, found: int, table: Any, cval: float, before: int, row: Any) -> None:
    """Copy a row of the array and what lies beyond both of its ends."""
    if found < 0:
        row[:] = cval
        return
    n = source.shape[1]
    voxels = source[found]
    for i in range(before):
        row[i] = cval if table[i] < 0 else voxels[table[i]]
    for i in range(n):
        row[before + i] = voxels[i]
    for i in range(before + n, len(row)):
        row[i] = cval if table[i] < 0 else voxels[table[i]]


@compiled
def _add(
    row: Any, centre: Any, spatial: float, factor: float, most: float, total: Any, weights: Any
) -> None:
    for i in range(len(centre)):
        value = row[i]
        x = (value - centre[i]) * (value - centre[i]) * factor
        counts = x < most
        x = -x if counts else 0.0
        weight = 1 + x * (1 + x * (0.5 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120)))))
        weight *= weight
        weight *= weight
        weight *= weight
        weight *= weight
        weight *= weight
        weight *= weight
        weight *= weight
        weight *= weight
        weight *= weight
        weight *= weight
        weight = weight * spatial if counts else 0.0
        total[i] += weight * (value if counts else 0.0)
        weights[i] += weight
