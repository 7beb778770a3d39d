"""Filters that compare voxels with what is around them: local contrast, local thresholds. Pure."""

from functools import partial
from typing import Any

import numpy as np

from gpublocks.arrays import array_namespace
from gpublocks.contracts import DType
from gpublocks.errors import PlanError
from gpublocks.filters.dtypes import Always, Rule, conversion_bytes, rule, wide
from gpublocks.filters.engines.correlating import Weights, correlate, correlation_bytes
from gpublocks.filters.engines.gaussians import LEAST_SIGMA, gaussian_reach, gaussian_weights
from gpublocks.filters.parameters import (
    Border,
    PerAxis,
    border,
    number,
    reach,
    sigmas,
    sizes,
    spread,
)
from gpublocks.filters.steps import Step, maker

__all__ = ["local_threshold", "normalize_local_contrast"]

_FLOAT64 = np.dtype(np.float64)

_TRUNCATE = 4.0
"""Standard deviations at which Gaussians are cut off, as SciPy and scikit-image do."""

_METHODS = ("gaussian", "mean", "niblack", "sauvola")


@maker
def normalize_local_contrast(
    size: int | tuple[int, ...] | None = None,
    *,
    sigma: PerAxis | None = None,
    eps: float = 1e-6,
    mode: str = "reflect",
    cval: float = 0.0,
    voxel_size: PerAxis | None = None,
    dtype: Any = None,
) -> Step:
    """Make a filter that subtracts the local mean and divides by the local standard deviation.

    Parameters
    ----------
    size : int or tuple of int, optional
        Window that mean and standard deviation are taken of, in voxels, or in the unit of
        `voxel_size`, for all axes or for each. Either this or `sigma` is given.
    sigma : float or tuple of float, optional
        Standard deviation of a Gaussian that voxels of the window are weighted with.
    eps : float
        Least standard deviation that is divided by, in units of the voxels' values: that of the
        noise, say.
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    voxel_size : float or tuple of float, optional
        Size of a voxel, in the unit of `size` and `sigma` (micrometres, say).
    dtype : dtype, optional
        Type of the result. By default float32 (float64 for float64, and for integers of more than
        16 bits).

    Returns
    -------
    Filter

    Raises
    ------
    ArgumentTypeError, PlanError
        Also if both or none of `size` and `sigma` are given.

    Notes
    -----
    The variance is that of all voxels of the window, the mean of squares less the square of the
    mean, in float64: standard deviations are right to 3e-8 of the mean. Of windows with one value
    the result is 0, if sums of squares have no more than 53 bits: for integers of 16 bits all that
    fit into memory.

    Examples
    --------
    >>> normalize_local_contrast(3)(np.array([1, 1, 1, 4, 1, 1], np.uint8)).round(2)
    array([ 0.  ,  0.  , -0.71,  1.41, -0.71,  0.  ], dtype=float32)
    """
    rounding = rule(dtype, wide)
    if (size is None) == (sigma is None):
        raise PlanError(f"size is {size} and sigma {sigma}; give one of them")
    least = number("eps", eps, above=0)
    if size is not None:
        lengths = sizes(size, voxel_size)
        weights, halo = partial(_box, size=lengths), reach(lengths)
    else:
        lengths = sigmas(sigma, voxel_size)
        weights, halo = partial(_bell, sigma=lengths), gaussian_reach(lengths, _TRUNCATE)
    operation = partial(_contrast, weights=weights, eps=least, border=border(mode, cval))
    memory = partial(_contrast_bytes, result=rounding)
    return Step(operation, halo=halo, dtype=rounding, memory=memory)


def _contrast_bytes(dtype: DType, result: Rule) -> float:
    return max(_MOMENT_BYTES, 16 + conversion_bytes(_FLOAT64, result(dtype)))


_MOMENT_BYTES = 32.0
"""Bytes per voxel while the second of two moments is computed."""


def _contrast(array: Any, dtype: DType, *, weights: Any, eps: float, border: Border) -> Any:
    mean, deviation = _moments(array, weights(array.ndim), border)
    xp = array_namespace(array)
    xp.maximum(deviation, eps, out=deviation)
    xp.subtract(array, mean, out=mean)
    mean /= deviation
    return mean


def _moments(array: Any, weights: dict[int, Weights], border: Border) -> tuple[Any, Any]:
    """Return mean and standard deviation of a window around each voxel, in float64."""
    xp = array_namespace(array)
    values = array.astype(_FLOAT64)
    mean = _mean(values, weights, border)
    values *= values
    mode, cval = border
    deviation = _mean(values, weights, (mode, cval * cval))
    del values
    deviation -= mean * mean
    xp.maximum(deviation, 0.0, out=deviation)
    return mean, xp.sqrt(deviation, out=deviation)


def _mean(values: Any, weights: dict[int, Weights], border: Border) -> Any:
    """Return weighted means. They are divided at last, so that sums of integers are exact.

    What lies beyond the border grows with the sums, from one axis to the next.
    """
    mode, cval = border
    total = 1.0
    mean = values.copy("K") if not weights else values
    for axis, along in weights.items():
        mean = correlate(mean, {axis: along}, (mode, cval * total), _FLOAT64)
        total *= float(along.sum())
    mean /= total
    return mean


def _box(ndim: int, size: Any) -> dict[int, Weights]:
    lengths = enumerate(spread("size", size, ndim))
    return {axis: np.ones(length) for axis, length in lengths if length > 1}


def _bell(ndim: int, sigma: Any) -> dict[int, Weights]:
    lengths = enumerate(spread("sigma", sigma, ndim))
    return {
        axis: gaussian_weights(length, 0, _TRUNCATE)
        for axis, length in lengths
        if length > LEAST_SIGMA
    }


@maker
def local_threshold(
    size: int | tuple[int, ...],
    *,
    method: str = "gaussian",
    offset: float = 0.0,
    k: float = 0.2,
    r: float | None = None,
    mode: str = "reflect",
    cval: float = 0.0,
    voxel_size: PerAxis | None = None,
) -> Step:
    """Make a filter that tells which voxels are brighter than a threshold of their neighbourhood.

    Parameters
    ----------
    size : int or tuple of int
        Window in voxels, or in the unit of `voxel_size`, for all axes or for each.
    method : {'gaussian', 'mean', 'niblack', 'sauvola'}
        The threshold: the mean of the window, weighted by a Gaussian whose standard deviation is
        ``(size - 1) / 6`` or not; ``mean - k * deviation``; ``mean * (1 + k * (deviation / r -
        1))``. They are those of `skimage.filters.threshold_local`, `threshold_niblack` and
        `threshold_sauvola`.
    offset : float
        What is subtracted from the threshold.
    k : float
        As above. For bright structures on a dark background it is negative.
    r : float, optional
        Greatest standard deviation that there may be. By default half of the range of the array's
        type; 1 for floats, as scikit-image has it.
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`. Thresholds of Niblack and
        Sauvola are what scikit-image has with ``'mirror'``.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    voxel_size : float or tuple of float, optional
        Size of a voxel, in the unit of `size` (micrometres, say).

    Returns
    -------
    Filter
        Its results are truth values.

    Raises
    ------
    ArgumentTypeError, PlanError

    Notes
    -----
    Sources: W. Niblack, An introduction to digital image processing (1986); J. Sauvola and M.
    Pietikainen, Pattern Recognition 33 (2000) 225. Sums over a window are taken in float64, which
    is exact for integers of up to 32 bits (variances: 16 bits); thresholds by a Gaussian are
    rounded as `gaussian` does, so that no voxel of a constant is brighter than it.

    Examples
    --------
    >>> local_threshold(3, method="mean")(np.array([1, 1, 2, 9, 9, 9], np.uint8))
    array([False, False, False,  True, False, False])
    """
    if method not in _METHODS:
        raise PlanError(f"method is {method!r}; use one of {', '.join(_METHODS)}")
    lengths = sizes(size, voxel_size)
    beyond = border(mode, cval)
    checked = float(number("offset", offset))
    truth = Always(np.dtype(np.bool_))
    if method == "gaussian":
        sigma = _sigma(lengths)
        operation = partial(_brighter, sigma=sigma, offset=checked, border=beyond)
        halo = gaussian_reach(sigma, _TRUNCATE)
        return Step(operation, halo=halo, dtype=truth, memory=_brighter_bytes)
    share = 0.0 if method == "mean" else float(number("k", k))
    spread_ = None if r is None else float(number("r", r, above=0))
    return Step(
        partial(
            _brighter_than_window,
            size=lengths,
            method=method,
            k=share,
            r=spread_,
            offset=checked,
            border=beyond,
        ),
        halo=reach(lengths),
        dtype=truth,
        memory=Always(24.0 if method == "mean" else _MOMENT_BYTES),
    )


def _sigma(size: Any) -> Any:
    """Return standard deviations of which the window holds three to each side."""
    return tuple(map(_sigma, size)) if isinstance(size, tuple) else (size - 1) / 6


def _brighter_bytes(dtype: DType) -> float:
    return max(correlation_bytes(dtype, wide(dtype)), wide(dtype).itemsize + 1.0)


def _brighter(array: Any, dtype: DType, *, sigma: Any, offset: float, border: Border) -> Any:
    level = correlate(array, _bell(array.ndim, sigma), border, wide(array.dtype))
    level -= offset
    return array > level


def _brighter_than_window(
    array: Any,
    dtype: DType,
    *,
    size: Any,
    method: str,
    k: float,
    r: float | None,
    offset: float,
    border: Border,
) -> Any:
    weights = _box(array.ndim, size)
    if method == "mean":
        level = _mean(array.astype(_FLOAT64), weights, border)
    else:
        level, deviation = _moments(array, weights, border)
        if method == "niblack":
            deviation *= k
            level -= deviation
        else:
            deviation /= _range(array.dtype) if r is None else r
            deviation -= 1
            deviation *= k
            deviation += 1
            level *= deviation
    level -= offset
    return array > level


def _range(dtype: DType) -> float:
    """Return half of the range of a type, as `skimage.util.dtype_limits` has it."""
    if dtype.kind not in "iu":
        return 0.5 if dtype.kind == "b" else 1.0
    info = np.iinfo(dtype)
    return (float(info.max) - float(info.min)) / 2
