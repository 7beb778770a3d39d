"""A part of a source, as a source. Touches what its source touches."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpublocks.contracts import Array, DType, Extent, Order, Reach
from gpublocks.errors import PlanError
from gpublocks.formats.files.metadata import of_part
from gpublocks.geometry import Region
from gpublocks.slicing import (
    Slicing,
    simplify,
    sliced_pieces,
    sliced_shape,
    sliced_slicing,
    sliced_unit,
    unpack_slicing,
)
from gpublocks.voxels import (
    source_array,
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
)

__all__ = ["Sliced"]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Sliced:
    """The part of a source that a slicing shows.

    Parameters
    ----------
    base_source : Source
        The whole.
    base_slicing : slicing
        Ints and slices, with steps too.

    Raises
    ------
    PlanError
        If the slicing is empty, exceeds the source, or holds index arrays.
    """

    base_source: Any
    base_slicing: Slicing
    shape: tuple[int, ...] = field(init=False)
    unit: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        whole = self.base_source.shape
        given = unpack_slicing(self.base_slicing, len(whole))
        for axis, (part, length) in enumerate(zip(given, whole, strict=True)):
            _check(axis, part, length)
        slicing = simplify(given, whole)
        shape = sliced_shape(slicing, whole)
        if not shape:
            raise PlanError(f"slicing {given} of {self.base_source!r} leaves a scalar (0 axes)")
        unit = sliced_unit(slicing, whole, self.base_source.unit)
        object.__setattr__(self, "base_slicing", slicing)
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "unit", unit)

    ndim = property(source_ndim)
    size = property(source_size)
    __len__ = source_len
    __array__ = source_array
    __repr__ = source_text
    info = source_info

    @property
    def base_shape(self) -> tuple[int, ...]:
        """Shape of the whole."""
        return self.base_source.shape  # type: ignore[no-any-return]

    @property
    def name(self) -> str:
        """Kind of source: ``'Sliced-Numpy-Source'``."""
        return f"Sliced-{self.base_source.name}"

    @property
    def dtype(self) -> DType:
        """Type of a voxel."""
        return self.base_source.dtype  # type: ignore[no-any-return]

    @property
    def order(self) -> Order:
        """Memory order of the whole."""
        return self.base_source.order  # type: ignore[no-any-return]

    @property
    def location(self) -> str | None:
        """Path of the whole; None for an array in memory."""
        return self.base_source.location  # type: ignore[no-any-return]

    @property
    def reach(self) -> Reach:
        """From how far the voxels can be seen."""
        return self.base_source.reach  # type: ignore[no-any-return]

    @property
    def extent(self) -> Extent | None:
        """The bytes of the whole."""
        return self.base_source.extent  # type: ignore[no-any-return]

    @property
    def read_unit(self) -> tuple[int, ...]:
        """Smallest box that is read as one piece."""
        return self._pieces()[0]

    @property
    def read_origin(self) -> tuple[int, ...]:
        """Voxels by which the first piece begins before the part that is seen."""
        return self._pieces()[1]

    @property
    def writable(self) -> bool:
        """Whether writing is permitted."""
        return bool(getattr(self.base_source, "writable", False))

    @property
    def single_writer(self) -> bool:
        """Whether only one thread of one process may write."""
        return bool(getattr(self.base_source, "single_writer", False))

    @property
    def metadata(self) -> dict[str, Any]:
        """What is told of the voxels of the whole, as far as it holds for the part."""
        told = getattr(self.base_source, "metadata", None) or {}
        return of_part(told, self.base_slicing, len(self.base_shape))

    @property
    def array(self) -> Array | None:
        """The voxels as a view of memory or of a map; None where there is no such view."""
        whole = getattr(self.base_source, "array", None)
        return whole[self.base_slicing] if isinstance(whole, np.ndarray) else None

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region, in `out` if given."""
        slicing = self._in_base(region)
        box = _as_region(slicing, self.base_shape)
        if box is None:
            voxels = np.array(self.base_source[slicing], order=self.order)
        else:
            voxels = self.base_source.read(box).reshape(region.shape, order=self.order)
        if out is None:
            return voxels
        np.copyto(out, voxels, casting="unsafe")
        return out

    def write(self, region: Region, array: Array) -> None:
        """Write an array of the region's shape, cast as the whole casts."""
        slicing = self._in_base(region)
        if array.shape != region.shape:
            raise PlanError(f"an array of shape {array.shape} does not fit {region.shape}")
        box = _as_region(slicing, self.base_shape)
        if box is None:
            self.base_source[slicing] = array
        else:
            self.base_source.write(box, array.reshape(box.shape))

    def reserve(self) -> None:
        """Take room for what will be written, where the whole needs that."""
        reserve = getattr(self.base_source, "reserve", None)
        if reserve is not None:
            reserve()

    def sync(self) -> None:
        """Make what was written durable."""
        self.base_source.sync()

    def finish(self) -> None:
        """Complete the whole, if it is new."""
        self.base_source.finish()

    def abort(self) -> None:
        """Drop the whole, if it is new."""
        self.base_source.abort()

    def __getitem__(self, slicing: Any) -> Any:
        return self.base_source[sliced_slicing(slicing, self.base_slicing, self.base_shape)]

    def __setitem__(self, slicing: Any, value: Any) -> None:
        self.base_source[sliced_slicing(slicing, self.base_slicing, self.base_shape)] = value

    def __reduce__(self) -> Any:
        return Sliced, (self.base_source, self.base_slicing)

    def _pieces(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        whole = self.base_source
        unit = getattr(whole, "read_unit", whole.unit)
        origin = getattr(whole, "read_origin", (0,) * len(unit))
        return sliced_pieces(self.base_slicing, whole.shape, unit, origin)

    def _in_base(self, region: Region) -> Slicing:
        if not Region.whole(self.shape).contains(region):
            raise PlanError(f"region {region.start} to {region.stop} leaves {self!r}")
        return sliced_slicing(region.slices, self.base_slicing, self.base_shape)


def _check(axis: int, part: Any, length: int) -> None:
    if isinstance(part, int):
        return
    if not isinstance(part, slice):
        raise PlanError("a part of a source is given by ints and slices; index arrays cannot be")
    ends = [end for end in (part.start, part.stop) if end is not None]
    text = f"{part.start}:{part.stop}"
    if any(not -length <= end <= length for end in ends):
        raise PlanError(f"slice {text} exceeds size {length} on axis {axis}")
    if length and not range(length)[part]:
        raise PlanError(f"slice {text} is empty on axis {axis} of size {length}")


def _as_region(slicing: Slicing, shape: tuple[int, ...]) -> Region | None:
    """Return the box of a slicing of the base; None if it has steps."""
    ranges = []
    for part, length in zip(slicing, shape, strict=True):
        if not isinstance(part, slice):
            ranges.append((int(part), int(part) + 1))
            continue
        start, stop, step = part.indices(length)
        if step != 1:
            return None
        ranges.append((start, stop))
    return Region(tuple([lo for lo, _ in ranges]), tuple([hi for _, hi in ranges]))
