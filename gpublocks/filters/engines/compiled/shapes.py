"""Minima and maxima of windows of any shape. Pure.

A window is a number of lines along the fastest axis. The extremes of 2, 4, 8, ... voxels that
follow each other are found once for a piece of the array; a line is the extreme of two of these,
which may overlap.
"""

from typing import Any

import numpy as np

from gpublocks.filters.engines.borders import extended
from gpublocks.filters.engines.compiled.compiling import compiled
from gpublocks.filters.engines.compiled.extremes import combine, higher, lower
from gpublocks.filters.parameters import Mode, Span

__all__ = ["extremes_over"]

_PIECE_BYTES = 1 << 21
"""What a piece takes at most. Measured: half of it takes twice the time for large balls."""

_ROW_BYTES = 512


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
    """Find the extremes of windows of any shape in three axes.

    Parameters
    ----------
    source, target : ndarray, contiguous, of one type
    taps : ndarray of int, shape (n, 4)
        As `gpublocks.filters.engines.footprint_extremes` makes them.
    spans : tuple of Span
        Voxels of the window before and after its own on each axis.
    mode : str
    beyond : ndarray of one voxel
        The value of ``'constant'``.
    most : bool
        Whether to find maxima.
    begun : bool
        Whether the target has extremes already, to which these are added.
    """
    planes, lines, voxels = (
        extended(n, *span, mode) for n, span in zip(source.shape, spans, strict=True)
    )
    levels = int(taps[:, 0].max()) + 1
    reach = np.array([sum(span) for span in spans])
    size = _piece(source, reach, levels)
    # Windows are taken four at a time; it does no harm to take one of them again.
    filled = np.concatenate([taps, np.repeat(taps[-1:], -len(taps) % 4, axis=0)])
    room = np.empty((levels, *np.minimum(size, source.shape) + reach), source.dtype)
    _over(
        source,
        target,
        filled,
        planes,
        lines,
        voxels,
        spans[2][0],
        reach,
        size,
        room,
        beyond,
        most,
        begun,
    )


def _piece(source: Any, reach: Any, levels: int) -> Any:
    """Return how many voxels of each axis to do at once."""
    row = min(source.shape[2], max(1, _ROW_BYTES // source.itemsize))
    lines = [n if r else 1 for n, r in zip(source.shape[:2], reach[:2], strict=True)]
    for side in (64, 32, 16, 8, 4):
        size = np.array([*(min(n, side) for n in lines), row])
        if np.prod(size + reach) * levels * source.itemsize <= _PIECE_BYTES:
            break
    return size


@compiled
def _over(
    source: Any,
    target: Any,
    taps: Any,
    planes: Any,
    lines: Any,
    voxels: Any,
    before: int,
    reach: Any,
    size: Any,
    room: Any,
    beyond: Any,
    most: bool,
    begun: bool,
) -> None:
    depth, height, width = source.shape
    for a in range(0, depth, size[0]):
        for b in range(0, height, size[1]):
            for c in range(0, width, size[2]):
                na, nb = min(size[0], depth - a), min(size[1], height - b)
                nc = min(size[2], width - c)
                for i in range(na + reach[0]):
                    for j in range(nb + reach[1]):
                        place, line = planes[a + i], lines[b + j]
                        row = room[0, i, j]
                        if place < 0 or line < 0:
                            row[: nc + reach[2]] = beyond[0]
                        else:
                            _load(
                                source[place, line],
                                voxels,
                                c,
                                before,
                                nc + reach[2],
                                beyond[0],
                                row,
                            )
                        _double(room, i, j, nc + reach[2], most)
                for i in range(na):
                    for j in range(nb):
                        row = target[a + i, b + j, c : c + nc]
                        _gather(room, taps, i, j, row, nc, most, begun)


@compiled
def _load(line: Any, voxels: Any, start: int, before: int, n: int, beyond: Any, row: Any) -> None:
    inside = max(0, before - start)
    end = max(inside, min(n, len(line) + before - start))
    for i in range(inside):
        index = voxels[start + i]
        row[i] = beyond if index < 0 else line[index]
    part, kept = line[start + inside - before :], row[inside:]
    for i in range(end - inside):
        kept[i] = part[i]
    for i in range(end, n):
        index = voxels[start + i]
        row[i] = beyond if index < 0 else line[index]


@compiled
def _double(room: Any, i: int, j: int, n: int, most: bool) -> None:
    """Find the extremes of 2, 4, 8, ... voxels of a line."""
    width = 1
    for level in range(1, len(room)):
        n -= width
        combine(room[level - 1, i, j], 0, width, width, room[level, i, j], n, most)
        width *= 2


@compiled
def _gather(
    room: Any, taps: Any, i: int, j: int, row: Any, n: int, most: bool, begun: bool
) -> None:
    """Find the extremes of the windows of a row of voxels."""
    for k in range(0, len(taps), 4):
        one = room[taps[k, 0], i + taps[k, 1], j + taps[k, 2], taps[k, 3] :]
        two = room[taps[k + 1, 0], i + taps[k + 1, 1], j + taps[k + 1, 2], taps[k + 1, 3] :]
        three = room[taps[k + 2, 0], i + taps[k + 2, 1], j + taps[k + 2, 2], taps[k + 2, 3] :]
        four = room[taps[k + 3, 0], i + taps[k + 3, 1], j + taps[k + 3, 2], taps[k + 3, 3] :]
        if k == 0 and not begun:
            for x in range(n):
                row[x] = one[x]
        if most:
            for x in range(n):
                found = higher(higher(one[x], two[x]), higher(three[x], four[x]))
                row[x] = higher(row[x], found)
        else:
            for x in range(n):
                found = lower(lower(one[x], two[x]), lower(three[x], four[x]))
                row[x] = lower(row[x], found)
