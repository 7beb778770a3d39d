"""Arrays as their memory has them: contiguous, seen as rows along one axis. Pure."""

from math import prod
from typing import Any

from gpublocks.arrays import array_namespace

__all__ = ["along", "in_memory_order"]


def in_memory_order(array: Any) -> tuple[Any, bool]:
    """Return an array whose last axis is the fastest, and whether its axes are reversed.

    It is a view of the array, or a copy of one that is contiguous in neither order.
    """
    if array.flags.c_contiguous:
        return array, False
    if array.flags.f_contiguous:
        return array.T, True
    return array_namespace(array).ascontiguousarray(array), False


def along(array: Any, axis: int) -> Any:
    """Return a contiguous array as one of three axes, of which the middle one is `axis`."""
    shape = array.shape
    return array.reshape(prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :]))
