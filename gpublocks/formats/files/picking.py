"""What ``source[...]`` is where voxels are read and written box by box. Pure."""

from typing import Any

import numpy as np

from gpublocks.contracts import Array, Source
from gpublocks.errors import PlanError
from gpublocks.geometry import Region
from gpublocks.slicing import Slicing, simplify, slicing_within

__all__ = ["enclosing", "source_getitem", "source_setitem", "target"]


def target(source: Source, region: Region, out: Array | None) -> Array:
    """Return the array that a region is read into, or written from: `out`, or a new one.

    Raises
    ------
    PlanError
        If the region leaves the source, or is not of the shape of `out`.
    """
    inside = Region.whole(source.shape).contains(region)
    if not inside or (out is not None and out.shape != region.shape):
        given = "" if out is None else f" an array of shape {out.shape}"
        raise PlanError(f"region {region.start} to {region.stop} of {source!r} does not fit{given}")
    return np.empty(region.shape, source.dtype, source.order) if out is None else out


def enclosing(slicing: Any, shape: tuple[int, ...]) -> tuple[Region, Slicing]:
    """Return the smallest box that holds a slicing of an array, and the slicing of that box.

    Examples
    --------
    >>> enclosing((3, slice(8, 2, -2)), (5, 10))
    (Region(start=(3, 4), stop=(4, 9)), (0, slice(None, None, -2)))
    """
    parts = simplify(slicing, shape)
    start, stop = [], []
    for part, length in zip(parts, shape, strict=True):
        seen: Any = range(*part.indices(length)) if isinstance(part, slice) else np.ravel(part)
        start.append(int(min(seen)) if len(seen) else 0)
        stop.append(int(max(seen)) + 1 if len(seen) else 0)
    region = Region(tuple(start), tuple(stop))
    return region, slicing_within(parts, shape, region.slices)


def source_getitem(source: Any, slicing: Any) -> Any:
    """Return what NumPy would for ``source[slicing]``, as a copy."""
    region, rest = enclosing(slicing, source.shape)
    return source.read(region)[rest]


def source_setitem(sink: Any, slicing: Any, value: Any) -> None:
    """Do what NumPy would for ``sink[slicing] = value``."""
    region, rest = enclosing(slicing, sink.shape)
    box = sink.read(region)
    box[rest] = value
    sink.write(region, box)
