"""Weighted sums along one axis. Pure.

A row is what lies side by side in memory: voxels that do not follow each other along the axis, or
the axis itself where it is the fastest. Sums are taken for a whole row at once, which compilers
turn into vector instructions; the order of the sum of one voxel stays that of
`gpublocks.filters.correlating`.
"""

from typing import Any

import numpy as np

from gpublocks.filters.borders import extended
from gpublocks.filters.compiled.compiling import compiled
from gpublocks.filters.dtypes import limits
from gpublocks.filters.parameters import Border

__all__ = ["correlate_axis"]

_TILE = 512
"""Voxels of a row that are done at once: seventeen rows of float64 are 70 kB, in the level-2 cache.
Measured: shorter ones are up to two times slower, longer ones as fast."""


def correlate_axis(source: Any, target: Any, weights: Any, symmetry: int, border: Border) -> None:
    """Correlate the middle one of three axes.

    Parameters
    ----------
    source, target : ndarray, contiguous, of integers, truth values, float32 or float64
    weights : ndarray of float64
    symmetry : {-1, 0, 1}
    border : Border
    """
    mode, cval = border
    before = len(weights) // 2
    indices = extended(source.shape[1], before, len(weights) - 1 - before, mode)
    whole = target.dtype.kind in "iu"
    low, high = limits(target.dtype) if whole else (0.0, 0.0)
    if source.dtype == np.bool_:
        source = source.view(np.uint8)
    if source.shape[2] == 1:
        _fastest(
            source[:, :, 0], target[:, :, 0], weights, symmetry, indices, cval, whole, low, high
        )
    else:
        tile = min(_TILE, source.shape[2])
        _slower(source, target, weights, symmetry, indices, cval, tile, whole, low, high)


@compiled
def _slower(
    source: Any,
    target: Any,
    weights: Any,
    symmetry: int,
    indices: Any,
    cval: float,
    tile: int,
    whole: bool,
    low: float,
    high: float,
) -> None:
    outer, length, inner = source.shape
    size = len(weights)
    ring = np.empty((size, tile))
    total = np.empty(tile)
    for o in range(outer):
        for start in range(0, inner, tile):
            n = min(tile, inner - start)
            for z in range(1 - size, length):
                row = ring[(z + size - 1) % size]
                index = indices[z + size - 1]
                if index < 0:
                    row[:n] = cval
                else:
                    voxels = source[o, index, start : start + n]
                    for i in range(n):
                        row[i] = voxels[i]
                if z >= 0:
                    _sum_rows(ring, z, weights, symmetry, total, n)
                    _store(total, target[o, z, start : start + n], n, whole, low, high)


@compiled
def _sum_rows(ring: Any, z: int, weights: Any, symmetry: int, total: Any, n: int) -> None:
    """Sum rows of a ring, of which number `z` comes first."""
    size = len(weights)
    middle = size // 2
    if symmetry == 0:
        _begin(ring[(z + size - 1) % size], weights[size - 1], total, n)
        for k in range(size - 1):
            _add(ring[(z + k) % size], weights[k], total, n)
    else:
        _begin(ring[(z + middle) % size], weights[middle], total, n)
        for k in range(middle):
            _add_pair(
                ring[(z + k) % size],
                ring[(z + size - 1 - k) % size],
                weights[k],
                symmetry,
                total,
                n,
            )


@compiled
def _fastest(
    source: Any,
    target: Any,
    weights: Any,
    symmetry: int,
    indices: Any,
    cval: float,
    whole: bool,
    low: float,
    high: float,
) -> None:
    rows, length = source.shape
    size = len(weights)
    middle = size // 2
    row = np.empty(length + size - 1)
    total = np.empty(length)
    for r in range(rows):
        for i in range(middle):
            row[i] = cval if indices[i] < 0 else source[r, indices[i]]
        voxels = source[r]
        for i in range(length):
            row[middle + i] = voxels[i]
        for i in range(middle + length, length + size - 1):
            row[i] = cval if indices[i] < 0 else source[r, indices[i]]
        if symmetry == 0:
            _begin(row[size - 1 :], weights[size - 1], total, length)
            for k in range(size - 1):
                _add(row[k:], weights[k], total, length)
        else:
            _begin(row[middle:], weights[middle], total, length)
            for k in range(middle):
                _add_pair(row[k:], row[size - 1 - k :], weights[k], symmetry, total, length)
        _store(total, target[r], length, whole, low, high)


@compiled
def _begin(row: Any, weight: float, total: Any, n: int) -> None:
    for i in range(n):
        total[i] = row[i] * weight


@compiled
def _add(row: Any, weight: float, total: Any, n: int) -> None:
    for i in range(n):
        total[i] += row[i] * weight


@compiled
def _add_pair(first: Any, second: Any, weight: float, symmetry: int, total: Any, n: int) -> None:
    if symmetry > 0:
        for i in range(n):
            total[i] += (first[i] + second[i]) * weight
    else:
        for i in range(n):
            total[i] += (first[i] - second[i]) * weight


@compiled
def _store(total: Any, target: Any, n: int, whole: bool, low: float, high: float) -> None:
    """Round sums to the type of the target."""
    if whole:
        for i in range(n):
            value = np.rint(total[i])
            value = 0.0 if np.isnan(value) else min(max(value, low), high)
            target[i] = value
    else:
        for i in range(n):
            target[i] = total[i]
