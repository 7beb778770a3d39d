"""Ranks by sorting the voxels of small footprints. Pure."""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from gpublocks.filters.engines.footprints import Footprint
from gpublocks.filters.engines.networks import Network, network
from gpublocks.filters.engines.pieces import Place

__all__ = ["Sorting", "sorting"]

_COMPARISON = 0.04
"""Nanoseconds that a byte of one comparison takes."""


@dataclass(frozen=True, slots=True)
class Sorting:
    """Finds the ranks of a piece by a network.

    Attributes
    ----------
    halo : tuple of int
    rows : ndarray of int64, shape (inputs, axes)
        Where the rows of inputs begin, as seen from the voxel of the result.
    network : Network
    """

    halo: tuple[int, ...]
    rows: npt.NDArray[np.int64]
    network: Network

    def cost(self, itemsize: int) -> float:
        """Return about how many nanoseconds it takes for a voxel."""
        return _COMPARISON * itemsize * len(self.network.operations)

    def room(self, width: int, itemsize: int) -> int:
        """Return how many voxels it needs beside those of a piece whose rows are so long."""
        from gpublocks.filters.engines.compiled.comparisons import longest_row

        rows = self.network.rows - self.network.inputs
        return (rows + 2) * longest_row(self.network, itemsize) + width

    def find(self, memory: Any, keys: Any, result: Any, place: Place) -> None:
        """Write the ranks of a piece.

        Parameters
        ----------
        memory : ndarray, 1-d
            Begins with the voxels of `keys`, and has the `room` after them.
        keys : ndarray of unsigned integers, contiguous
            The voxels of the piece, and `halo` voxels on each side.
        result : ndarray of the same type, contiguous
        place : tuple of slice
        """
        from gpublocks.filters.engines.compiled.comparisons import Stretches, rank_rows

        steps = np.array(keys.strides, np.int64) // keys.itemsize
        strides = np.array(result.strides, np.int64) // result.itemsize
        shape = [part.stop - part.start for part in place]
        planes = [*shape[:-2], *[1] * min(2, len(shape))]
        indices = np.indices(planes).reshape(len(shape), -1).T
        stretches = Stretches(
            starts=(indices + self.halo) @ steps,
            targets=(indices + [part.start for part in place]) @ strides,
            rows=prod(shape[-2:-1]),
            width=keys.shape[-1],
            kept=shape[-1],
            step=result.shape[-1],
        )
        rank_rows(memory, keys.size, self.rows @ steps, stretches, self.network, result.reshape(-1))


def sorting(footprint: Footprint, rank: int) -> Sorting:
    """Return what sorts the voxels of a footprint.

    Its rows lie along the last axis and begin where the footprint does; its columns are the voxels
    of rows at one place.
    """
    slow, rows = np.unique(footprint.offsets[:, :-1], axis=0, return_inverse=True)
    first = footprint.offsets[:, -1].min()
    shifts = footprint.offsets[:, -1] - first
    columns = [
        (shift, tuple(rows.reshape(-1)[shifts == shift].tolist()))
        for shift in np.unique(shifts).tolist()
    ]
    begins = np.insert(slow, slow.shape[1], first, axis=1)
    return Sorting(footprint.halo, begins, network(tuple(columns), rank))
