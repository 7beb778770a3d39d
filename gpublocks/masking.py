"""Which cells of a grid have something inside a mask. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpublocks.contracts import Array
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.geometry import Cell

__all__ = ["Mask"]


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """A mask of a volume, at any integer fraction of its resolution.

    Parameters
    ----------
    array : ndarray of bool
    factors : tuple of (int, int)
        Fewest and most voxels of the volume for each voxel of the mask, per axis: several
        fractions may give masks of one length.
    shape : tuple of int
        Shape of the volume.
    """

    array: Array
    factors: tuple[tuple[int, int], ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: Array, shape: Sequence[int]) -> "Mask":
        """Return the mask of a volume of a shape.

        Raises
        ------
        ArgumentTypeError
            If it is not an array of bool.
        PlanError
            If its shape is no integer fraction (rounded up) of the volume's.
        """
        if array.dtype != np.bool_:
            raise ArgumentTypeError(f"mask has dtype {array.dtype}; give an array of bool")
        factors = []
        for length, coarse in zip(shape, array.shape, strict=False):
            fewest = max(1, -(-length // max(1, coarse)))
            if -(-length // fewest) == coarse:
                most = length if coarse < 2 else -(-length // (coarse - 1)) - 1
                factors.append((fewest, max(fewest, most)))
        if not len(factors) == array.ndim == len(shape):
            raise PlanError(
                f"mask of shape {array.shape} is no integer fraction of the source's shape "
                f"{tuple(shape)}"
            )
        return cls(array, tuple(factors), tuple(shape))

    def holds(self, cell: Cell) -> bool:
        """Tell whether anything of a cell's valid region may be inside the mask."""
        region = cell.valid_in(self.shape)
        box = tuple(
            slice(lo // most, -(-hi // fewest))
            for lo, hi, (fewest, most) in zip(region.start, region.stop, self.factors, strict=True)
        )
        return bool(self.array[box].any())
