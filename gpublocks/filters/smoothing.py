"""Filters that smooth: weighted means of neighbours. Pure."""

from functools import partial
from typing import Any

from gpublocks.contracts import DType
from gpublocks.filters.dtypes import Rule, rule, weighted, wide
from gpublocks.filters.engines.correlating import correlate, correlation_bytes
from gpublocks.filters.engines.gaussians import LEAST_SIGMA, gaussian_reach, gaussian_weights
from gpublocks.filters.engines.windows import mean_bytes, means
from gpublocks.filters.parameters import (
    Border,
    border,
    number,
    per_axis,
    reach,
    sigmas,
    sizes,
    spread,
    together,
)
from gpublocks.filters.steps import Step, maker

__all__ = ["gaussian", "uniform"]


@maker
def gaussian(
    sigma: float | tuple[float, ...],
    *,
    order: int | tuple[int, ...] = 0,
    mode: str = "reflect",
    cval: float = 0.0,
    truncate: float = 4.0,
    voxel_size: float | tuple[float, ...] | None = None,
    dtype: Any = None,
) -> Step:
    """Make a Gaussian filter, or one of its derivatives, as `scipy.ndimage.gaussian_filter`.

    Parameters
    ----------
    sigma : float or tuple of float
        Standard deviation in voxels, or in the unit of `voxel_size`, for all axes or for each.
        Axes of sigma 0 are left as they are.
    order : int or tuple of int
        0 smooths; 1, 2, ... are derivatives of this order.
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    truncate : float
        Standard deviations at which the filter is cut off: it looks
        ``int(truncate * sigma + 0.5)`` voxels far.
    voxel_size : float or tuple of float, optional
        Size of a voxel, in the unit of `sigma` (micrometres, say).
    dtype : dtype, optional
        Type of the result. By default that of the array; of truth values, and of derivatives,
        float32 (float64 for float64, and for integers of more than 16 bits).

    Returns
    -------
    Filter

    Raises
    ------
    ArgumentTypeError, PlanError

    Notes
    -----
    Weights are SciPy's, sums are taken in float64, what is between two axes is kept in float32
    (float64 for the longer types), and integers are rounded to nearest once, at the end. SciPy cuts
    them off after each axis; for floats the voxels are its own, bit for bit on x86-64.

    Examples
    --------
    >>> gaussian(sigma=(1, 2, 2)).halo
    (4, 8, 8)
    >>> gaussian(sigma=8.0, voxel_size=(4.0, 1.6, 1.6)).halo
    (8, 20, 20)
    """
    lengths, orders = together(
        sigma=sigmas(sigma, voxel_size),
        order=per_axis("order", order, partial(number, least=0, whole=True)),
    )
    truncate = number("truncate", truncate, least=0)
    derived = any(orders) if isinstance(orders, tuple) else bool(orders)
    rounding = rule(dtype, wide if derived else weighted)
    beyond = border(mode, cval)
    return Step(
        partial(_gaussian, sigma=lengths, order=orders, border=beyond, truncate=truncate),
        halo=gaussian_reach(lengths, truncate),
        dtype=rounding,
        memory=partial(_memory, result=rounding),
    )


def _memory(dtype: DType, result: Rule) -> float:
    return correlation_bytes(dtype, result(dtype))


def _gaussian(
    array: Any, dtype: DType, *, sigma: Any, order: Any, border: Border, truncate: float
) -> Any:
    sigmas = spread("sigma", sigma, array.ndim)
    orders = spread("order", order, array.ndim)
    weights = {
        axis: gaussian_weights(s, o, truncate)
        for axis, (s, o) in enumerate(zip(sigmas, orders, strict=True))
        if s > LEAST_SIGMA
    }
    return correlate(array, weights, border, dtype)


@maker
def uniform(
    size: int | float | tuple[float, ...] = 3,
    *,
    mode: str = "reflect",
    cval: float = 0.0,
    voxel_size: float | tuple[float, ...] | None = None,
    dtype: Any = None,
) -> Step:
    """Make a filter for the mean of a box around each voxel, as `scipy.ndimage.uniform_filter`.

    Parameters
    ----------
    size : int or tuple of int
        Voxels of the box, for all axes or for each; it begins ``size // 2`` before its own voxel.
        With `voxel_size` lengths, of which the nearest odd number is taken.
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    voxel_size : float or tuple of float, optional
        Size of a voxel, in the unit of `size` (micrometres, say).
    dtype : dtype, optional
        Type of the result. By default that of the array, and float32 for truth values.

    Returns
    -------
    Filter

    Raises
    ------
    ArgumentTypeError, PlanError

    Notes
    -----
    Sums of integers are exact up to 2^52 and divided once: voxels are the nearest integers to the
    mean, halves the even ones (SciPy cuts the mean off after each axis). Floats are summed in
    float64 for each window by itself, so that NaN and infinities stay within their windows and
    rounding does not depend on where a block begins (SciPy's running sums do); after each axis the
    mean is rounded to float32, or float64 for float64.

    Examples
    --------
    >>> import numpy as np
    >>> uniform(3)(np.array([0, 0, 7, 0, 0, 2]))
    array([0, 2, 2, 2, 1, 1])
    >>> uniform((1, 5, 4)).halo
    (0, 2, 2)
    """
    lengths = sizes(size, voxel_size)
    halo = reach(lengths)
    rounding = rule(dtype, weighted)
    beyond = border(mode, cval)
    return Step(
        partial(_uniform, size=lengths, border=beyond),
        halo=halo,
        dtype=rounding,
        memory=partial(_uniform_bytes, result=rounding, size=lengths, border=beyond),
    )


def _uniform(array: Any, dtype: DType, *, size: Any, border: Border) -> Any:
    return means(array, spread("size", size, array.ndim), border, dtype)


def _uniform_bytes(dtype: DType, *, result: Rule, size: Any, border: Border) -> float:
    axes = len(size) if isinstance(size, tuple) else 3
    return mean_bytes(dtype, result(dtype), spread("size", size, axes), border)
