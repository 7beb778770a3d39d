"""Filters that smooth: weighted means of neighbours. Pure."""

from functools import partial
from typing import Any

import numpy as np

from gpublocks.contracts import DType
from gpublocks.filters.correlating import Weights, correlate, correlation_bytes
from gpublocks.filters.dtypes import Rule, rule, weighted, wide
from gpublocks.filters.parameters import Border, border, number, per_axis, sigmas, spread, together
from gpublocks.filters.steps import Step, maker

__all__ = ["gaussian"]


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
    kernel = partial(_radius, truncate=truncate)
    halo = tuple(map(kernel, lengths)) if isinstance(lengths, tuple) else kernel(lengths)
    derived = any(orders) if isinstance(orders, tuple) else bool(orders)
    rounding = rule(dtype, wide if derived else weighted)
    beyond = border(mode, cval)
    return Step(
        partial(_gaussian, sigma=lengths, order=orders, border=beyond, truncate=truncate),
        halo=halo,
        dtype=rounding,
        memory=partial(_memory, result=rounding),
    )


def _memory(dtype: DType, result: Rule) -> float:
    return correlation_bytes(dtype, result(dtype))


def _radius(sigma: float, truncate: float) -> int:
    return int(truncate * sigma + 0.5)


def _gaussian(
    array: Any, dtype: DType, *, sigma: Any, order: Any, border: Border, truncate: float
) -> Any:
    sigmas = spread("sigma", sigma, array.ndim)
    orders = spread("order", order, array.ndim)
    weights = {
        axis: gaussian_weights(s, o, _radius(s, truncate))
        for axis, (s, o) in enumerate(zip(sigmas, orders, strict=True))
        if s > 1e-15
    }
    return correlate(array, weights, border, dtype)


def gaussian_weights(sigma: float, order: int, radius: int) -> Weights:
    """Return the weights of a Gaussian, or of its derivative, to correlate an axis with.

    The derivative of order n is the Gaussian times a polynomial, ``q' - q x / sigma^2`` of that of
    order n - 1 (as in ``scipy.ndimage._filters._gaussian_kernel1d``).
    """
    x = np.arange(-radius, radius + 1)
    phi: Weights = np.exp(-0.5 / (sigma * sigma) * x**2)
    phi /= phi.sum()
    if order == 0:
        return phi
    exponents = np.arange(order + 1)
    q = np.zeros(order + 1)
    q[0] = 1
    step = np.diag(exponents[1:], 1) + np.diag(np.ones(order) / -(sigma * sigma), -1)
    for _ in range(order):
        q = step.dot(q)
    weights: Weights = (x[:, None] ** exponents).dot(q) * phi
    return weights[::-1]
