"""Weighted sums along axes, one pass after the other: the same numbers from every engine. Pure."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gpublocks.arrays import array_namespace
from gpublocks.contracts import DType
from gpublocks.filters.dtypes import converted, limits, wide
from gpublocks.filters.engines import engine_of
from gpublocks.filters.launching import MODES, launch
from gpublocks.filters.layouts import along, in_memory_order
from gpublocks.filters.parameters import Border

__all__ = ["Weights", "correlate", "correlation_bytes"]

Weights = npt.NDArray[np.float64]
"""Weights of the voxels from ``len // 2`` before one on."""


def correlate(array: Any, weights: Mapping[int, Weights], border: Border, dtype: DType) -> Any:
    """Return weighted sums along some axes, in their order.

    Each sum is taken in float64 and in a fixed order: symmetric weights multiply the sum of their
    two voxels, from the outermost pair inwards (as ``ni_filters.c`` of SciPy does). What goes from
    one pass to the next is rounded to `wide`, and the last sum to `dtype`. Thus all engines give
    the same voxels, whole and in blocks; those of SciPy but for the rounding of integers, which it
    cuts off after each pass.

    Parameters
    ----------
    array : ndarray of real numbers
    weights : mapping of int to ndarray
        Weights for each axis, which is not negative; without any, the array is converted.
    border : Border
    dtype : numpy.dtype
        Type of the result. Integers are the nearest ones, and limited to what the type holds.
    """
    if not weights:
        return converted(array.copy("K"), dtype)
    between = wide(array.dtype)
    source, flipped = in_memory_order(array)
    if source.dtype == np.float16:
        source = source.astype(between)
    last = max(weights)
    for axis in sorted(weights):
        kept = dtype if axis == last and _stored(dtype) else between
        target = array_namespace(array).empty(source.shape, kept)
        place = source.ndim - 1 - axis if flipped else axis
        _correlate_along(along(source, place), along(target, place), weights[axis], border)
        source = target
    result = converted(source, dtype)
    return result.T if flipped else result


def correlation_bytes(dtype: DType, result: DType, axes: int = 3) -> float:
    """Return the bytes per voxel that `correlate` takes over so many axes at most."""
    between = wide(dtype).itemsize
    if not _stored(result):
        return 2 * between + result.itemsize
    return max(between * min(2, axes - 1), between * (axes > 1) + result.itemsize)


def _stored(dtype: DType) -> bool:
    """Tell whether engines round to a type by themselves."""
    return dtype.kind in "iu" or dtype in (np.float32, np.float64)


def _correlate_along(source: Any, target: Any, weights: Weights, border: Border) -> None:
    """Correlate the middle one of three axes."""
    engine = engine_of(source)
    if engine == "cuda":
        _correlate_on_device(source, target, weights, border)
    elif engine == "numba":
        from gpublocks.filters.compiled.correlations import correlate_axis

        correlate_axis(source, target, weights, _symmetry(weights), border)
    else:
        from scipy import ndimage

        mode, cval = border
        kept = target if target.dtype.kind == "f" else np.empty(target.shape)
        ndimage.correlate1d(source, weights, 1, kept, mode, cval)
        if kept is not target:
            target[...] = converted(kept, target.dtype)


def _correlate_on_device(source: Any, target: Any, weights: Weights, border: Border) -> None:
    mode, cval = border
    whole = target.dtype.kind in "iu"
    low, high = limits(target.dtype) if whole else (0.0, 0.0)
    launch(
        "correlate",
        {"Source": source, "Target": target},
        target.size,
        np.int64(source.shape[1]),
        np.int64(source.shape[2]),
        array_namespace(source).asarray(weights),
        len(weights),
        _symmetry(weights),
        MODES[mode],
        cval,
        whole,
        low,
        high,
    )


def _symmetry(weights: Weights) -> int:
    """Return 1 for symmetric weights, -1 for antisymmetric ones, else 0."""
    if len(weights) % 2 == 0:
        return 0
    eps = np.finfo(np.float64).eps
    if np.all(np.abs(weights - weights[::-1]) <= eps):
        return 1
    return -1 if np.all(np.abs(weights + weights[::-1])[: len(weights) // 2] <= eps) else 0
