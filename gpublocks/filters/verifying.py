"""How far a function really looks, found out on samples. Touches the source, and the GPU if any."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from gpublocks import gpus, io
from gpublocks.arrays import as_array, to_device, to_host
from gpublocks.contracts import Array, Source
from gpublocks.errors import PlanError
from gpublocks.filters.parameters import number, spread
from gpublocks.geometry import Region
from gpublocks.splitting import as_count
from gpublocks.task import name_of

__all__ = ["Verification", "verify"]

_ASIDE = 24
"""Voxels of a sample along the other axes."""
_FIRST = 32
"""Voxels of a sample along the axis that is cut, at first; then twice as many, and so on."""
_MOST_VOXELS = 1 << 24
"""Of a sample: some seconds for a slow function, and less than 1 GB for a hungry one."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What samples show of a function.

    Attributes
    ----------
    name : str
        Of the function.
    given : tuple of int or None
        The halo that was asked about, for each axis.
    needed : tuple of (int or None)
        The smallest halo with which blocks gave the voxels of the whole, in all samples; None
        where no bounded one did: a voxel depends on all others, or on where it lies.
    searched : tuple of int
        The longest halo that could be told from an unbounded one.
    samples : int
        How many samples were cut, along each axis.
    tolerance : float
        Difference between voxels that was taken for none.
    difference : float or None
        The largest difference between the results for arrays of NumPy and of CuPy; None where
        there is no GPU, and infinity where the function does not run on one.
    """

    name: str
    given: tuple[int, ...] | None
    needed: tuple[int | None, ...]
    searched: tuple[int, ...]
    samples: int
    tolerance: float
    difference: float | None = None

    @property
    def safe(self) -> bool:
        """Whether the halo that was asked about is large enough; if none was, whether one is."""
        if self.given is None:
            return None not in self.needed
        pairs = zip(self.needed, self.given, strict=True)
        return all(needed is not None and needed <= given for needed, given in pairs)

    def __str__(self) -> str:
        lines = [self._verdict()]
        for axis, needed in enumerate(self.needed):
            if needed is None:
                lines.append(
                    f"axis {axis}: no halo up to {self.searched[axis]} did: voxels depend on the "
                    "whole block, on where they lie, or on chance; or on rounding (see tolerance)"
                )
            else:
                lines.append(f"axis {axis}: the smallest halo that did is {needed}")
        if self.difference is not None:
            lines.append(f"NumPy and CuPy differ by {self.difference:g} at most")
        return "\n".join(lines)

    def _verdict(self) -> str:
        tried = f"{self.samples} samples, cut along each axis"
        if self.given is None:
            found = "blocks give what the whole gives" if self.safe else "blocks do not suit it"
            return f"{self.name}: {found} ({tried})"
        same = sorted(set(self.given))
        halo = str(same[0]) if len(same) == 1 else str(self.given)
        is_enough = "is large enough" if self.safe else "is too small"
        return f"{self.name}: a halo of {halo} {is_enough} ({tried})"


def verify(
    function: Callable[..., Any],
    source: Any,
    halo: int | Sequence[int] | None = None,
    *,
    samples: int = 6,
    tolerance: float = 0.0,
    seed: int = 0,
    **kwargs: Any,
) -> Verification:
    """Find out on samples whether a halo is large enough for a function, and the smallest one.

    A sample is computed whole, and again from its middle on and up to it, along each axis; and with
    the voxels beside this cut made dark, and bright. How far from the cut results differ is how far
    the function looks: a block that has so much context gives what the whole gives. Half of the
    samples are parts of the source; the others are noise within the range of its voxels, of many
    values and of two, which finds what smooth images hide. Samples prove that a halo is too small,
    and never that it is large enough for all images.

    Parameters
    ----------
    function : callable
        Of one array, such as `gpublocks.process` takes; its result has the shape of the array.
    source : array_like, path or Source
    halo : int or sequence of int, optional
        Voxels on each side, for all axes or for each. By default that of the function, if it is a
        filter; else none is asked about, and the smallest one is told.
    samples : int
        How many; at least 2.
    tolerance : float
        Difference between voxels that is none: sums of floats in another order differ by rounding.
    seed : int
        Of the places and of the noise.
    **kwargs
        Passed on to the function.

    Returns
    -------
    Verification
        Prints as text.

    Raises
    ------
    PlanError
        If the result is no array of the shape of the sample, or parameters make no sense.
    ArgumentTypeError, SourceError
        Errors of the function are raised as they are.

    Examples
    --------
    >>> from scipy import ndimage
    >>> image = np.random.default_rng(0).random((60, 50))
    >>> print(verify(ndimage.median_filter, image, halo=1, size=(5, 3)))
    median_filter: a halo of 1 is too small (6 samples, cut along each axis)
    axis 0: the smallest halo that did is 2
    axis 1: the smallest halo that did is 1
    """
    opened = io.as_source(source)
    ndim = len(opened.shape)
    if not ndim or 0 in opened.shape:
        raise PlanError(f"a source of shape {opened.shape} has no voxels to try a function on")
    samples = number("samples", samples, least=2, whole=True)
    tolerance = float(number("tolerance", tolerance, least=0))
    declared = getattr(function, "halo", None) if halo is None else halo
    given = None if declared is None else _halo(declared, ndim)
    call = partial(_called, partial(function, **kwargs), name_of(function))
    rng = np.random.default_rng(number("seed", seed, least=0, whole=True))
    found = [
        _needed(call, opened, axis, given, samples=samples, tolerance=tolerance, rng=rng)
        for axis in range(ndim)
    ]
    return Verification(
        name=name_of(function),
        given=given,
        needed=tuple([needed for needed, _ in found]),
        searched=tuple([searched for _, searched in found]),
        samples=samples,
        tolerance=tolerance,
        difference=_difference(call, next(_samples(opened, 0, _FIRST, 2, rng))),
    )


def _halo(halo: Any, ndim: int) -> tuple[int, ...]:
    listed = tuple(halo) if isinstance(halo, Sequence) else halo
    return tuple([as_count("halo", value, 0) for value in spread("halo", listed, ndim)])


def _called(function: Callable[[Any], Any], name: str, array: Any) -> Any:
    """Return what the function gives for a copy of an array, which it may change."""
    result = as_array(function(array.copy("K")))
    if result is None or result.shape != array.shape:
        what = "no array" if result is None else f"an array of shape {result.shape}"
        raise PlanError(f"function {name!r} returned {what} for one of shape {array.shape}")
    return result


def _needed(
    call: Callable[[Any], Any],
    source: Source,
    axis: int,
    given: tuple[int, ...] | None,
    *,
    samples: int,
    tolerance: float,
    rng: np.random.Generator,
) -> tuple[int | None, int]:
    """Return the smallest halo along an axis that did, and the longest that could be found.

    A sample twice as long is taken where the results differ so far from the cut that the border of
    the sample may have a part in it.
    """
    length = max(_FIRST, 4 * (given[axis] + 2) if given else 0)
    needed = 0
    while True:
        length = min(length, source.shape[axis])
        for sample in _samples(source, axis, length, samples, rng):
            needed = max(needed, _reach(call, sample, axis, tolerance))
        longest = length // 2
        if needed < longest or longest == 0:
            return needed, longest
        voxels = 2 * length * prod(_aside(source, axis))
        if length == source.shape[axis] or voxels > _MOST_VOXELS:
            return None, longest
        length *= 2


def _reach(call: Callable[[Any], Any], sample: Array, axis: int, tolerance: float) -> int:
    """Return how far from a cut through the middle of a sample the results differ.

    They may differ since what lies beyond the cut is not there, or is something else: as dark, or
    as bright, as the sample goes.
    """
    whole, middle = to_host(call(sample)), sample.shape[axis] // 2
    ahead = (slice(None),) * axis
    upper, lower = (*ahead, slice(middle, None)), (*ahead, slice(None, middle))
    reach = 0
    for part, beside in ((upper, middle - 1), (lower, middle)):
        if not sample[part].size or not 0 <= beside < sample.shape[axis]:
            continue
        others = [to_host(call(sample[part]))]
        for extreme in (np.min, np.max):
            changed = sample.copy()
            changed[(*ahead, beside)] = extreme(sample)
            others.append(to_host(call(changed))[part])
        different = np.any([_differ(other, whole[part], tolerance) for other in others], axis=0)
        aside = tuple(n for n in range(sample.ndim) if n != axis)
        (places,) = np.nonzero(different.any(axis=aside))
        if places.size:
            reach = max(reach, places[-1] + 1 if part is upper else middle - places[0])
    return int(reach)


def _differ(one: Array, other: Array, tolerance: float) -> npt.NDArray[np.bool_]:
    same: npt.NDArray[np.bool_] = np.asarray(one == other)
    if one.dtype.kind in "fc":
        same |= np.isnan(one) & np.isnan(other)
    if tolerance:
        with np.errstate(invalid="ignore"):
            same |= np.abs(one.astype(np.float64) - other.astype(np.float64)) <= tolerance
    return ~same


def _aside(source: Source, axis: int) -> list[int]:
    return [min(_ASIDE, size) for n, size in enumerate(source.shape) if n != axis]


def _samples(
    source: Source, axis: int, length: int, count: int, rng: np.random.Generator
) -> Iterator[Array]:
    """Yield parts of the source, the first one from its middle, and then as much noise.

    Numbers stand for what is none, which would hide what lies beside it.
    """
    shape = [min(_ASIDE, size) for size in source.shape]
    shape[axis] = min(length, source.shape[axis])
    room = [size - part for size, part in zip(source.shape, shape, strict=True)]
    low, high = 0.0, 0.0
    for n in range((count + 1) // 2):
        start = [free // 2 if n == 0 else int(rng.integers(0, free + 1)) for free in room]
        stop = tuple([a + b for a, b in zip(start, shape, strict=True)])
        part = source.read(Region(tuple(start), stop))
        if part.dtype.kind == "f":
            np.nan_to_num(part, copy=False)
        low, high = min(low, float(part.min())), max(high, float(part.max()))
        yield part
    for n in range(count // 2):
        noise = rng.random(shape) if n % 2 else rng.integers(0, 2, shape)
        yield (low + noise * (high - low)).astype(source.dtype)


def _difference(call: Callable[[Any], Any], sample: Array) -> float | None:
    """Return the largest difference between results on CPU and GPU; None without a GPU."""
    if gpus.gpu_status(exact=True):
        return None
    on_host = to_host(call(sample)).astype(np.float64)
    try:
        on_device = to_host(call(to_device(sample))).astype(np.float64)
    except Exception:
        return float("inf")
    differ = _differ(on_host, on_device, 0.0)
    return float(np.abs(on_host - on_device)[differ].max(initial=0.0))
