"""Arrays as their memory has them: contiguous, seen as rows along one axis. Pure."""

from collections.abc import Iterator
from math import prod
from typing import Any

from gpublocks.arrays import array_namespace

__all__ = ["along", "in_memory_order", "parts_along"]

_AT_ONCE = 1 << 15
"""Voxels of a part."""


def in_memory_order(array: Any) -> tuple[Any, bool]:
    """Return an array whose last axis is the fastest, and whether its axes are reversed.

    It is a view of the array, or a copy of one that is contiguous in neither order.
    """
    if array.flags.c_contiguous:
        return array, False
    if array.flags.f_contiguous:
        return array.T, True
    return array_namespace(array).ascontiguousarray(array), False


def parts_along(shape: tuple[int, int, int]) -> Iterator[tuple[slice, slice, slice]]:
    """Yield parts of an array of three axes that have few voxels, whole along the middle one.

    NumPy and SciPy hold several arrays of floats at once, which are of a part then.

    Examples
    --------
    >>> [part[2] for part in parts_along((1, 1 << 14, 3))]
    [slice(0, 2, None), slice(2, 4, None)]
    """
    outer, length, inner = shape
    columns = min(inner, max(1, _AT_ONCE // length))
    rows = max(1, _AT_ONCE // (length * columns))
    for row in range(0, outer, rows):
        for column in range(0, inner, columns):
            yield slice(row, row + rows), slice(None), slice(column, column + columns)


def along(array: Any, axis: int) -> Any:
    """Return a contiguous array as one of three axes, of which the middle one is `axis`."""
    shape = array.shape
    return array.reshape(prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :]))
