"""Voxels in memory: boxes of arrays, and what sources tell of themselves. Pure.

The formats of `gpublocks.io` have these functions in common; those that begin with ``source_``,
and `single_units`, become methods of theirs.
"""

from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gpublocks.errors import PlanError
from gpublocks.geometry import Region

__all__ = [
    "array_at",
    "byte_range",
    "memory_order",
    "put",
    "single_units",
    "source_array",
    "source_info",
    "source_len",
    "source_ndim",
    "source_size",
    "source_text",
    "take",
]

Array = npt.NDArray[Any]


def memory_order(array: Array) -> Literal["C", "F"]:
    """Return ``'F'`` if the first axis of an array varies faster than its last, else ``'C'``."""
    strides = [abs(s) for n, s in zip(array.shape, array.strides, strict=True) if n > 1]
    return "F" if array.size and len(strides) > 1 and strides[0] < strides[-1] else "C"


def byte_range(array: Array) -> tuple[int, int]:
    """Return the addresses of the first byte of an array and the one after its last."""
    if not array.size:
        return 0, 0
    first = array.__array_interface__["data"][0]
    steps = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
    low, high = sum(min(0, step) for step in steps), sum(max(0, step) for step in steps)
    return first + low, first + high + array.itemsize


def take(array: Array, region: Region, order: Literal["C", "F"], out: Array | None) -> Array:
    """Return a copy of a region of an array.

    Raises
    ------
    PlanError
        If the region leaves the array, or is not of the shape of `out`.
    """
    view = array[region.slices]
    if view.shape != (region.shape if out is None else out.shape):
        raise PlanError(
            f"region {region.start} to {region.stop} of an array of shape {array.shape} "
            f"does not fit{'' if out is None else f' an array of shape {out.shape}'}"
        )
    if out is None:
        return view.copy(order)
    np.copyto(out, view, casting="unsafe")
    return out


def put(array: Array, region: Region, values: Array) -> None:
    """Assign values of the same shape to a region of an array.

    Raises
    ------
    PlanError
        If the shapes differ: nothing is broadcast.
    """
    view = array[region.slices]
    if view.shape != values.shape:
        raise PlanError(
            f"an array of shape {values.shape} does not fit region {region.start} to "
            f"{region.stop} of an array of shape {array.shape}"
        )
    view[...] = values


def array_at(
    buffer: Any,
    offset: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    order: Literal["C", "F"],
) -> Array:
    """Return the array that begins at a byte of a buffer. Nothing is copied."""
    return np.ndarray(shape, dtype, buffer, offset, order=order)


def single_units(sink: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> list[tuple[int, ...]]:
    """Return the write units of a new sink in which voxels stand alone: ones."""
    return [(1,) * len(shape)]


def source_ndim(source: Any) -> int:
    """Return the number of axes."""
    return len(source.shape)


def source_size(source: Any) -> int:
    """Return the number of voxels."""
    return prod(source.shape)


def source_len(source: Any) -> int:
    """Return the length of the first axis."""
    return int(source.shape[0])


def source_text(source: Any) -> str:
    """Return what a source is: ``'Numpy-Source(50, 100, 200)[float64]|F|'``."""
    return f"{source.name}{source.shape}[{source.dtype}]|{source.order}|"


def source_info(source: Any, short: bool = True) -> str:
    """Return what a source is, and unless `short` where it lies."""
    place = "" if short or source.location is None else f"{{{source.location}}}"
    return source_text(source) + place


def source_array(source: Any, dtype: Any = None, copy: bool | None = None) -> Array:
    """Return the voxels as an array: a view where they lie in memory or a map, else a copy."""
    array: Any = getattr(source, "array", None)
    in_memory = isinstance(array, np.ndarray)
    if copy is False and not (in_memory and (dtype is None or dtype == array.dtype)):
        kind = "" if dtype is None else f" of {np.dtype(dtype)}"
        raise ValueError(f"{source!r} cannot be an array{kind} without a copy; use copy=None")
    if not in_memory:
        array, copy = source.read(Region.whole(source.shape)), None
    # Not np.array(copy=copy): None means 'if needed' since NumPy 2 only, where False raises.
    return np.array(array, dtype=dtype) if copy else np.asarray(array, dtype=dtype)
