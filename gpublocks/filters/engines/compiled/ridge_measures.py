"""Eigenvalues of Hessian matrices, and measures of ridges made of them. Pure.

Formulas and the order of operations are those of `gpublocks.filters.engines.hessians`.
"""

from math import exp, sqrt
from typing import Any

import numpy as np

from gpublocks.filters.engines.compiled.compiling import compiled

__all__ = ["measure_ridges"]

_TILE = 512
"""Voxels whose eigenvalues are kept at once: twelve kilobytes of them stay in the level-1 cache."""


@compiled
def measure_ridges(
    elements: tuple[Any, ...],
    axes: int,
    sign: float,
    measure: int,
    first: float,
    second: float,
    third: float,
) -> None:
    """Replace the first element of the matrices by a measure of them.

    Parameters
    ----------
    elements : tuple of six ndarrays, shape (n,), contiguous, of float32 or float64
        Those of the upper triangle of symmetric matrices; of two axes the first, second and fourth.
    axes : {2, 3}
    sign : {1.0, -1.0}
        What matrices are multiplied by.
    measure : {0, 1, 2, 3}
    first, second, third : float
        As `gpublocks.filters.engines.hessians.Measure` has them.
    """
    h00, h01, h02, h11, h12, h22 = elements
    values = np.empty((3, _TILE))
    for start in range(0, h00.size, _TILE):
        stop = min(start + _TILE, h00.size)
        n = stop - start
        target = h00[start:stop]
        a, b, d = target, h11[start:stop], h01[start:stop]
        if axes == 2:
            _two(a, b, d, sign, values, n)
        else:
            c, e, f = h22[start:stop], h02[start:stop], h12[start:stop]
            _three(a, b, c, d, e, f, sign, values, n)
        if measure == 0:
            chosen = values[int(first)]
            for i in range(n):
                target[i] = chosen[i]
        elif measure == 1:
            _frangi(values, axes, first, second, third, target, n)
        elif measure == 2:
            _sato(values, axes, first, target, n)
        else:
            _meijering(values, axes, first, second, target, n)


@compiled
def _two(h00: Any, h11: Any, h01: Any, sign: float, values: Any, n: int) -> None:
    for i in range(n):
        a, b, d = sign * h00[i], sign * h11[i], sign * h01[i]
        middle = (a + b) / 2
        half = (a - b) / 2
        root = sqrt(d * d + half * half)
        values[0, i] = middle + root
        values[1, i] = middle - root


@compiled
def _three(
    h00: Any, h11: Any, h22: Any, h01: Any, h02: Any, h12: Any, sign: float, values: Any, n: int
) -> None:
    for i in range(n):
        a, b, c = sign * h00[i], sign * h11[i], sign * h22[i]
        d, e, f = sign * h01[i], sign * h02[i], sign * h12[i]
        q = (a + b + c) / 3
        a, b, c = a - q, b - q, c - q
        p = sqrt((a * a + b * b + c * c + 2 * (d * d + e * e + f * f)) / 6)
        inverse = 1 / p if p != 0 else 0.0
        a, b, c = a * inverse, b * inverse, c * inverse
        d, e, f = d * inverse, e * inverse, f * inverse
        r = (a * (b * c - f * f) - d * (d * c - f * e) + e * (d * f - b * e)) / 2
        t = abs(r)
        t = 1.0 if t > 1 else t
        x = 0.866025 + t * (0.160693 - t * 0.026718)
        x = (8 * x * x * x + t) / (12 * x * x - 3)
        x = (8 * x * x * x + t) / (12 * x * x - 3)
        x = (8 * x * x * x + t) / (12 * x * x - 3)
        rest = 1 - x * x
        y = sqrt(3 * (0.0 if rest < 0 else rest))
        large, small = 2 * x, -x - y
        values[0, i] = q + p * (-small if r < 0 else large)
        values[1, i] = q + p * (x - y if r < 0 else y - x)
        values[2, i] = q + p * (-large if r < 0 else small)


@compiled
def _frangi(
    values: Any, axes: int, alpha: float, beta: float, gamma: float, target: Any, n: int
) -> None:
    for i in range(n):
        large, last = values[0, i], values[axes - 1, i]
        middle = values[1, i] if axes == 3 else large
        if middle <= 0 or abs(last) > middle:
            target[i] = 0
            continue
        squares = large * large + last * last
        blob = last / sqrt(middle * large)
        shape = exp(-(blob * blob) / (2 * beta * beta))
        if axes == 3:
            squares += middle * middle
            plate = middle / large
            shape *= 1 - exp(-(plate * plate) / (2 * alpha * alpha))
        target[i] = shape * (1 - exp(-squares / (2 * gamma * gamma)))


@compiled
def _sato(values: Any, axes: int, factor: float, target: Any, n: int) -> None:
    for i in range(n):
        one = 0.0 if values[0, i] < 0 else values[0, i]
        if axes == 2:
            target[i] = factor * one
        else:
            two = 0.0 if values[1, i] < 0 else values[1, i]
            target[i] = factor * sqrt(one * two)


@compiled
def _meijering(values: Any, axes: int, factor: float, alpha: float, target: Any, n: int) -> None:
    for i in range(n):
        one, last = values[0, i], values[axes - 1, i]
        middle = values[1, i] if axes == 3 else 0.0
        total = one + last + middle
        # Sums are larger at either end, as alpha is the same for all others.
        high = one + alpha * (total - one)
        low = last + alpha * (total - last)
        chosen = low if abs(low) > abs(high) else high
        target[i] = factor * (0.0 if chosen < 0 else chosen)
