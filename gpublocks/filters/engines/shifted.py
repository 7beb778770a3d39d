"""Windows by shifted arrays of NumPy, for where Numba is missing. Pure.

The same numbers as those of `gpublocks.filters.engines.compiled`, in the same order where it
matters.
"""

from typing import Any

import numpy as np

from gpublocks.filters.dtypes import converted
from gpublocks.filters.engines.borders import extended
from gpublocks.filters.engines.layouts import parts_along
from gpublocks.filters.parameters import Mode, Span

__all__ = ["extremes_along", "sums_along"]


def extremes_along(
    source: Any, target: Any, span: Span, mode: Mode, beyond: Any, most: bool
) -> None:
    """Find the extremes of windows along the middle one of three axes."""
    pick = np.maximum if most else np.minimum
    length, size = source.shape[1], sum(span) + 1
    for part in parts_along(source.shape):
        windows, width = _continued(source[part], span, mode, beyond), 1
        while 2 * width < size:
            windows = pick(windows[:, :-width], windows[:, width:])
            width *= 2
        last = windows[:, size - width : size - width + length]
        pick(windows[:, :length], last, out=target[part])


def sums_along(source: Any, target: Any, span: Span, mode: Mode, beyond: Any, divisor: int) -> None:
    """Sum windows along the middle one of three axes, and divide."""
    for part in parts_along(source.shape):
        total = _sums(_continued(source[part], span, mode, beyond), source.shape[1], sum(span) + 1)
        if divisor != 1:
            total = converted(total / float(divisor), target.dtype)
        target[part] = total


def _sums(sums: Any, length: int, size: int) -> Any:
    """Return the sums of all windows of so many voxels along the middle axis."""
    done, width = 0, 1
    total: Any = None
    while width <= size:
        if size & width:
            part = sums[:, done : done + length]
            total = part if total is None else total + part
            done += width
        sums = sums[:, :-width] + sums[:, width:]
        width *= 2
    return total


def _continued(source: Any, span: Span, mode: Mode, beyond: Any) -> Any:
    """Return an array that goes on beyond both ends of its middle axis, in the type of `beyond`."""
    indices = extended(source.shape[1], *span, mode)
    found = source.take(indices.clip(0), 1).astype(beyond.dtype, copy=False)
    found[:, indices < 0] = beyond
    return found


def extremes_over(
    source: Any,
    target: Any,
    taps: Any,
    spans: tuple[Span, Span, Span],
    mode: Mode,
    beyond: Any,
    most: bool,
    begun: bool,
) -> None:
    """Find the extremes of windows of any shape in three axes."""
    indices = [extended(n, *span, mode) for n, span in zip(source.shape, spans, strict=True)]
    depth, height, width = source.shape
    for place, _, _ in parts_along((depth, height * width, 1)):
        planes = target[place]
        stop = place.start + len(planes) + sum(spans[0])
        seen = [indices[0][place.start : stop], *indices[1:]]
        windows = source[np.ix_(*seen)]
        for axis, found in enumerate(seen):
            windows[(slice(None),) * axis + (found < 0,)] = beyond
        _pick_over(windows, planes, taps, np.maximum if most else np.minimum, begun)


def _pick_over(windows: Any, target: Any, taps: Any, pick: Any, begun: bool) -> None:
    depth, height, width = target.shape
    for level in range(int(taps[:, 0].max()) + 1):
        if level:
            half = 1 << level - 1
            windows = pick(windows[..., :-half], windows[..., half:])
        for i, j, k in taps[taps[:, 0] == level, 1:]:
            part = windows[i : i + depth, j : j + height, k : k + width]
            target[...] = pick(target, part) if begun else part
            begun = True
