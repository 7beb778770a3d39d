"""Ranks by counting voxels, as small numbers, in histograms that slide. Pure."""

from dataclasses import dataclass
from math import prod, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from gpublocks.filters.engines.footprints import Footprint
from gpublocks.filters.engines.pieces import Place

__all__ = ["Counting", "codes_of"]

_BYTE, _CODES = 2**8, 2**16

_USUAL = 2**12
"""Values that voxels of 16 bits have in a piece of an image, as a rule."""

_TABLE_BYTES, _COLUMNS = 2**24, 256
"""What histograms of a row of columns may take, and how long it is beside the window: larger ones
lie in no cache."""


def codes_of(keys: Any) -> tuple[Any, Any]:
    """Return small numbers in the order of keys, and what gives the keys for them.

    Returns
    -------
    ndarray of uint16 or uint32
        Numbers that are not above 255, or all of those from 0 to the greatest.
    callable
        Makes new keys of such numbers.
    """
    low, high = keys.min(), keys.max()
    span = int(high) - int(low) + 1
    if span > _CODES or span > max(keys.size, _BYTE):
        values, codes = np.unique(keys, return_inverse=True)
        kind = np.uint16 if len(values) <= _CODES else np.uint32
        return codes.reshape(keys.shape).astype(kind), lambda codes: values[codes]
    codes = (keys - low).astype(np.uint16)
    if span <= _BYTE:
        return codes, lambda codes: codes.astype(keys.dtype) + low
    found = np.zeros(span, bool)
    found[codes] = True
    values = np.flatnonzero(found).astype(keys.dtype) + low
    numbers = np.cumsum(found, dtype=np.uint16)
    numbers -= np.uint16(1)
    return numbers[codes], lambda codes: values[codes]


@dataclass(frozen=True, slots=True)
class Counting:
    """Finds the ranks of a piece by histograms.

    Attributes
    ----------
    footprint : Footprint
    rank : int
        From 0 on.
    """

    footprint: Footprint
    rank: int

    def cost(self, itemsize: int) -> float:
        """Return about how many nanoseconds it takes for a voxel."""
        if itemsize > 2:
            return 250 + _lines_cost(self.footprint)
        bins = _BYTE if itemsize == 1 else _USUAL
        return min(_columns_cost(self.footprint, bins), _lines_cost(self.footprint))

    def room(self, width: int, itemsize: int) -> int:
        """Return the voxels that it needs beside those of a piece: none."""
        return 0

    def find(self, memory: Any, keys: Any, result: Any, place: Place) -> None:
        """Write the ranks of a piece, as `gpublocks.filters.engines.sorting.Sorting` does."""
        codes, keys_of = codes_of(keys)
        shape = [part.stop - part.start for part in place]
        bins = int(codes.max()) + 1
        steps = np.array(codes.strides, np.int64) // codes.itemsize
        if _columns_cost(self.footprint, bins) < _lines_cost(self.footprint):
            found = _by_columns(codes, shape, steps, self.footprint, self.rank, bins)
        else:
            found = _along_lines(codes, shape, steps, self.footprint, self.rank, bins)
        result[place] = keys_of(found)


def _lines_cost(footprint: Footprint) -> float:
    return 10 + 3 * len(footprint) / max(footprint.lengths)


def _columns_cost(footprint: Footprint, bins: int) -> float:
    if not footprint.is_box or len(footprint.lengths) < 2:
        return float("inf")
    *others, _, length = sorted(footprint.lengths)
    if 2 * bins * (length + _COLUMNS) > _TABLE_BYTES:
        return float("inf")
    return 40 + 2.5 * prod(others) + 1.2 * sqrt(bins)


def _along_lines(
    codes: Any,
    shape: list[int],
    steps: npt.NDArray[np.int64],
    footprint: Footprint,
    rank: int,
    bins: int,
) -> Any:
    from gpublocks.filters.engines.compiled.histograms import ranked_along

    axis, leaving, entering = footprint.sliding
    lines = [1 if a == axis else n for a, n in enumerate(shape)]
    starts = (np.indices(lines).reshape(codes.ndim, -1).T + footprint.halo) @ steps
    target = np.empty((len(starts), shape[axis]), codes.dtype)
    ranked_along(
        codes.reshape(-1),
        starts,
        shape[axis],
        steps[axis],
        footprint.offsets @ steps,
        leaving @ steps,
        entering @ steps,
        rank,
        np.zeros(bins, np.int32),
        max(1, (bins - 1).bit_length() // 3),
        target,
    )
    others = [n for a, n in enumerate(shape) if a != axis]
    return np.moveaxis(target.reshape(*others, shape[axis]), -1, axis)


def _by_columns(
    codes: Any,
    shape: list[int],
    steps: npt.NDArray[np.int64],
    footprint: Footprint,
    rank: int,
    bins: int,
) -> Any:
    from gpublocks.filters.engines.compiled.histograms import ranked_by_columns

    lengths = footprint.lengths
    one, other = sorted(sorted(range(codes.ndim), key=lambda axis: (lengths[axis], axis))[-2:])
    planes = [1 if axis in (one, other) else n for axis, n in enumerate(shape)]
    first = footprint.offsets[0] + footprint.halo
    corners = (np.indices(planes).reshape(codes.ndim, -1).T + first) @ steps
    face = [1 if axis in (one, other) else n for axis, n in enumerate(lengths)]
    target = np.empty((len(corners), shape[one], shape[other]), codes.dtype)
    kind = np.uint16 if len(footprint) < _CODES else np.uint32
    part = 1 << -(-(bins - 1).bit_length() // 2)
    ranked_by_columns(
        codes.reshape(-1),
        corners,
        np.indices(face).reshape(codes.ndim, -1).T @ steps,
        (lengths[one], lengths[other]),
        (steps[one], steps[other]),
        rank,
        np.zeros((shape[other] + lengths[other] - 1, -(-bins // part), part), kind),
        target,
    )
    others = [n for axis, n in enumerate(shape) if axis not in (one, other)]
    return np.moveaxis(target.reshape(*others, *target.shape[1:]), (-2, -1), (one, other))
