"""Eigenvalues of Hessian matrices in closed form, and measures of ridges made of them. Pure.

Sources: O. K. Smith, "Eigenvalues of a symmetric 3 x 3 matrix", Commun. ACM 4 (1961) 168; of the
cosine of a third of an angle, ``4 x^3 - 3 x = r``, by Newton's method, which takes nothing but
sums, products and quotients, and so gives the same on all engines. It starts within 4e-4 of it, and
is done after three steps. Eigenvalues that are nearly the same are right to 1e-8 of the largest
one, others to 1e-15, if their squares are numbers of float64 (not less than 1e-150, say).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, Literal

import numpy as np

from gpublocks.filters.engines.choice import engine_of
from gpublocks.filters.engines.correlating import Weights, correlate_each
from gpublocks.filters.engines.gaussians import gaussian_weights
from gpublocks.filters.engines.launching import launch
from gpublocks.filters.engines.layouts import in_memory_order
from gpublocks.filters.parameters import Border

__all__ = ["Measure", "measured_hessian"]

_AT_ONCE = 1 << 14
"""Voxels that NumPy works on at once: their matrices and eigenvalues stay in the cache."""


@dataclass(frozen=True, slots=True)
class Measure:
    """What is made of eigenvalues, which are in decreasing order.

    Parameters
    ----------
    kind : {'eigenvalue', 'frangi', 'sato', 'meijering'}
    numbers : tuple of three floats
        Which eigenvalue; alpha, beta and gamma; a factor; a factor and alpha. Then zeros.
    """

    kind: Literal["eigenvalue", "frangi", "sato", "meijering"]
    numbers: tuple[float, float, float]


_KINDS = ("eigenvalue", "frangi", "sato", "meijering")
"""Kinds by their numbers in the engines."""


def measured_hessian(
    array: Any,
    measure: Measure,
    border: Border,
    *,
    sigma: Mapping[int, float],
    unit: Mapping[int, float],
    truncate: float,
    sign: float,
) -> Any:
    """Return a measure of the Hessian matrices of an array that a Gaussian smooths, of type `wide`.

    Parameters
    ----------
    array : ndarray of real numbers
    measure : Measure
    border : Border
    sigma : mapping of int to float
        Standard deviations in voxels of two or three axes, those of the matrices.
    unit : mapping of int to float
        Length of a voxel along these axes, in the unit that derivatives are taken by.
    truncate : float
    sign : {1.0, -1.0}
        What the array is multiplied by.
    """
    elements = correlate_each(array, _derivatives(sigma, unit, truncate), border)
    if array.size:
        _measure([in_memory_order(x)[0].reshape(-1) for x in elements], len(sigma), measure, sign)
    return elements[0]


def _derivatives(
    sigma: Mapping[int, float], unit: Mapping[int, float], truncate: float
) -> list[dict[int, Weights]]:
    """Return the weights of all second derivatives, in the order of the upper triangle."""
    orders = {axis: _orders(sigma[axis], unit[axis], truncate) for axis in sigma}
    return [
        {axis: orders[axis][(axis == row) + (axis == column)] for axis in sigma}
        for row, column in combinations_with_replacement(sigma, 2)
    ]


def _orders(sigma: float, unit: float, truncate: float) -> list[Weights]:
    """Return the weights of a Gaussian, its first and its second derivative.

    Those of the second one sum up to 0, as it is with a constant; without it, up to 1e-3 of
    a background, divided by sigma squared, were taken for a ridge.
    """
    smooth, first, second = (gaussian_weights(sigma, order, truncate) for order in range(3))
    return [smooth, first / unit, (second - smooth * second.sum()) / unit**2]


def _measure(elements: Sequence[Any], axes: int, measure: Measure, sign: float) -> None:
    """Replace the first elements of matrices, those of the upper triangle, by a measure of them."""
    kind = _KINDS.index(measure.kind)
    if axes == 2:
        first, second, last = elements
        elements = [first, second, first, last, first, first]
    engine = engine_of(elements[0])
    if engine == "cuda":
        target, *others = elements
        arguments = (axes, sign, kind, *measure.numbers)
        launch("ridges", {"Target": target}, target.size, *others, *arguments)
    elif engine == "numba":
        from gpublocks.filters.engines.compiled.ridge_measures import measure_ridges

        measure_ridges(tuple(elements), axes, sign, kind, *measure.numbers)
    else:
        with np.errstate(invalid="ignore", divide="ignore", over="ignore", under="ignore"):
            for start in range(0, elements[0].size, _AT_ONCE):
                piece = slice(start, start + _AT_ONCE)
                matrix = [sign * element[piece].astype(np.float64) for element in elements]
                values = _two(matrix) if axes == 2 else _three(matrix)
                elements[0][piece] = _by_numpy(values, measure)


def _two(matrix: Sequence[Any]) -> list[Any]:
    a, d, _, b, _, _ = matrix
    middle, half = (a + b) / 2, (a - b) / 2
    root = np.sqrt(d * d + half * half)
    return [middle + root, middle - root]


def _three(matrix: Sequence[Any]) -> list[Any]:
    a, d, e, b, f, c = matrix
    q = (a + b + c) / 3
    a, b, c = a - q, b - q, c - q
    p = np.sqrt((a * a + b * b + c * c + 2 * (d * d + e * e + f * f)) / 6)
    inverse = np.where(p != 0, 1 / p, 0.0)
    a, b, c, d, e, f = (element * inverse for element in (a, b, c, d, e, f))
    r = (a * (b * c - f * f) - d * (d * c - f * e) + e * (d * f - b * e)) / 2
    t = abs(r)
    t = np.where(t > 1, 1.0, t)
    x = 0.866025 + t * (0.160693 - t * 0.026718)
    for _ in range(3):
        x = (8 * x * x * x + t) / (12 * x * x - 3)
    rest = 1 - x * x
    y = np.sqrt(3 * np.where(rest < 0, 0.0, rest))
    large, small, turned = 2 * x, -x - y, r < 0
    return [
        q + p * np.where(turned, -small, large),
        q + p * np.where(turned, x - y, y - x),
        q + p * np.where(turned, -large, small),
    ]


def _by_numpy(values: Sequence[Any], measure: Measure) -> Any:
    if measure.kind == "eigenvalue":
        return values[int(measure.numbers[0])]
    if measure.kind == "frangi":
        return _frangi(values, *measure.numbers)
    factor, alpha, _ = measure.numbers
    if measure.kind == "sato":
        upper = [np.where(value < 0, 0.0, value) for value in values[:-1]]
        return factor * (upper[0] if len(upper) == 1 else np.sqrt(upper[0] * upper[1]))
    total = values[0] + values[-1] + (values[1] if len(values) == 3 else 0.0)
    high, low = (value + alpha * (total - value) for value in (values[0], values[-1]))
    chosen = np.where(abs(low) > abs(high), low, high)
    return factor * np.where(chosen < 0, 0.0, chosen)


def _frangi(values: Sequence[Any], alpha: float, beta: float, gamma: float) -> Any:
    """Return the vesselness, which is 0 unless the largest values are positive.

    Values are in decreasing order: the ones that are largest in magnitude are positive only if
    the last one is less than all others in magnitude too.
    """
    large, last = values[0], values[-1]
    middle = values[1] if len(values) == 3 else large
    squares = large * large + last * last
    blob = last / np.sqrt(middle * large)
    shape = np.exp(-(blob * blob) / (2 * beta * beta))
    if len(values) == 3:
        squares += middle * middle
        plate = middle / large
        shape *= 1 - np.exp(-(plate * plate) / (2 * alpha * alpha))
    shape *= 1 - np.exp(-squares / (2 * gamma * gamma))
    return np.where((middle <= 0) | (abs(last) > middle), 0.0, shape)
