"""Windows by shifted arrays of NumPy, for where Numba is missing. Pure.

The same numbers as those of `gpublocks.filters.engines.compiled`, in the same order where it
matters.
"""

from typing import Any

import numpy as np

from gpublocks.filters.dtypes import converted
from gpublocks.filters.engines.borders import extended
from gpublocks.filters.parameters import Mode, Span

__all__ = ["extremes_along", "sums_along"]


def extremes_along(
    source: Any, target: Any, span: Span, mode: Mode, beyond: Any, most: bool
) -> None:
    """Find the extremes of windows along the middle one of three axes."""
    pick = np.maximum if most else np.minimum
    windows, width, size = _continued(source, span, mode, beyond), 1, sum(span) + 1
    while 2 * width < size:
        windows = pick(windows[:, :-width], windows[:, width:])
        width *= 2
    length = source.shape[1]
    pick(windows[:, :length], windows[:, size - width : size - width + length], out=target)


def sums_along(source: Any, target: Any, span: Span, mode: Mode, beyond: Any, divisor: int) -> None:
    """Sum windows along the middle one of three axes, and divide."""
    length, size = source.shape[1], sum(span) + 1
    sums, done, width = _continued(source, span, mode, beyond), 0, 1
    total: Any = None
    while width <= size:
        if size & width:
            part = sums[:, done : done + length]
            total = part if total is None else total + part
            done += width
        sums = sums[:, :-width] + sums[:, width:]
        width *= 2
    if divisor != 1:
        total = converted(total / float(divisor), target.dtype)
    target[...] = total


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
    pick = np.maximum if most else np.minimum
    indices = [extended(n, *span, mode) for n, span in zip(source.shape, spans, strict=True)]
    windows = source[np.ix_(*indices)]
    for axis, found in enumerate(indices):
        windows[(slice(None),) * axis + (found < 0,)] = beyond
    depth, height, width = source.shape
    for level in range(int(taps[:, 0].max()) + 1):
        if level:
            half = 1 << level - 1
            windows = pick(windows[..., :-half], windows[..., half:])
        for i, j, k in taps[taps[:, 0] == level, 1:]:
            part = windows[i : i + depth, j : j + height, k : k + width]
            target[...] = pick(target, part) if begun else part
            begun = True
