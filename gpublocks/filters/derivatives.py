"""Filters that find edges and blobs: sums of derivatives, magnitudes of gradients. Pure."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from gpublocks.arrays import array_namespace
from gpublocks.contracts import DType
from gpublocks.errors import PlanError
from gpublocks.filters.dtypes import Rule, conversion_bytes, rule, wide
from gpublocks.filters.engines.correlating import (
    Term,
    Weights,
    combination_bytes,
    correlate_together,
)
from gpublocks.filters.engines.gaussians import LEAST_SIGMA, gaussian_reach, gaussian_weights
from gpublocks.filters.parameters import (
    Border,
    axis_in,
    border,
    number,
    sigmas,
    spread,
    together,
)
from gpublocks.filters.steps import Step, maker

__all__ = [
    "difference_of_gaussians",
    "gaussian_gradient_magnitude",
    "gaussian_laplace",
    "laplace",
    "prewitt",
    "sobel",
]

_SECOND: Weights = np.array([1.0, -2.0, 1.0])
_CENTRAL: Weights = np.array([-1.0, 0.0, 1.0])
_SOBEL: Weights = np.array([1.0, 2.0, 1.0])
_PREWITT: Weights = np.array([1.0, 1.0, 1.0])
_ITSELF: Weights = np.array([1.0])

_RATIO = 1.6
"""Ratio of standard deviations at which a difference of Gaussians is closest to a Laplacian of a
Gaussian (D. Marr and E. Hildreth, Proc. R. Soc. Lond. B 207, 1980)."""


@maker
def laplace(*, mode: str = "reflect", cval: float = 0.0, dtype: Any = None) -> Step:
    """Make a Laplace filter: the sum of second differences, as `scipy.ndimage.laplace`.

    Parameters
    ----------
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    dtype : dtype, optional
        Type of the result. By default float32 (float64 for float64, and for integers of more than
        16 bits).

    Returns
    -------
    Filter

    Raises
    ------
    ArgumentTypeError, PlanError

    Notes
    -----
    Differences are those between voxels, whatever the size of these. For floats the results are
    SciPy's, bit for bit; integers it cuts off, and lets them overflow.

    Examples
    --------
    >>> laplace()(np.array([0, 0, 5, 0, 0], np.uint8))
    array([  0.,   5., -10.,   5.,   0.], dtype=float32)
    """
    return _step(_laplace, border(mode, cval), dtype, halo=1, passes=1)


def _laplace(array: Any, dtype: DType, *, border: Border) -> Any:
    terms = [Term({axis: _SECOND}) for axis in range(array.ndim)]
    return correlate_together(array, terms, border)


@maker
def gaussian_laplace(
    sigma: float | tuple[float, ...],
    *,
    mode: str = "reflect",
    cval: float = 0.0,
    truncate: float = 4.0,
    voxel_size: float | tuple[float, ...] | None = None,
    dtype: Any = None,
) -> Step:
    """Make a Laplacian of a Gaussian, as `scipy.ndimage.gaussian_laplace`.

    Parameters
    ----------
    sigma : float or tuple of float
        Standard deviation in voxels, or in the unit of `voxel_size`, for all axes or for each.
        Axes of sigma 0 are left out: planes are filtered by themselves, say.
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    truncate : float
        Standard deviations at which the filter is cut off.
    voxel_size : float or tuple of float, optional
        Size of a voxel, in the unit of `sigma` (micrometres, say).
    dtype : dtype, optional
        Type of the result. By default float32 (float64 for float64, and for integers of more than
        16 bits).

    Returns
    -------
    Filter

    Raises
    ------
    ArgumentTypeError, PlanError
        Also if sigma is 0 for all axes.

    Notes
    -----
    Derivatives are per voxel, whatever the size of these. For floats the results are SciPy's, bit
    for bit on x86-64, if no axis has sigma 0: SciPy takes the smoothed voxels themselves for the
    derivative along such an axis. As weights are cut off, a constant gives up to 1e-3 of itself,
    divided by sigma squared, for each axis.

    Examples
    --------
    >>> gaussian_laplace(sigma=(0, 2, 2)).halo
    (0, 8, 8)
    """
    return _gaussian_step(_gaussian_laplace, sigma, border(mode, cval), truncate, voxel_size, dtype)


def _gaussian_laplace(
    array: Any, dtype: DType, *, sigma: Any, truncate: float, border: Border
) -> Any:
    terms = [Term(weights) for weights in _derivatives(array.ndim, sigma, truncate, order=2)]
    return correlate_together(array, terms, border)


@maker
def gaussian_gradient_magnitude(
    sigma: float | tuple[float, ...],
    *,
    mode: str = "reflect",
    cval: float = 0.0,
    truncate: float = 4.0,
    voxel_size: float | tuple[float, ...] | None = None,
    dtype: Any = None,
) -> Step:
    """Make the magnitude of the gradient, as `scipy.ndimage.gaussian_gradient_magnitude`.

    Parameters
    ----------
    sigma : float or tuple of float
        Standard deviation of the Gaussians whose derivatives are taken, in voxels, or in the unit
        of `voxel_size`, for all axes or for each. Axes of sigma 0 are left out.
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    truncate : float
        Standard deviations at which the filter is cut off.
    voxel_size : float or tuple of float, optional
        Size of a voxel, in the unit of `sigma` (micrometres, say).
    dtype : dtype, optional
        Type of the result. By default float32 (float64 for float64, and for integers of more than
        16 bits).

    Returns
    -------
    Filter

    Raises
    ------
    ArgumentTypeError, PlanError
        Also if sigma is 0 for all axes.

    Notes
    -----
    Derivatives are per voxel, whatever the size of these. For floats the results are SciPy's, bit
    for bit on x86-64, if no axis has sigma 0.

    Examples
    --------
    >>> gaussian_gradient_magnitude(sigma=2.0, voxel_size=(4.0, 2.0, 2.0)).halo
    (2, 4, 4)
    """
    return _gaussian_step(
        _gaussian_gradient_magnitude, sigma, border(mode, cval), truncate, voxel_size, dtype
    )


def _gaussian_gradient_magnitude(
    array: Any, dtype: DType, *, sigma: Any, truncate: float, border: Border
) -> Any:
    return _magnitude(array, _derivatives(array.ndim, sigma, truncate, order=1), border)


def _derivatives(ndim: int, sigma: Any, truncate: float, order: int) -> list[dict[int, Weights]]:
    """Return the weights of a Gaussian's derivatives along each axis of a sigma."""
    lengths = dict(enumerate(spread("sigma", sigma, ndim)))
    axes = [axis for axis, length in lengths.items() if length > LEAST_SIGMA]
    smooth = {axis: gaussian_weights(lengths[axis], 0, truncate) for axis in axes}
    derived = {axis: gaussian_weights(lengths[axis], order, truncate) for axis in axes}
    return [
        {axis: derived[axis] if axis == along else smooth[axis] for axis in axes} for along in axes
    ]


@maker
def difference_of_gaussians(
    low_sigma: float | tuple[float, ...],
    high_sigma: float | tuple[float, ...] | None = None,
    *,
    mode: str = "nearest",
    cval: float = 0.0,
    truncate: float = 4.0,
    voxel_size: float | tuple[float, ...] | None = None,
    dtype: Any = None,
) -> Step:
    """Make a band-pass filter, as `skimage.filters.difference_of_gaussians`.

    Parameters
    ----------
    low_sigma, high_sigma : float or tuple of float
        Standard deviations in voxels, or in the unit of `voxel_size`, of the Gaussian that is
        taken, and of that which is subtracted from it; 1.6 times the first one by default.
    mode : {'nearest', 'reflect', 'mirror', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    truncate : float
        Standard deviations at which the filters are cut off.
    voxel_size : float or tuple of float, optional
        Size of a voxel, in the unit of the standard deviations (micrometres, say).
    dtype : dtype, optional
        Type of the result. By default float32 (float64 for float64, and for integers of more than
        16 bits).

    Returns
    -------
    Filter

    Raises
    ------
    ArgumentTypeError, PlanError
        Also if `high_sigma` is less than `low_sigma`, or both are the same for all axes.

    Notes
    -----
    Nothing is rounded to integers in between. scikit-image scales integers to at most 1 first; here
    they keep their scale.

    Examples
    --------
    >>> difference_of_gaussians(1, 3).halo
    12
    >>> difference_of_gaussians(2.0, voxel_size=0.5).halo
    26
    """
    low = sigmas(low_sigma, voxel_size, "low_sigma")
    if high_sigma is not None:
        high = sigmas(high_sigma, voxel_size, "high_sigma")
    else:
        high = tuple([_RATIO * x for x in low]) if isinstance(low, tuple) else _RATIO * low
    low, high = together(low_sigma=low, high_sigma=high)
    pairs = list(zip(low, high, strict=True)) if isinstance(low, tuple) else [(low, high)]
    if any(less > more for less, more in pairs):
        raise PlanError(
            f"high_sigma is {high}, which is less than low_sigma, {low}; give the larger one last"
        )
    if all(less == more for less, more in pairs):
        raise PlanError(f"low_sigma and high_sigma are both {low}, which leaves nothing")
    truncate = number("truncate", truncate, least=0)
    operation = partial(_difference, low=low, high=high, truncate=truncate)
    reach = gaussian_reach(high, truncate)
    return _step(operation, border(mode, cval), dtype, halo=reach, passes=_passes(high))


def _difference(
    array: Any, dtype: DType, *, low: Any, high: Any, truncate: float, border: Border
) -> Any:
    terms = [
        Term(_smoothing(array.ndim, low, truncate), "add"),
        Term(_smoothing(array.ndim, high, truncate), "subtract"),
    ]
    return correlate_together(array, terms, border)


def _smoothing(ndim: int, sigma: Any, truncate: float) -> dict[int, Weights]:
    lengths = enumerate(spread("sigma", sigma, ndim))
    weights = {
        axis: gaussian_weights(length, 0, truncate)
        for axis, length in lengths
        if length > LEAST_SIGMA
    }
    return weights or {0: _ITSELF}


@maker
def sobel(
    axis: int | None = -1, *, mode: str = "reflect", cval: float = 0.0, dtype: Any = None
) -> Step:
    """Make a Sobel filter, as `scipy.ndimage.sobel`, or the magnitude of its gradient.

    Parameters
    ----------
    axis : int, optional
        Axis of the derivative; the others are smoothed. With None the result is the root of the
        sum of squares of the derivatives along all axes, as
        ``scipy.ndimage.generic_gradient_magnitude(array, scipy.ndimage.sobel)``.
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    dtype : dtype, optional
        Type of the result. By default float32 (float64 for float64, and for integers of more than
        16 bits).

    Returns
    -------
    Filter

    Raises
    ------
    ArgumentTypeError, PlanError

    Notes
    -----
    Weights are whole numbers, -1, 0, 1 along the axis and 1, 2, 1 along all others. Those of
    `skimage.filters.sobel` sum up to 1, and its magnitude is a mean over axes: it is the one here
    divided by ``4 ** (ndim - 1) * sqrt(ndim)``. For floats the results are SciPy's, bit for
    bit.

    Examples
    --------
    >>> sobel()(np.array([[0, 0, 8], [0, 0, 8]], np.uint8))
    array([[ 0., 32., 32.],
           [ 0., 32., 32.]], dtype=float32)
    """
    return _edges(_SOBEL, axis, border(mode, cval), dtype)


@maker
def prewitt(
    axis: int | None = -1, *, mode: str = "reflect", cval: float = 0.0, dtype: Any = None
) -> Step:
    """Make a Prewitt filter, as `scipy.ndimage.prewitt`, or the magnitude of its gradient.

    Parameters
    ----------
    axis : int, optional
        Axis of the derivative; the others are smoothed. With None the result is the root of the
        sum of squares of the derivatives along all axes.
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    dtype : dtype, optional
        Type of the result. By default float32 (float64 for float64, and for integers of more than
        16 bits).

    Returns
    -------
    Filter

    Raises
    ------
    ArgumentTypeError, PlanError

    Notes
    -----
    Weights are -1, 0, 1 along the axis and 1, 1, 1 along all others. Those of
    `skimage.filters.prewitt` sum up to 1, and its magnitude is a mean over axes: it is the one here
    divided by ``3 ** (ndim - 1) * sqrt(ndim)``.

    Examples
    --------
    >>> prewitt(axis=None)(np.array([[0, 0, 8], [0, 0, 8]], np.uint8))
    array([[ 0., 24., 24.],
           [ 0., 24., 24.]], dtype=float32)
    """
    return _edges(_PREWITT, axis, border(mode, cval), dtype)


def _edges(smoothing: Weights, axis: int | None, beyond: Border, dtype: Any) -> Step:
    along = None if axis is None else number("axis", axis, whole=True)
    return _step(partial(_edge, smoothing=smoothing, axis=along), beyond, dtype, halo=1)


def _edge(array: Any, dtype: DType, *, smoothing: Weights, axis: int | None, border: Border) -> Any:
    axes = range(array.ndim)
    derivatives = [
        {along: _CENTRAL, **{other: smoothing for other in axes if other != along}}
        for along in (axes if axis is None else [axis_in(axis, array.ndim)])
    ]
    if axis is None:
        return _magnitude(array, derivatives, border)
    return correlate_together(array, [Term(derivatives[0])], border)


def _magnitude(array: Any, derivatives: Sequence[dict[int, Weights]], border: Border) -> Any:
    """Return the root of the sum of squares of several correlations."""
    terms = [Term(weights, "add squares") for weights in derivatives]
    squares = correlate_together(array, terms, border)
    xp = array_namespace(array)
    return xp.sqrt(squares, out=squares)


def _gaussian_step(
    operation: Callable[..., Any],
    sigma: Any,
    beyond: Border,
    truncate: Any,
    voxel_size: Any,
    dtype: Any,
) -> Step:
    """Return the step of a Gaussian's derivatives."""
    lengths = sigmas(sigma, voxel_size)
    if not any(lengths if isinstance(lengths, tuple) else (lengths,)):
        raise PlanError(f"sigma is {sigma!r}; a derivative needs one axis with more than 0")
    truncate = number("truncate", truncate, least=0)
    return _step(
        partial(operation, sigma=lengths, truncate=truncate),
        beyond,
        dtype,
        halo=gaussian_reach(lengths, truncate),
        passes=_passes(lengths),
    )


def _step(
    operation: Callable[..., Any], beyond: Border, dtype: Any, halo: Any, passes: int = 3
) -> Step:
    rounding = rule(dtype, wide)
    return Step(
        partial(operation, border=beyond),
        halo=halo,
        dtype=rounding,
        memory=partial(_memory, result=rounding, passes=passes),
    )


def _passes(sigma: Any) -> int:
    """Return how many axes a Gaussian smooths: three where all axes have the same sigma."""
    return sum(map(bool, sigma)) if isinstance(sigma, tuple) else 3


def _memory(dtype: DType, result: Rule, passes: int) -> float:
    kept = wide(dtype)
    conversion = conversion_bytes(kept, result(dtype))
    return max(combination_bytes(dtype, passes), kept.itemsize + conversion)
