"""Weights of Gaussians and of their derivatives, as SciPy has them. Pure."""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LEAST_SIGMA", "gaussian_reach", "gaussian_weights"]

LEAST_SIGMA = 1e-15
"""Axes of a standard deviation up to this are left as they are."""


def gaussian_reach(sigma: Any, truncate: float) -> Any:
    """Return how many voxels a Gaussian looks far, for all axes or for each as `sigma` has it.

    Examples
    --------
    >>> gaussian_reach((1, 2.5), 4.0)
    (4, 10)
    """
    if isinstance(sigma, tuple):
        return tuple([_radius(length, truncate) for length in sigma])
    return _radius(sigma, truncate)


def _radius(sigma: float, truncate: float) -> int:
    return int(truncate * sigma + 0.5)


def gaussian_weights(sigma: float, order: int, truncate: float) -> npt.NDArray[np.float64]:
    """Return the weights of a Gaussian, or of its derivative, to correlate an axis with.

    The derivative of order n is the Gaussian times a polynomial, ``q' - q x / sigma^2`` of that of
    order n - 1 (as in ``scipy.ndimage._filters._gaussian_kernel1d``).
    """
    radius = _radius(sigma, truncate)
    x = np.arange(-radius, radius + 1)
    phi: npt.NDArray[np.float64] = np.exp(-0.5 / (sigma * sigma) * x**2)
    phi /= phi.sum()
    if order == 0:
        return phi
    exponents = np.arange(order + 1)
    q = np.zeros(order + 1)
    q[0] = 1
    step = np.diag(exponents[1:], 1) + np.diag(np.ones(order) / -(sigma * sigma), -1)
    for _ in range(order):
        q = step.dot(q)
    weights: npt.NDArray[np.float64] = (x[:, None] ** exponents).dot(q) * phi
    return weights[::-1]
