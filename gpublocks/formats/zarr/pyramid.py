"""Coarser levels of an image: half as many voxels along some axes. Pure, but for what it is given.

Each level is made of the one below it, piece by piece.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice, product
from math import lcm, prod
from typing import Any, Literal

import numpy as np

from gpublocks.contracts import Array
from gpublocks.geometry import Region

__all__ = ["Method", "coarser_tasks", "even_unit", "factors_of", "shrunk", "task_bytes"]

Method = Literal["mean", "nearest"]

_BATCH = 1024


def factors_of(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """Return how many voxels become one along each axis: two of those named, if there are two.

    Examples
    --------
    >>> factors_of((3, 1, 50), (0, 1))
    (2, 1, 1)
    """
    return tuple([2 if axis in axes and n > 1 else 1 for axis, n in enumerate(shape)])


def even_unit(unit: Sequence[int], factors: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """Return the least multiple of a unit at whose borders whole voxels of the next level end.

    Examples
    --------
    >>> even_unit((1, 8, 5), (2, 2, 2), (20, 20, 5))
    (2, 8, 5)
    """
    both = zip(unit, factors, shape, strict=True)
    return tuple([lcm(n, f) if n < whole else n for n, f, whole in both])


def shrunk(voxels: Array, factors: Sequence[int], method: Method) -> Array:
    """Return an array of which each voxel stands for some of another one.

    Parameters
    ----------
    voxels : ndarray
    factors : sequence of int
        One or two voxels become one, along each axis; at an odd end one does.
    method : {'mean', 'nearest'}
        Their mean, that of integers rounded, halves up; or the first of them, for labels.

    Examples
    --------
    >>> shrunk(np.array([1, 2, 9], np.uint8), [2], "mean")
    array([2, 9], dtype=uint8)
    """
    if method == "nearest":
        return voxels[tuple([slice(None, None, factor) for factor in factors])]
    dtype, count = voxels.dtype, prod(factors)
    if dtype.kind in "fc":
        wide = np.result_type(dtype, np.float32)
        mean: Array = _summed(voxels, factors, wide) / wide.type(count)
        return mean.astype(dtype, copy=False)
    if dtype.itemsize < 8:
        total = _summed(voxels, factors, np.dtype(np.int64 if dtype.itemsize == 4 else np.int32))
        rounded: Array = (total + count // 2) // count
        return rounded.astype(dtype)
    # The sum of the quotients and of the remainders is exact where that of the voxels overflows.
    whole, rest = np.divmod(voxels, dtype.type(count))
    total = _summed(rest, factors, dtype) + dtype.type(count // 2)
    exact: Array = _summed(whole, factors, dtype) + total // dtype.type(count)
    return exact


def _summed(voxels: Array, factors: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """Return sums over neighbours; at an odd end the last voxel counts twice."""
    for axis in range(voxels.ndim):
        if factors[axis] == 1:
            continue
        first = (slice(None),) * axis
        even, odd = voxels[(*first, slice(None, None, 2))], voxels[(*first, slice(1, None, 2))]
        sums = even.astype(dtype)
        sums[(*first, slice(odd.shape[axis]))] += odd
        if odd.shape[axis] < even.shape[axis]:
            sums[(*first, slice(-1, None))] *= dtype.type(2)
        voxels = sums
    return voxels.astype(dtype, copy=False)


def task_bytes(finer: Any, coarser: Any, factors: Sequence[int]) -> int:
    """Return about how many bytes a task of `coarser_tasks` takes."""
    itemsize, unit = coarser.dtype.itemsize, prod(coarser.unit)
    read = prod(_step(finer, coarser, factors)) * prod(factors)
    # What is read and its sums; a unit as it is gathered, put in order, and encoded.
    return int(read * (itemsize + 8) + 3 * unit * itemsize)


def coarser_tasks(
    finer: Any, coarser: Any, factors: Sequence[int], method: Method
) -> Iterator[list[Callable[[], None]]]:
    """Return batches of tasks that together fill a level from the one below it.

    Each writes one unit of `coarser`, so that they may be done at once. What a task holds in memory
    is that unit, and about a piece of the level below.

    Parameters
    ----------
    finer, coarser : Source and Sink
        With ``unit`` and ``read_unit``, unless voxels of the finer one stand alone.
    factors : sequence of int
        How many voxels become one along each axis: ones to copy them.
    """
    tasks: Iterator[Callable[[], None]] = (
        partial(_fill, finer, coarser, factors, method, region)
        for region in _boxes(Region.whole(coarser.shape), coarser.unit)
    )
    while batch := list(islice(tasks, _BATCH)):
        yield batch


def _fill(finer: Any, coarser: Any, factors: Sequence[int], method: Method, region: Region) -> None:
    voxels = np.empty(region.shape, coarser.dtype, coarser.order)
    for piece in _boxes(region, _step(finer, coarser, factors)):
        start = tuple([lo * f for lo, f in zip(piece.start, factors, strict=True)])
        stop = [hi * f for hi, f in zip(piece.stop, factors, strict=True)]
        stop = list(map(min, stop, finer.shape))
        voxels[piece.within(region).slices] = shrunk(
            finer.read(Region(start, tuple(stop))), factors, method
        )
    coarser.write(region, voxels)


def _step(finer: Any, coarser: Any, factors: Sequence[int]) -> list[int]:
    """Return how many voxels are made at a time, along each axis: of whole pieces below them."""
    below = getattr(finer, "read_unit", coarser.read_unit)
    return [n // f if n % f == 0 else n for n, f in zip(below, factors, strict=True)]


def _boxes(region: Region, unit: Sequence[int]) -> Iterator[Region]:
    """Cut a region that begins with a unit into units."""
    starts = [range(lo, hi, n) for lo, hi, n in zip(region.start, region.stop, unit, strict=True)]
    for start in product(*starts):
        stop = [lo + n for lo, n in zip(start, unit, strict=True)]
        yield Region(start, tuple(map(min, stop, region.stop)))
