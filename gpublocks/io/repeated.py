"""An array each of whose voxels is a box of voxels of a volume. Touches memory only."""

import os
from dataclasses import dataclass
from typing import Any

from gpublocks.contracts import Array, DType, Extent, Order, Reach
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.formats.files.picking import source_getitem
from gpublocks.geometry import Region
from gpublocks.voxels import (
    byte_range,
    memory_order,
    source_array,
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
    take,
)

__all__ = ["Repeated"]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Repeated:
    """A coarse array in memory at the resolution of a volume. It is no sink.

    Parameters
    ----------
    coarse : ndarray
    factors : tuple of int
        Voxels of the volume for each voxel of the array, per axis.
    shape : tuple of int
        Shape of the volume, at whose end boxes are cut.

    Raises
    ------
    PlanError
        If the boxes do not just cover the volume.

    Examples
    --------
    >>> import numpy as np
    >>> Repeated(np.array([1, 2, 3]), (2,), (5,))[:]
    array([1, 1, 2, 2, 3])
    """

    coarse: Array
    factors: tuple[int, ...]
    shape: tuple[int, ...]

    name = "Repeated-Source"
    location = None
    reach = Reach.PROCESS
    writable = False
    single_writer = False

    def __post_init__(self) -> None:
        covered = [-(-n // f) for n, f in zip(self.shape, self.factors, strict=True)]
        if self.coarse.shape != tuple(covered):
            raise PlanError(
                f"boxes of {self.factors} voxels of an array of shape {self.coarse.shape} do not "
                f"cover a volume of shape {self.shape}; give an array of shape {tuple(covered)}"
            )

    ndim = property(source_ndim)
    size = property(source_size)
    __len__ = source_len
    __array__ = source_array
    __repr__ = source_text
    __getitem__ = source_getitem
    info = source_info

    @property
    def dtype(self) -> DType:
        """Type of a voxel."""
        return self.coarse.dtype

    @property
    def order(self) -> Order:
        """Memory order: that of the coarse array."""
        return memory_order(self.coarse)

    @property
    def extent(self) -> Extent:
        """The bytes of the coarse array."""
        return Extent(("memory", os.getpid()), *byte_range(self.coarse))

    @property
    def unit(self) -> tuple[int, ...]:
        """Ones: voxels can be read alone."""
        return (1,) * len(self.shape)

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region, in `out` if given."""
        if not Region.whole(self.shape).contains(region):
            raise PlanError(f"region {region.start} to {region.stop} leaves {self!r}")
        start = tuple([lo // f for lo, f in zip(region.start, self.factors, strict=True)])
        stop = tuple([-(-hi // f) for hi, f in zip(region.stop, self.factors, strict=True)])
        voxels = self.coarse[Region(start, stop).slices]
        # Rows in memory come first, while there are few of them.
        fastest_first = range(len(start))[:: 1 if self.order == "F" else -1]
        for axis in fastest_first:
            voxels = voxels.repeat(self.factors[axis], axis)
        first = tuple([n * f for n, f in zip(start, self.factors, strict=True)])
        beyond = Region(first, tuple(map(sum, zip(first, voxels.shape, strict=True))))
        return take(voxels, region.within(beyond), self.order, out)

    def __reduce__(self) -> Any:
        raise ArgumentTypeError(
            f"{self!r} lies in the memory of this process, and arrays do not travel to others"
        )
