"""Minima and maxima of windows along one axis. Pure.

A window is the extreme of shorter ones, which may overlap: voxels become windows of 4 voxels, these
windows of 16, and so on; four of the last ones, or fewer, make the window.
"""

from typing import Any

import numpy as np

from gpublocks.filters.engines.borders import extended
from gpublocks.filters.engines.compiled.compiling import compiled
from gpublocks.filters.engines.compiled.sheets import layout, load, pieces, room
from gpublocks.filters.parameters import Mode, Span

__all__ = ["combine", "extremes_along", "higher", "lower"]


def extremes_along(
    source: Any, target: Any, span: Span, mode: Mode, beyond: Any, most: bool
) -> None:
    """Find the extremes of windows along the middle one of three axes.

    Parameters
    ----------
    source, target : ndarray, contiguous, of one type
        The target may be the source.
    span : tuple of int
        Voxels of the window before and after its own.
    mode : str
    beyond : ndarray of one voxel
        The value of ``'constant'``.
    most : bool
        Whether to find maxima.
    """
    indices = extended(source.shape[1], *span, mode)
    boxes, shape, fastest = pieces(source.shape, len(indices), source.itemsize)
    before, size = span[0], sum(span) + 1
    source, target = source.reshape(shape), target.reshape(shape)
    _extremes(source, target, boxes, indices, before, size, beyond, fastest, most)


@compiled
def _extremes(
    source: Any,
    target: Any,
    boxes: Any,
    indices: Any,
    before: int,
    size: int,
    beyond: Any,
    fastest: bool,
    most: bool,
) -> None:
    windows = np.empty(room(boxes, len(indices), fastest), source.dtype)
    other = np.empty_like(windows)
    for box in boxes:
        o, first, stop, start, end = box
        count, step, stride = layout(box, len(indices), fastest)
        load(source, box, indices, before, beyond[0], fastest, windows)
        width = 1
        while 4 * width < size:
            apart = width * step
            count -= 3 * apart
            combine(windows, apart, 2 * apart, 3 * apart, other, count, most)
            windows, other, width = other, windows, 4 * width
        last = step * (size - width)
        second, third = min(step * width, last), min(2 * step * width, last)
        for r in range(stop - first):
            row = target[o, first + r, start:end]
            combine(windows[r * stride :], second, third, last, row, end - start, most)


@compiled
def combine(
    windows: Any, second: int, third: int, fourth: int, target: Any, n: int, most: bool
) -> None:
    """Set so many voxels to the extreme of four windows: there, and so far behind."""
    # Slices, which begin at 0, spare vectors the question whether an index is negative.
    one, two, three = windows[second:], windows[third:], windows[fourth:]
    if most:
        for i in range(n):
            target[i] = higher(higher(windows[i], one[i]), higher(two[i], three[i]))
    else:
        for i in range(n):
            target[i] = lower(lower(windows[i], one[i]), lower(two[i], three[i]))


@compiled
def lower(a: Any, b: Any) -> Any:
    """Return the lower one of two numbers; NaN if one is NaN."""
    return a if a < b or a != a else b


@compiled
def higher(a: Any, b: Any) -> Any:
    """Return the higher one of two numbers; NaN if one is NaN."""
    return a if a > b or a != a else b
