"""Pieces of an array, each with the voxels around it that its result depends on. Pure."""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Any

from gpublocks.filters.engines.borders import extended
from gpublocks.filters.parameters import Mode

__all__ = ["Place", "places", "surround"]

Place = tuple[slice, ...]
"""Where a piece lies in its array."""

_SPARED = 8


def places(shape: Sequence[int], halo: Sequence[int], most: int) -> Iterator[Place]:
    """Cut an array into pieces that have no more than so many voxels with those around them.

    The axis that is halved is the one that is the longest for what lies around it; the last one, of
    rows in memory, is spared until it is `_SPARED` times as long. A single voxel may have more.

    Examples
    --------
    >>> list(places((4, 6), (0, 1), 20))
    [(slice(0, 2, None), slice(0, 6, None)), (slice(2, 4, None), slice(0, 6, None))]
    """
    lengths = list(shape)
    weights = [1 / max(reach, 1) for reach in halo]
    weights[-1] /= _SPARED
    while prod(n + 2 * reach for n, reach in zip(lengths, halo, strict=True)) > most:
        axis = max(
            range(len(lengths)), key=lambda axis: (lengths[axis] > 1, lengths[axis] * weights[axis])
        )
        if lengths[axis] < 2:
            break
        lengths[axis] = -(-lengths[axis] // 2)
    parts = [
        [slice(start, min(start + length, size)) for start in range(0, size, length)]
        for size, length in zip(shape, lengths, strict=True)
    ]
    return product(*parts)


def surround(
    target: Any, array: Any, place: Place, halo: Sequence[int], mode: Mode, outside: Any
) -> None:
    """Fill an array with a piece of another one, and `halo` voxels on each side of it.

    Parameters
    ----------
    target : ndarray
        As large as the piece and what is around it.
    array : ndarray
    place : tuple of slice
    halo : sequence of int
    mode : str
        What lies beyond the border of the array (see `gpublocks.filters.engines.borders`).
    outside : scalar
        The value of mode ``'constant'``.
    """
    starts = [part.start - reach for part, reach in zip(place, halo, strict=True)]
    held = [
        slice(max(start, 0), min(start + length, size))
        for start, length, size in zip(starts, target.shape, array.shape, strict=True)
    ]
    inside = [
        slice(part.start - start, part.stop - start)
        for part, start in zip(held, starts, strict=True)
    ]
    target[tuple(inside)] = array[tuple(held)]
    for axis, (start, part) in enumerate(zip(starts, inside, strict=True)):
        length = target.shape[axis]
        if part == slice(0, length):
            continue
        reach = halo[axis]
        indices = extended(array.shape[axis], reach, reach, mode)[start + reach :][:length]
        planes = target.swapaxes(0, axis)
        for z in (*range(part.start), *range(part.stop, length)):
            planes[z] = outside if indices[z] < 0 else planes[indices[z] - start]
