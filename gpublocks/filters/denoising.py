"""Filters that smooth and keep edges. Pure.

Exponentials of differences are taken the same way by all engines, by sums and products alone: of a
1024th by a polynomial of degree 5, squared ten times. They are right to 1e-8.
"""

from functools import partial
from math import ceil, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from gpublocks.arrays import array_namespace
from gpublocks.contracts import DType
from gpublocks.errors import PlanError
from gpublocks.filters.dtypes import converted, limits, weighted
from gpublocks.filters.engines.borders import extended
from gpublocks.filters.engines.choice import engine_of
from gpublocks.filters.engines.launching import MODES, launch
from gpublocks.filters.engines.layouts import in_memory_order, parts_along
from gpublocks.filters.parameters import (
    Border,
    PerAxis,
    border,
    number,
    reach,
    sigmas,
    sizes,
    spread,
    together,
)
from gpublocks.filters.steps import Step, maker

__all__ = ["bilateral"]

_Floats = npt.NDArray[np.float64]

_PARTS = 1024
"""Two to the power of how often exponentials are squared."""

_MOST = 9.0**2 / 2 / _PARTS
"""Differences of 9 standard deviations, and larger ones, have no weight: it would be 3e-18."""

_AXES = 8
"""Axes that the kernel for GPUs has room for."""


@maker
def bilateral(
    sigma_color: float,
    sigma_spatial: PerAxis = 1.0,
    *,
    size: int | tuple[int, ...] | None = None,
    mode: str = "reflect",
    cval: float = 0.0,
    voxel_size: PerAxis | None = None,
) -> Step:
    """Make a bilateral filter, as `skimage.restoration.denoise_bilateral`, of any number of axes.

    Parameters
    ----------
    sigma_color : float
        Standard deviation of differences between voxels, in the units of their values.
        scikit-image takes that of the volume by default, which no block knows.
    sigma_spatial : float or tuple of float
        Standard deviation of distances in voxels, or in the unit of `voxel_size`, for all axes or
        for each.
    size : int or tuple of int, optional
        Window in voxels, or in the unit of `voxel_size`; ``max(5, 2 * ceil(3 * sigma_spatial) +
        1)`` by default, and 1 along axes of sigma 0.
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`; scikit-image's default is
        ``'constant'``.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    voxel_size : float or tuple of float, optional
        Size of a voxel, in the unit of `sigma_spatial` and `size` (micrometres, say).

    Returns
    -------
    Filter
        The type of voxels stays as it is; truth values become float32.

    Raises
    ------
    ArgumentTypeError, PlanError
        Also for arrays of more than 8 axes.

    Notes
    -----
    Source: C. Tomasi and R. Manduchi, "Bilateral filtering for gray and color images", ICCV 1998.
    Each voxel becomes the mean of a box, weighted by ``exp(-distance ** 2 / (2 * sigma_spatial **
    2)) * exp(-difference ** 2 / (2 * sigma_color ** 2))``, where scikit-image takes weights from
    tables (0.26 takes those of distances from wrong places of one). What is no number (NaN) stays
    so and has no weight.

    Examples
    --------
    >>> bilateral(10)(np.array([20, 22, 21, 90, 91, 92], np.uint8))
    array([21, 21, 21, 91, 91, 92], dtype=uint8)
    """
    lengths = sigmas(sigma_spatial, voxel_size, "sigma_spatial")
    window = _default_size(lengths) if size is None else sizes(size, voxel_size)
    lengths, window = together(sigma_spatial=lengths, size=window)
    pairs = zip(lengths, window, strict=True) if isinstance(lengths, tuple) else [(lengths, window)]
    if any(length == 0 and voxels > 1 for length, voxels in pairs):
        raise PlanError(
            f"sigma_spatial is {sigma_spatial!r} and size {size!r}; give size 1 where sigma is 0"
        )
    colour = float(number("sigma_color", sigma_color, above=0))
    halo = reach(window)
    operation = partial(
        _bilateral, sigma=lengths, size=window, colour=colour, border=border(mode, cval)
    )
    return Step(operation, halo=halo, dtype=weighted, memory=_memory)


def _default_size(sigma: Any) -> Any:
    if isinstance(sigma, tuple):
        return tuple(map(_default_size, sigma))
    return max(5, 2 * ceil(3 * sigma) + 1) if sigma else 1


def _memory(dtype: DType) -> float:
    return weighted(dtype).itemsize + (6.0 if dtype == np.float16 else 0.0)


def _bilateral(
    array: Any, dtype: DType, *, sigma: Any, size: Any, colour: float, border: Border
) -> Any:
    if not 0 < array.ndim <= _AXES:
        raise PlanError(f"the array has {array.ndim} axes; this filter is for 1 to {_AXES}")
    lengths, window = spread("sigma", sigma, array.ndim), spread("size", size, array.ndim)
    source, flipped = in_memory_order(array)
    if flipped:
        lengths, window = lengths[::-1], window[::-1]
    if source.dtype.kind == "b":
        source = source.view(np.uint8)
    if source.dtype == np.float16:
        source = source.astype(np.float32)
    kept = source.dtype if dtype == np.float16 else dtype
    target = array_namespace(array).empty(source.shape, kept)
    if source.size:
        factor = 1 / (2 * colour * colour * _PARTS)
        _compute(source, target, window, _spatial_weights(lengths, window), factor, border)
    return target.T if flipped else target


def _spatial_weights(sigma: tuple[float, ...], size: tuple[int, ...]) -> _Floats:
    """Return the weights of all places of a window."""
    squares = np.zeros(())
    for length, voxels in zip(sigma, size, strict=True):
        steps = np.arange(voxels) - voxels // 2
        along = (steps / length) ** 2 if length else np.zeros(voxels)
        squares = squares[..., None] + along
    weights: _Floats = np.exp(-0.5 * squares)
    return weights


def _compute(
    source: Any,
    target: Any,
    size: tuple[int, ...],
    spatial: _Floats,
    factor: float,
    border: Border,
) -> None:
    mode, cval = border
    whole = target.dtype.kind in "iu"
    ends = limits(target.dtype) if whole else (0.0, 0.0)
    engine = engine_of(source)
    if engine == "cuda":
        xp = array_namespace(source)
        launch(
            "bilateral",
            {"Source": source, "Target": target},
            target.size,
            source.ndim,
            xp.asarray(np.array([source.shape, size], np.int64)),
            xp.asarray(spatial),
            spatial.size,
            factor,
            _MOST,
            MODES[mode],
            cval,
            whole,
            *ends,
        )
        return
    tables = _tables(source.shape, size, mode)
    if engine == "numba":
        from gpublocks.filters.engines.compiled.bilaterals import bilateral_rows

        rows = prod(source.shape[:-1])
        bilateral_rows(
            source.reshape(rows, -1),
            target.reshape(rows, -1),
            np.array(source.shape),
            np.array(size),
            tables,
            cval,
            spatial.reshape(-1, size[-1]),
            factor,
            _MOST,
            whole,
            *ends,
        )
    else:
        _by_numpy(source, target, tables, cval, spatial, factor)


def _tables(shape: tuple[int, ...], size: tuple[int, ...], mode: str) -> npt.NDArray[np.int64]:
    """Return which voxels stand for those of all axes and beyond; rows end with zeros."""
    found = np.zeros((len(shape), max(map(sum, zip(shape, size, strict=True)))), np.int64)
    for row, length, voxels in zip(found, shape, size, strict=True):
        row[: length + voxels - 1] = extended(length, voxels // 2, (voxels - 1) // 2, mode)
    return found


def _by_numpy(
    source: Any,
    target: Any,
    tables: npt.NDArray[np.int64],
    cval: float,
    spatial: _Floats,
    factor: float,
) -> None:
    length, others = source.shape[0], prod(source.shape[1:])
    for rows, _, _ in parts_along((length, others, 1)):
        shape = target[rows].shape
        around = source
        for axis, (n, voxels) in enumerate(zip(shape, spatial.shape, strict=True)):
            first = 0 if axis else rows.start
            indices = tables[axis, first : first + n + voxels - 1]
            around = around.take(indices, axis).astype(np.float64, copy=False)
            around[(slice(None),) * axis + (indices < 0,)] = cval
        _average(around, source[rows], target[rows], spatial, factor)


def _average(around: _Floats, source: Any, target: Any, spatial: _Floats, factor: float) -> None:
    values = source.astype(np.float64)
    total, weights = np.zeros(source.shape), np.zeros(source.shape)
    for place, weight in np.ndenumerate(spatial):
        box = tuple([slice(start, start + n) for start, n in zip(place, source.shape, strict=True)])
        _add(around[box], values, weight, factor, total, weights)
    with np.errstate(invalid="ignore"):
        target[...] = converted(total / weights, target.dtype)


def _add(
    row: _Floats,
    centre: _Floats,
    spatial: float,
    factor: float,
    total: _Floats,
    weights: _Floats,
) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        x = (row - centre) * (row - centre) * factor
        counts = x < _MOST
    x = np.where(counts, -x, 0.0)
    weight = 1 + x * (1 + x * (0.5 + x * (1 / 6 + x * (1 / 24 + x * (1 / 120)))))
    for _ in range(10):
        weight *= weight
    weight = np.where(counts, weight * spatial, 0.0)
    total += weight * np.where(counts, row, 0.0)
    weights += weight
