"""Minima, maxima and means of boxes, axis by axis: the same voxels from every engine. Pure.

What a voxel gets depends on its own window alone: NaN and infinities stay within it, and it does
not matter where a block begins.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from gpublocks.arrays import array_namespace
from gpublocks.contracts import DType
from gpublocks.filters.dtypes import comparable, converted, limits, restored, stored, wide
from gpublocks.filters.engines.choice import engine_of
from gpublocks.filters.engines.launching import MODES, launch
from gpublocks.filters.engines.layouts import along, in_memory_order
from gpublocks.filters.parameters import Border, Mode, Span

__all__ = ["around", "extremes", "mean_bytes", "means"]


def around(size: int) -> Span:
    """Return the span of a window of so many voxels, which begins ``size // 2`` before its own."""
    return size // 2, size - 1 - size // 2


def extremes(
    array: Any, spans: Sequence[Span], border: Border, *, most: bool, reuse: bool = False
) -> Any:
    """Return the minimum or the maximum of a box around each voxel.

    Where a window has a NaN, its extreme is NaN. Which one of 0.0 and -0.0 is the lower one is
    left open.

    Parameters
    ----------
    array : ndarray of real numbers
    spans : sequence of Span
        One for each axis.
    border : Border
    most : bool
        Whether to find maxima.
    reuse : bool
        Whether the array may be overwritten, and returned.
    """
    axes = [axis for axis, span in enumerate(spans) if any(span)]
    if not axes or not array.size:
        return array if reuse else array.copy("K")
    given, flipped = in_memory_order(array)
    source, beyond = comparable(given, border[1])
    places = [array.ndim - 1 - axis if flipped else axis for axis in axes]
    listed = spans[::-1] if flipped else spans
    owned, spare = reuse, None
    for place in places:
        target = _target(source, source.dtype, owned, spare)
        lines = along(source, place), along(target, place)
        _extremes_along(*lines, listed[place], border[0], beyond, most)
        spare = source if owned else None
        source, owned = target, True
    found = restored(source, array.dtype)
    return found.T if flipped else found


def means(array: Any, sizes: Sequence[int], border: Border, dtype: DType) -> Any:
    """Return the mean of a box around each voxel.

    Integers are summed over all axes and divided once, so that the result is the nearest one of the
    mean, halves to even: in 32 bits, or in float64 where these may not hold a sum, which is exact
    up to 2^52 (quotients of larger ones may round to a half that they are not).
    Floats are summed in float64 and divided along one axis after the other, and kept as `wide` says
    in between, as `scipy.ndimage.uniform_filter` does. A sum is taken in an order of its own:
    the window is cut into stretches whose lengths are powers of two, the shortest first; each
    stretch is the sum of its halves, and the stretches are added one after the other.

    Parameters
    ----------
    array : ndarray of real numbers
    sizes : sequence of int
        Voxels of the box along each axis; it begins ``size // 2`` before its own.
    border : Border
    dtype : numpy.dtype
        Type of the result. Integers are the nearest ones, and limited to what the type holds.
    """
    axes = [axis for axis, size in enumerate(sizes) if size > 1]
    if not axes or not array.size:
        return converted(array.copy("K"), dtype)
    total, between = _types(array.dtype, prod(sizes), border)
    source, flipped = in_memory_order(array)
    source = source.astype(between) if source.dtype == np.float16 else source
    source = source.view(np.uint8) if source.dtype == np.bool_ else source
    owned, spare, stands = False, None, 1
    for axis in axes:
        last = axis == axes[-1]
        kept = between
        if last:
            kept = dtype if stored(dtype) else wide(array.dtype)
        beyond = np.array([border[1] * stands]).astype(total)
        if array.dtype.kind == "f":
            divisor = sizes[axis]
        else:
            stands *= sizes[axis]
            divisor = stands if last else 1
        target = _target(source, kept, owned, spare)
        place = array.ndim - 1 - axis if flipped else axis
        lines = along(source, place), along(target, place)
        _sums_along(*lines, around(sizes[axis]), border[0], beyond, divisor)
        spare = source if owned else None
        source, owned = target, True
    result = converted(source, dtype)
    return result.T if flipped else result


def mean_bytes(dtype: DType, result: DType, sizes: Sequence[int], border: Border) -> float:
    """Return the bytes per voxel that `means` takes at most."""
    _, between = _types(dtype, prod(sizes), border)
    axes = sum(size > 1 for size in sizes)
    if result == between and dtype.kind == "f":
        return between.itemsize * min(2, max(1, axes))
    last = result.itemsize if stored(result) else wide(dtype).itemsize + result.itemsize
    copied = between.itemsize if dtype == np.float16 and axes == 1 else 0
    return between.itemsize * min(2, max(0, axes - 1)) + copied + last


def _types(dtype: DType, count: int, border: Border) -> tuple[DType, DType]:
    """Return the type that sums of so many voxels are taken in, and the one kept between axes."""
    if dtype.kind == "f":
        return np.dtype(np.float64), wide(dtype)
    mode, cval = border
    low, high = (0.0, 1.0) if dtype.kind == "b" else limits(dtype)
    if mode == "constant":
        low, high = min(low, cval), max(high, cval)
    for kind in (np.uint32, np.int32):
        least, most = limits(np.dtype(kind))
        if least <= low * count and high * count <= most and cval == int(cval):
            return np.dtype(kind), np.dtype(kind)
    return np.dtype(np.float64), np.dtype(np.float64)


def _target(source: Any, dtype: DType, owned: bool, spare: Any) -> Any:
    """Return where a pass puts its result: into its source if it may, or an array that is free."""
    if owned and source.dtype == dtype and engine_of(source) != "cuda":
        return source
    if spare is not None and spare is not source and spare.dtype == dtype:
        return spare
    return array_namespace(source).empty(source.shape, dtype)


def _extremes_along(
    source: Any, target: Any, span: Span, mode: Mode, beyond: Any, most: bool
) -> None:
    engine = engine_of(source)
    if engine == "cuda":
        arrays = {"Source": source, "Target": target}
        launch("extremes", arrays, target.size, *_line(source, span, mode, beyond), most)
    elif engine == "numba":
        from gpublocks.filters.engines.compiled.extremes import extremes_along

        extremes_along(source, target, span, mode, beyond, most)
    else:
        from gpublocks.filters.engines.shifted import extremes_along

        extremes_along(source, target, span, mode, beyond, most)


def _sums_along(
    source: Any, target: Any, span: Span, mode: Mode, beyond: Any, divisor: int
) -> None:
    engine = engine_of(source)
    if engine == "cuda":
        whole = target.dtype.kind in "iu"
        low, high = limits(target.dtype) if whole else (0.0, 0.0)
        launch(
            "sums",
            {"Source": source, "Target": target},
            target.size,
            *_line(source, span, mode, beyond),
            beyond.dtype.kind != "f",
            float(divisor),
            whole,
            low,
            high,
        )
    elif engine == "numba":
        from gpublocks.filters.engines.compiled.sums import sums_along

        sums_along(source, target, span, mode, beyond, divisor)
    else:
        from gpublocks.filters.engines.shifted import sums_along

        sums_along(source, target, span, mode, beyond, divisor)


def _line(source: Any, span: Span, mode: Mode, beyond: Any) -> tuple[Any, ...]:
    """Return what kernels of CUDA are told of an axis and of windows along it."""
    _, length, inner = map(np.int64, source.shape)
    return length, inner, span[0], sum(span) + 1, MODES[mode], float(beyond[0])
