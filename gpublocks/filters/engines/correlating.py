"""Weighted sums along axes, one pass after the other: the same numbers from every engine. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gpublocks.arrays import array_namespace
from gpublocks.contracts import DType
from gpublocks.filters.dtypes import converted, limits, stored, wide
from gpublocks.filters.engines.choice import engine_of
from gpublocks.filters.engines.launching import MODES, launch
from gpublocks.filters.engines.layouts import along, in_memory_order
from gpublocks.filters.parameters import Border

__all__ = [
    "Term",
    "Weights",
    "combination_bytes",
    "correlate",
    "correlate_each",
    "correlate_together",
    "correlation_bytes",
]

Weights = npt.NDArray[np.float64]
"""Weights of the voxels from ``len // 2`` before one on."""

Combine = Literal["set", "add", "subtract", "add squares"]
"""What is done with sums, after they were rounded to the type of where they go."""

_COMBINE: dict[Combine, int] = {"set": 0, "add": 1, "subtract": 2, "add squares": 3}
"""Numbers of these in the engines."""


@dataclass(frozen=True, slots=True)
class Term:
    """Weighted sums along axes, and what is done with the last ones.

    Parameters
    ----------
    weights : mapping of int to ndarray
        Weights for each axis, which is not negative, in the order of the passes.
    combine : {'set', 'add', 'subtract', 'add squares'}
    """

    weights: Mapping[int, Weights]
    combine: Combine = "add"


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
    kept = dtype if stored(dtype) else wide(array.dtype)
    sums = [_Way(tuple(weights.items()), kept, "set")]
    return converted(_correlate(array, sums, border)[0], dtype)


def correlate_together(array: Any, terms: Sequence[Term], border: Border) -> Any:
    """Return the combination of several correlations, of type `wide`.

    Each is what `correlate` returns, rounded to this type before it is combined. Those that begin
    with the same weights (the same objects) share these passes.

    Parameters
    ----------
    array : ndarray of real numbers
    terms : sequence of Term
        Each with weights for one axis at least. They are combined with zeros, in this order.
    border : Border
    """
    order = "F" if array.flags.fnc else "C"
    total = array_namespace(array).zeros(array.shape, wide(array.dtype), order)
    ways = [
        _Way(tuple(term.weights.items()), total, term.combine, number)
        for number, term in enumerate(terms)
    ]
    if ways:
        _correlate(array, ways, border)
    return total


def correlate_each(
    array: Any, several: Sequence[Mapping[int, Weights]], border: Border
) -> list[Any]:
    """Return several correlations, each as `correlate` does, of type `wide`.

    Those that begin with the same weights (the same objects) share these passes. All results have
    the memory order of the array.
    """
    kept = wide(array.dtype)
    ways = [
        _Way(tuple(weights.items()), kept, "set", number) for number, weights in enumerate(several)
    ]
    return _correlate(array, ways, border)


@dataclass(frozen=True, slots=True, eq=False)
class _Way:
    """Passes from an array to a target, which may be a type for a new one, and what is done there.

    The number is its own among several.
    """

    passes: tuple[tuple[int, Weights], ...]
    target: Any
    combine: Combine
    number: int = 0

    def goes_on_as(self, other: "_Way") -> bool:
        """Tell whether both begin with the same pass, and go on after it."""
        if self is other:
            return True
        if len(self.passes) == 1 or len(other.passes) == 1:
            return False
        (axis, weights), (its_axis, its_weights) = self.passes[0], other.passes[0]
        return axis == its_axis and weights is its_weights

    def after_one(self) -> "_Way":
        return _Way(self.passes[1:], self.target, self.combine, self.number)


def _correlate(array: Any, ways: Sequence[_Way], border: Border) -> list[Any]:
    """Go all ways from an array, depth first so that few arrays are held; return where they end.

    Targets that are given are in the memory order of the array.
    """
    xp = array_namespace(array)
    between = wide(array.dtype)
    source, flipped = in_memory_order(array)
    if source.dtype == np.float16:
        source = source.astype(between)
    ends: dict[int, Any] = {}
    places = [(source, list(ways))]
    while places:
        source, left = places.pop()
        way = left[0]
        together = [other for other in left if other.goes_on_as(way)]
        if len(together) < len(left):
            places.append((source, [other for other in left if other not in together]))
        (axis, weights), *onward = way.passes
        kept = between if onward else way.target
        if isinstance(kept, np.dtype):
            target = xp.empty(source.shape, kept)
        else:
            target = kept.T if flipped else kept
        place = source.ndim - 1 - axis if flipped else axis
        combine = "set" if onward else way.combine
        _correlate_along(along(source, place), along(target, place), weights, border, combine)
        if onward:
            places.append((target, [other.after_one() for other in together]))
        else:
            ends[way.number] = target.T if flipped else target
        del target
    return [ends[way.number] for way in ways]


def correlation_bytes(dtype: DType, result: DType, axes: int = 3) -> float:
    """Return the bytes per voxel that `correlate` takes over so many axes at most."""
    between = wide(dtype).itemsize
    if not stored(result):
        return 2 * between + result.itemsize
    return max(between * min(2, axes - 1), between * (axes > 1) + result.itemsize)


def combination_bytes(dtype: DType, passes: int = 3) -> float:
    """Return the bytes per voxel that `correlate_together` takes for terms of so many passes."""
    return wide(dtype).itemsize * (min(3, passes) + (dtype == np.float16))


def _correlate_along(
    source: Any, target: Any, weights: Weights, border: Border, combine: Combine
) -> None:
    """Correlate the middle one of three axes."""
    if not source.size:
        return
    engine = engine_of(source)
    if engine == "cuda":
        _correlate_on_device(source, target, weights, border, combine)
    elif engine == "numba":
        from gpublocks.filters.engines.compiled.correlations import correlate_axis

        how = _COMBINE[combine]
        correlate_axis(source, target, weights, _symmetry(weights), border, how)
    else:
        _correlate_by_scipy(source, target, weights, border, combine)


def _correlate_by_scipy(
    source: Any, target: Any, weights: Weights, border: Border, combine: Combine
) -> None:
    from scipy import ndimage

    mode, cval = border
    alone = combine == "set" and target.dtype.kind == "f"
    rounded = target.dtype if target.dtype.kind == "f" else np.float64
    sums = target if alone else np.empty(target.shape, rounded)
    ndimage.correlate1d(source, weights, 1, sums, mode, cval)
    if combine == "add squares":
        sums *= sums
    if combine == "set" and not alone:
        target[...] = converted(sums, target.dtype)
    elif combine == "subtract":
        target -= sums
    elif combine != "set":
        target += sums


def _correlate_on_device(
    source: Any, target: Any, weights: Weights, border: Border, combine: Combine
) -> None:
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
        _COMBINE[combine],
    )


def _symmetry(weights: Weights) -> int:
    """Return 1 for symmetric weights, -1 for antisymmetric ones, else 0."""
    if len(weights) % 2 == 0:
        return 0
    eps = np.finfo(np.float64).eps
    if np.all(np.abs(weights - weights[::-1]) <= eps):
        return 1
    return -1 if np.all(np.abs(weights + weights[::-1])[: len(weights) // 2] <= eps) else 0
