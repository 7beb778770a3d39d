"""Which voxels around a voxel a filter looks at. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gpublocks.errors import ArgumentTypeError, PlanError

__all__ = ["Footprint", "box", "footprint_of", "truth_values"]

Offsets = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Footprint:
    """Voxels that are looked at, as seen from the voxel of the result.

    Attributes
    ----------
    offsets : ndarray of int64, shape (size, axes)
        In the order of C.
    """

    offsets: Offsets

    def __len__(self) -> int:
        return len(self.offsets)

    @cached_property
    def halo(self) -> tuple[int, ...]:
        """How far it looks along each axis."""
        return tuple(np.abs(self.offsets).max(axis=0).tolist())

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Voxels of the box around it."""
        return tuple((np.ptp(self.offsets, axis=0) + 1).tolist())

    @cached_property
    def is_box(self) -> bool:
        """Whether it is a box."""
        return len(self) == int(np.prod(self.lengths))

    @cached_property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Truth values around the voxel, `halo` voxels on each side."""
        mask = np.zeros([2 * reach + 1 for reach in self.halo], bool)
        mask[tuple((self.offsets + self.halo).T)] = True
        return mask

    @property
    def reversed(self) -> "Footprint":
        """The same for an array with its axes in reversed order."""
        offsets = self.offsets[:, ::-1]
        return Footprint(np.ascontiguousarray(offsets[np.lexsort(offsets.T[::-1])]))

    @cached_property
    def sliding(self) -> tuple[int, Offsets, Offsets]:
        """The axis along which the fewest voxels enter, the last of several; and these voxels.

        Those that the next voxel along it does not see any more, and those that only that one sees,
        as seen from this voxel.
        """
        found = []
        wide = np.pad(self.mask, 1)
        for axis in reversed(range(wide.ndim)):
            step = np.zeros(wide.ndim, np.int64)
            step[axis] = 1
            leaving = np.argwhere(wide & ~np.roll(wide, 1, axis)) - 1 - self.halo
            entering = np.argwhere(wide & ~np.roll(wide, -1, axis)) - 1 - self.halo + step
            found.append((axis, leaving, entering))
        return min(found, key=lambda one: len(one[1]))


def box(lengths: Sequence[int]) -> Footprint:
    """Return a box, of which even lengths reach one voxel further back than ahead."""
    offsets = np.indices(lengths).reshape(len(lengths), -1).T - [n // 2 for n in lengths]
    return Footprint(np.ascontiguousarray(offsets, np.int64))


def footprint_of(mask: npt.NDArray[np.bool_]) -> Footprint:
    """Return the footprint of truth values around a voxel, which lies as that of a `box` does."""
    offsets = np.argwhere(mask) - [n // 2 for n in mask.shape]
    return Footprint(np.ascontiguousarray(offsets, np.int64))


def truth_values(footprint: object) -> npt.NDArray[np.bool_]:
    """Return a footprint as an array of truth values.

    Raises
    ------
    ArgumentTypeError
        If it is none.
    PlanError
        If it has no axes or no voxel.
    """
    try:
        mask = np.array(footprint, bool)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(
            f"footprint is {footprint!r}; give an array of truth values"
        ) from error
    if not mask.ndim or not mask.any():
        raise PlanError(
            f"footprint of shape {mask.shape} has no voxel; give an array with one at least"
        )
    return mask
