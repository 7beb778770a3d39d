"""The voxel of one rank among those of a footprint: the same from every engine. Pure.

Where Numba works, small footprints are sorted by networks, large ones counted in histograms, piece
by piece of an array; without it SciPy finds the ranks. On a GPU each thread looks for the number
that as many voxels of the footprint do not exceed.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from gpublocks.arrays import array_namespace
from gpublocks.contracts import DType
from gpublocks.filters.engines.choice import engine_of
from gpublocks.filters.engines.counting import Counting, codes_of
from gpublocks.filters.engines.footprints import Footprint
from gpublocks.filters.engines.keys import as_bits, from_keys, outside_bits, to_keys
from gpublocks.filters.engines.launching import MODES, launch
from gpublocks.filters.engines.layouts import in_memory_order
from gpublocks.filters.engines.pieces import Place, places, surround
from gpublocks.filters.engines.sorting import Sorting, sorting
from gpublocks.filters.parameters import Border

__all__ = ["ranked", "ranking_bytes"]

_PIECE = 2**18
"""Voxels of a piece with those around it: what is made of them stays in the level-2 cache."""

_SORTED = 600
"""Voxels of a footprint for which a network may be drawn: larger ones take seconds for it."""


def ranked(array: Any, footprint: Footprint, rank: int, border: Border) -> Any:
    """Return for each voxel the one of a rank among those that a footprint sees from it.

    Parameters
    ----------
    array : ndarray of real numbers
    footprint : Footprint
        With as many axes as the array.
    rank : int
        0 for the least voxel.
    border : Border

    Notes
    -----
    NaN is larger than everything, on all engines.
    """
    if not array.size:
        return array.copy()
    source, flipped = in_memory_order(array)
    footprint = footprint.reversed if flipped else footprint
    find = _on_device if engine_of(source) == "cuda" else _by_pieces
    result = find(source, footprint, rank, border)
    return result.T if flipped else result


def ranking_bytes(dtype: DType) -> float:
    """Return the bytes per voxel that `ranked` takes, for blocks of a few megabytes."""
    return dtype.itemsize + 4


def _by_pieces(source: Any, footprint: Footprint, rank: int, border: Border) -> Any:
    mode, cval = border
    halo, dtype = footprint.halo, source.dtype
    outside = outside_bits(cval, dtype)[0]
    bits, result = as_bits(source), np.empty(source.shape, dtype)
    finder = _finder(footprint, rank, source)
    memory = None
    for place in places(source.shape, halo, max(_PIECE, 2 * prod(footprint.lengths))):
        shape = [
            part.stop - part.start + 2 * reach for part, reach in zip(place, halo, strict=True)
        ]
        if memory is None:  # The first piece is the largest one.
            memory = np.empty(prod(shape) + finder.room(shape[-1], bits.itemsize), bits.dtype)
        keys = memory[: prod(shape)].reshape(shape)
        surround(keys, bits, place, halo, mode, outside)
        to_keys(keys, dtype)
        finder.find(memory, keys, as_bits(result), place)
        from_keys(as_bits(result)[place], dtype)
    return result


@dataclass(frozen=True, slots=True)
class _SciPy:
    """Finds the ranks of a piece by SciPy: of small numbers, since it rounds longer ones."""

    footprint: Footprint
    rank: int

    def room(self, width: int, itemsize: int) -> int:
        """Return the voxels that it needs: none."""
        return 0

    def find(self, memory: Any, keys: Any, result: Any, place: Place) -> None:
        """Write the ranks of a piece, as `gpublocks.filters.engines.sorting.Sorting` does."""
        from scipy import ndimage

        codes, keys_of = codes_of(keys)
        halo = self.footprint.halo
        inside = tuple([slice(reach, n - reach) for reach, n in zip(halo, keys.shape, strict=True)])
        # SciPy finds the ranks of a line by another way, which refuses some types and lengths.
        mask = self.footprint.mask[None]
        found = ndimage.rank_filter(codes[None], self.rank, footprint=mask)[0]
        result[place] = keys_of(found[inside])


def _finder(footprint: Footprint, rank: int, source: Any) -> Sorting | Counting | _SciPy:
    """Return what finds the ranks of a piece."""
    if engine_of(source) == "scipy":
        return _SciPy(footprint, rank)
    counting = Counting(footprint, rank)
    if len(footprint) > _SORTED:
        return counting
    network: Sorting | Counting = sorting(footprint, rank)
    return min(counting, network, key=lambda finder: finder.cost(source.itemsize))


def _on_device(source: Any, footprint: Footprint, rank: int, border: Border) -> Any:
    xp = array_namespace(source)
    mode, cval = border
    dtype = source.dtype
    result = xp.empty(source.shape, dtype)
    infinity = np.array([np.inf], dtype) if dtype.kind == "f" else np.zeros(1, dtype)
    strides = np.array(source.strides, np.int64) // dtype.itemsize
    launch(
        "rank",
        {"Source": as_bits(source), "Target": as_bits(result)},
        source.size,
        xp.asarray(np.concatenate([outside_bits(cval, dtype), as_bits(infinity)])),
        "uif".index(dtype.kind if dtype.kind != "b" else "u"),
        xp.asarray(np.array(source.shape)),
        xp.asarray(np.array(footprint.halo)),
        source.ndim,
        xp.asarray(footprint.offsets),
        xp.asarray(footprint.offsets @ strides),
        len(footprint),
        rank,
        MODES[mode],
    )
    return result
