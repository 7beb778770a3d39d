"""A source with its axes in another order. Touches what that source touches."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpublocks.contracts import Array, DType, Extent, Order, Reach
from gpublocks.errors import PlanError
from gpublocks.formats.files.metadata import permuted
from gpublocks.formats.files.picking import source_getitem
from gpublocks.geometry import Region
from gpublocks.voxels import (
    source_array,
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
    take,
)

__all__ = ["Permuted"]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Permuted:
    """A source as `numpy.transpose` shows it. It is no sink.

    Parameters
    ----------
    source : Source
    axes : tuple of int
        Which of its axes each axis is.

    Raises
    ------
    PlanError
        If these are not all of its axes.
    """

    source: Any
    axes: tuple[int, ...]

    writable = False
    single_writer = False

    def __post_init__(self) -> None:
        if sorted(self.axes) != list(range(len(self.source.shape))):
            raise PlanError(f"axes {self.axes} are not those of {self.source!r}, each of them once")

    ndim = property(source_ndim)
    size = property(source_size)
    __len__ = source_len
    __array__ = source_array
    __repr__ = source_text
    __getitem__ = source_getitem
    info = source_info

    @property
    def name(self) -> str:
        """Kind of source: ``'Permuted-Memmap-Source'``."""
        return f"Permuted-{self.source.name}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return self._of(self.source.shape)

    @property
    def dtype(self) -> DType:
        """Type of a voxel."""
        return self.source.dtype  # type: ignore[no-any-return]

    @property
    def order(self) -> Order:
        """Memory order: that in which the slowest axis of the source comes first."""
        last = len(self.axes) - 1
        slowest, fastest = (0, last) if self.source.order == "C" else (last, 0)
        return "C" if self.axes.index(slowest) <= self.axes.index(fastest) else "F"

    @property
    def location(self) -> str | None:
        """Path of the source; None for an array in memory."""
        return self.source.location  # type: ignore[no-any-return]

    @property
    def reach(self) -> Reach:
        """From how far the voxels can be seen."""
        return self.source.reach  # type: ignore[no-any-return]

    @property
    def extent(self) -> Extent | None:
        """The bytes of the source."""
        return self.source.extent  # type: ignore[no-any-return]

    @property
    def unit(self) -> tuple[int, ...]:
        """Smallest box stored as one piece."""
        return self._of(self.source.unit)

    @property
    def read_unit(self) -> tuple[int, ...]:
        """Smallest box that is read as one piece."""
        return self._of(getattr(self.source, "read_unit", self.source.unit))

    @property
    def read_origin(self) -> tuple[int, ...]:
        """Voxels by which the first piece begins before the array does."""
        return self._of(getattr(self.source, "read_origin", (0,) * len(self.axes)))

    @property
    def metadata(self) -> dict[str, Any]:
        """What is told of the voxels of the source."""
        return permuted(getattr(self.source, "metadata", None) or {}, self.axes)

    @property
    def array(self) -> Array | None:
        """The voxels as a view of memory or of a map; None where there is no such view."""
        array = getattr(self.source, "array", None)
        return array.transpose(self.axes) if isinstance(array, np.ndarray) else None

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region, in `out` if given."""
        array = self.array
        if array is not None:
            return take(array, region, self.order, out)
        back = np.argsort(self.axes)
        box = Region(
            tuple([region.start[axis] for axis in back]),
            tuple([region.stop[axis] for axis in back]),
        )
        voxels = self.source.read(box).transpose(self.axes)
        if out is None:
            return np.asarray(voxels, order=self.order)
        if out.shape != region.shape:
            raise PlanError(f"an array of shape {out.shape} does not fit {region.shape}")
        np.copyto(out, voxels, casting="unsafe")
        return out

    def verify(self) -> None:
        """Check that the source is what it was when it was opened."""
        verify = getattr(self.source, "verify", None)
        if verify is not None:
            verify()

    def __reduce__(self) -> Any:
        return Permuted, (self.source, self.axes)

    def _of(self, values: Any) -> tuple[Any, ...]:
        return tuple([values[axis] for axis in self.axes])
