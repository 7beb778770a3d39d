"""Minima and maxima of windows of any shape: the same voxels from every engine. Pure."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt

from gpublocks.arrays import array_namespace
from gpublocks.filters.dtypes import comparable, restored
from gpublocks.filters.engines.borders import OUTSIDE, extended
from gpublocks.filters.engines.choice import engine_of
from gpublocks.filters.engines.launching import MODES, launch
from gpublocks.filters.engines.layouts import in_memory_order
from gpublocks.filters.parameters import Border, Mode, Span

__all__ = ["extremes_of_footprint", "taps"]


def extremes_of_footprint(
    array: Any,
    footprint: npt.NDArray[np.bool_],
    spans: Sequence[Span],
    border: Border,
    *,
    most: bool,
) -> Any:
    """Return the minimum or the maximum of the voxels under a footprint around each voxel.

    NaN and zeros are as in `gpublocks.filters.engines.windows`.

    Parameters
    ----------
    array : ndarray of real numbers
    footprint : ndarray of bool
        As many axes as the array has.
    spans : sequence of Span
        Voxels of the footprint before and after its own, on each axis.
    border : Border
    most : bool
        Whether to find maxima.
    """
    if not array.size:
        return array.copy("K")
    given, flipped = in_memory_order(array)
    source, beyond = comparable(given, border[1])
    target = array_namespace(source).empty(source.shape, source.dtype)
    if flipped:
        footprint, spans = footprint.T, spans[::-1]
    more = max(0, 3 - source.ndim)
    _fold(
        source.reshape((1,) * more + source.shape),
        target.reshape((1,) * more + source.shape),
        footprint.reshape((1,) * more + footprint.shape),
        [(0, 0)] * more + list(spans),
        border[0],
        beyond,
        most,
    )
    found = restored(target, array.dtype)
    return found.T if flipped else found


def _fold(
    source: Any,
    target: Any,
    footprint: Any,
    spans: list[Span],
    mode: Mode,
    beyond: Any,
    most: bool,
) -> None:
    """Go through volumes of three axes, and those that a volume of the result depends on."""
    xp = array_namespace(source)
    outer = source.shape[:-3]
    pick = xp.maximum if most else xp.minimum
    indices = [extended(n, *span, mode) for n, span in zip(outer, spans, strict=False)]
    parts = [(place, taps(footprint[place])) for place in np.ndindex(footprint.shape[:-3])]
    for where in np.ndindex(outer):
        begun = False
        for place, listed in parts:
            if not len(listed):
                continue
            found = [line[i + j] for line, i, j in zip(indices, where, place, strict=True)]
            if OUTSIDE not in found:
                inner = tuple(spans[-3:])
                _over(source[tuple(found)], target[where], listed, inner, mode, beyond, most, begun)
            elif begun:
                pick(target[where], beyond[0], out=target[where])
            else:
                target[where] = beyond[0]
            begun = True


def taps(footprint: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the windows along the last axis of which a footprint of three axes is made.

    Returns
    -------
    ndarray of int64, shape (n, 4)
        Of each the power of two that is its length, and where it begins on each axis.

    Examples
    --------
    >>> taps(np.array([[[False, True, True, True]]])).tolist()
    [[1, 0, 0, 1], [1, 0, 0, 2]]
    """
    found = []
    for i, j in zip(*np.nonzero(footprint.any(2)), strict=True):
        for start, length in _runs(footprint[i, j]):
            level = length.bit_length() - 1
            ends = sorted({start, start + length - (1 << level)})
            found += [(level, i, j, place) for place in ends]
    return np.array(found, np.int64).reshape(-1, 4)


def _runs(line: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Yield where stretches of a line that are True begin, and how long they are."""
    start = 0
    for value, group in groupby(line.tolist()):
        length = len(list(group))
        if value:
            yield start, length
        start += length


def _over(
    source: Any,
    target: Any,
    taps: Any,
    spans: Any,
    mode: Mode,
    beyond: Any,
    most: bool,
    begun: bool,
) -> None:
    """Find the extremes under a footprint of three axes."""
    engine = engine_of(source)
    if engine == "cuda":
        before = [span[0] for span in spans]
        offsets = np.repeat(taps[:, 1:] - before, 1 << taps[:, 0], axis=0)
        within = np.concatenate([np.arange(1 << level) for level in taps[:, 0]])
        offsets[:, 2] += within
        offsets = np.unique(offsets, axis=0).astype(np.int32)
        launch(
            "footprint",
            {"Source": source, "Target": target},
            target.size,
            *map(np.int64, source.shape),
            array_namespace(source).asarray(offsets),
            len(offsets),
            MODES[mode],
            float(beyond[0]),
            most,
            begun,
        )
    elif engine == "numba":
        from gpublocks.filters.engines.compiled.shapes import extremes_over

        extremes_over(source, target, taps, spans, mode, beyond, most, begun)
    else:
        from gpublocks.filters.engines.shifted import extremes_over

        extremes_over(source, target, taps, spans, mode, beyond, most, begun)
