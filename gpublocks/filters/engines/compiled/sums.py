"""Sums and means of windows along one axis. Pure."""

from typing import Any

import numpy as np

from gpublocks.filters.dtypes import limits
from gpublocks.filters.engines.borders import extended
from gpublocks.filters.engines.compiled.compiling import compiled
from gpublocks.filters.engines.compiled.sheets import layout, load, pieces, room
from gpublocks.filters.engines.compiled.storing import store
from gpublocks.filters.parameters import Mode, Span

__all__ = ["sums_along"]


def sums_along(source: Any, target: Any, span: Span, mode: Mode, beyond: Any, divisor: int) -> None:
    """Sum windows along the middle one of three axes.

    Parameters
    ----------
    source, target : ndarray, contiguous
        The target may be the source.
    span : tuple of int
        Voxels of the window before and after its own.
    mode : str
    beyond : ndarray of one voxel
        The value of ``'constant'``, in the type in which sums are taken: integers that hold all
        of them, or float64.
    divisor : int
        What to divide by; 1 stores sums as they are.
    """
    indices = extended(source.shape[1], *span, mode)
    boxes, shape, fastest = pieces(source.shape, len(indices), beyond.itemsize)
    whole = target.dtype.kind in "iu"
    low, high = limits(target.dtype) if whole else (0.0, 0.0)
    sums = _trees if beyond.dtype.kind == "f" else _differences
    sums(
        source.reshape(shape),
        target.reshape(shape),
        boxes,
        indices,
        span[0],
        sum(span) + 1,
        beyond,
        fastest,
        float(divisor),
        whole,
        low,
        high,
    )


@compiled
def _differences(
    source: Any,
    target: Any,
    boxes: Any,
    indices: Any,
    before: int,
    size: int,
    beyond: Any,
    fastest: bool,
    divisor: float,
    whole: bool,
    low: float,
    high: float,
) -> None:
    """Take differences of running sums of integers, exact even where these wrap."""
    longest = boxes[0, 4] - boxes[0, 3]
    running = np.empty(room(boxes, len(indices), fastest) + longest, beyond.dtype)
    window = np.empty(longest, beyond.dtype)
    mean = np.empty(longest)
    for box in boxes:
        o, first, stop, start, end = box
        count, step, stride = layout(box, len(indices), fastest)
        running[:step] = 0
        voxels = running[step:]
        load(source, box, indices, before, beyond[0], fastest, voxels)
        _accumulate(running, voxels, count, step)
        for r in range(stop - first):
            begins = running[r * stride :]
            _subtract(begins, begins[size * step :], window, end - start)
            row = target[o, first + r, start:end]
            _divide(window, divisor, mean, row, end - start, whole, low, high)


@compiled
def _accumulate(running: Any, voxels: Any, count: int, step: int) -> None:
    if step == 1:
        total = running[0]
        for i in range(count):
            total += voxels[i]
            voxels[i] = total
    else:
        for at in range(0, count, step):
            row, before = voxels[at:], running[at:]
            for i in range(step):
                row[i] += before[i]


@compiled
def _subtract(begins: Any, ends: Any, window: Any, n: int) -> None:
    for i in range(n):
        window[i] = ends[i] - begins[i]


@compiled
def _trees(
    source: Any,
    target: Any,
    boxes: Any,
    indices: Any,
    before: int,
    size: int,
    beyond: Any,
    fastest: bool,
    divisor: float,
    whole: bool,
    low: float,
    high: float,
) -> None:
    """Sum floats in the order that `gpublocks.filters.engines.windows` fixes."""
    sums = np.empty(room(boxes, len(indices), fastest), beyond.dtype)
    other, total = np.empty_like(sums), np.empty_like(sums)
    window = np.empty(boxes[0, 4] - boxes[0, 3])
    for box in boxes:
        o, first, stop, start, end = box
        count, step, stride = layout(box, len(indices), fastest)
        load(source, box, indices, before, beyond[0], fastest, sums)
        windows = count - (size - 1) * step
        done, width = 0, 1
        while 4 * width <= size:
            _add(
                total,
                sums[done * step :],
                width * step,
                size // width % 4,
                done > 0,
                total,
                windows,
            )
            done += size // width % 4 * width
            count -= 3 * width * step
            _sum_four(sums, width * step, other, count)
            sums, other, width = other, sums, 4 * width
        for r in range(stop - first):
            n = end - start
            last = sums[done * step + r * stride :]
            _add(total[r * stride :], last, width * step, size // width, done > 0, window, n)
            _divide(window, divisor, window, target[o, first + r, start:end], n, whole, low, high)


@compiled
def _sum_four(sums: Any, apart: int, target: Any, n: int) -> None:
    one, two, three = sums[apart:], sums[2 * apart :], sums[3 * apart :]
    for i in range(n):
        target[i] = (sums[i] + one[i]) + (two[i] + three[i])


@compiled
def _add(total: Any, sums: Any, apart: int, several: int, begun: bool, target: Any, n: int) -> None:
    """Add one, two or three neighbouring sums; an odd one is the first, and stands alone."""
    one, two = sums[apart:], sums[2 * apart :]
    if several == 1 and begun:
        for i in range(n):
            target[i] = total[i] + sums[i]
    elif several == 1:
        for i in range(n):
            target[i] = sums[i]
    elif several == 2 and begun:
        for i in range(n):
            target[i] = total[i] + (sums[i] + one[i])
    elif several == 2:
        for i in range(n):
            target[i] = sums[i] + one[i]
    elif several == 3 and begun:
        for i in range(n):
            target[i] = (total[i] + sums[i]) + (one[i] + two[i])
    elif several == 3:
        for i in range(n):
            target[i] = sums[i] + (one[i] + two[i])


@compiled
def _divide(
    sums: Any, divisor: float, mean: Any, row: Any, n: int, whole: bool, low: float, high: float
) -> None:
    if divisor == 1:
        for i in range(n):
            row[i] = sums[i]
    elif whole:
        for i in range(n):
            mean[i] = sums[i] / divisor
        store(mean, row, n, whole, low, high)
    else:
        for i in range(n):
            row[i] = sums[i] / divisor
