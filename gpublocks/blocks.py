"""The documented Block, one cell of a split source, and slices of it. Views: nothing is copied."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from gpublocks import slicing as slc
from gpublocks.contracts import Array, DType, Extent, Order, Reach, Source
from gpublocks.errors import PlanError, SinkError, SourceError
from gpublocks.geometry import Cell, Region
from gpublocks.grid import Grid
from gpublocks.slicing import Slicing
from gpublocks.voxels import (
    byte_range,
    source_array,
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
    take,
)

__all__ = ["Block", "Blocks", "Slice", "slc"]


class Slice:
    """A view of a source through a slicing; itself a source and a sink.

    Indexing is relative to the view, takes ints and slices with any steps as NumPy does, and
    touches only the voxels asked for.

    Parameters
    ----------
    source : Source
        What is sliced; another `Slice` too.
    slicing : int, slice, Ellipsis, index array or tuple of these
        The part of it that is seen (see `gpublocks.slicing`).
    voxels : ndarray, optional
        The voxels of the view, if they are kept in memory instead of the source, which then only
        says its shape, dtype and order.
    """

    __slots__ = ("_slicing", "_voxels", "source")

    def __init__(self, source: Source, slicing: Any, *, voxels: Array | None = None) -> None:
        self.source = source
        self._slicing: Slicing = slc.unpack_slicing(slicing, len(source.shape))
        self._voxels = voxels

    @property
    def slicing(self) -> Slicing:
        """The part of the source that is seen, one index for each of its axes."""
        return self._slicing

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return slc.sliced_shape(self.slicing, self.source.shape)

    ndim = property(source_ndim)
    size = property(source_size)

    @property
    def dtype(self) -> DType:
        """Type of a voxel."""
        return self.source.dtype if self._voxels is None else self._voxels.dtype

    @property
    def order(self) -> Order:
        """Memory order of the source."""
        return self.source.order

    @property
    def name(self) -> str:
        """Kind of source: ``'Sliced-Block-Numpy-Source'``."""
        return f"Sliced-{self._source_name}"

    @property
    def location(self) -> str | None:
        """Path of the source; None for voxels in memory."""
        return self.source.location if self._voxels is None else None

    @property
    def reach(self) -> Reach:
        """From how far the voxels can be seen."""
        return self.source.reach if self._voxels is None else Reach.PROCESS

    @property
    def extent(self) -> Extent | None:
        """The bytes of the whole source, or of the voxels in memory."""
        if self._voxels is None:
            return self.source.extent
        return Extent(("memory", os.getpid()), *byte_range(self._voxels))

    @property
    def unit(self) -> tuple[int, ...]:
        """That of the source where the view begins with one, else the length of the axis."""
        if self._voxels is not None:
            return (1,) * len(self.shape)
        return slc.sliced_unit(self.slicing, self.source.shape, self.source.unit)

    @property
    def read_unit(self) -> tuple[int, ...]:
        """Smallest box that is read as one piece; ones for voxels in memory."""
        return self._pieces()[0]

    @property
    def read_origin(self) -> tuple[int, ...]:
        """Voxels by which the first piece begins before the view."""
        return self._pieces()[1]

    @property
    def single_writer(self) -> bool:
        """Whether only one thread of one process may write."""
        return self._voxels is None and bool(getattr(self.source, "single_writer", False))

    @property
    def writable(self) -> bool:
        """Whether assigning to it is permitted."""
        return self._voxels is not None or bool(getattr(self.source, "writable", False))

    @property
    def array(self) -> Array | None:
        """The voxels as a view of memory or of a mapped file; None where there is no such view."""
        if self._voxels is not None:
            return self._voxels
        whole = getattr(self.source, "array", None)
        if not isinstance(whole, np.ndarray) or any(
            isinstance(k, np.ndarray) for k in self.slicing
        ):
            return None
        view: Array = whole[(*self.slicing, ...)]
        return view

    @property
    def base(self) -> Source:
        """The source that this is in the end a part of."""
        if isinstance(self.source, Slice):
            return self.source.base
        whole: Source = getattr(self.source, "base_source", self.source)
        return whole

    @property
    def base_shape(self) -> tuple[int, ...]:
        """Shape of the base."""
        return self.base.shape

    @property
    def base_slicing(self) -> Slicing:
        """The part of the base that is seen."""
        outer = getattr(self.source, "base_slicing", None)
        if outer is None:
            return self.slicing
        return slc.sliced_slicing(self.slicing, outer, self.base_shape)

    @property
    def lower(self) -> tuple[int, ...]:
        """Lower corner in the source, one number for each axis of the source."""
        return _corners(self.slicing, self.source.shape).start

    @property
    def upper(self) -> tuple[int, ...]:
        """Upper corner in the source: one past the last voxel."""
        return _corners(self.slicing, self.source.shape).stop

    position = lower

    @property
    def base_lower(self) -> tuple[int, ...]:
        """Lower corner in the base, one number for each axis of the base."""
        return _corners(self.base_slicing, self.base_shape).start

    @property
    def base_upper(self) -> tuple[int, ...]:
        """Upper corner in the base: one past the last voxel."""
        return _corners(self.base_slicing, self.base_shape).stop

    base_position = base_lower

    __len__ = source_len
    __repr__ = source_text

    @property
    def in_memory(self) -> bool:
        """Whether it keeps voxels of its own instead of those of the source."""
        return self._voxels is not None

    def __getitem__(self, slicing: Any) -> Any:
        if self._voxels is not None:
            return self._voxels[slicing]
        try:
            in_source = self._in_source(slicing)
        except PlanError:
            # Masks, new axes and the like make a copy anyway.
            return self.read(Region.whole(self.shape))[slicing]
        return self.source[in_source]

    def __setitem__(self, slicing: Any, value: Any) -> None:
        if self._voxels is not None:
            self._voxels[slicing] = value
        else:
            self.source[self._in_source(slicing)] = value  # type: ignore[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is None and self._protected:
            copy = True
        return source_array(self, dtype, copy)

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region of the view, in `out` if given."""
        view = np.asarray(self[region.slices])
        return take(view, Region.whole(region.shape), self.order, out)

    def write(self, region: Region, array: Array) -> None:
        """Write an array of the region's shape, cast as the source casts."""
        if array.shape != region.shape:
            raise PlanError(f"an array of shape {array.shape} does not fit a {region.shape} region")
        self[region.slices] = array

    def sync(self) -> None:
        """Make what was written durable."""
        if self._voxels is None:
            self.source.sync()  # type: ignore[attr-defined]

    def finish(self) -> None:
        """Do nothing: the whole is completed by who created it."""

    def abort(self) -> None:
        """Do nothing: the whole is dropped by who created it."""

    def as_memory(self, array: Array | None = None) -> "Slice":
        """Return this view with voxels of its own in memory; it still says where it lies.

        Parameters
        ----------
        array : ndarray, optional
            Voxels to take over without a copy; else they are read.
        """
        return Slice(self.source, self.slicing, voxels=self._in_memory(array))

    def info(self, short: bool = True) -> str:
        """Return where the view lies: ``'(50, 100, 38)@(50, 100, 200)[(:,:,0:38)]'``."""
        what = str(self.shape) if short else source_info(self, short=False)
        return f"{what}@{self.base_shape}[{slc.slicing_text(self.base_slicing)}]"

    @property
    def _protected(self) -> bool:
        return self._voxels is None and isinstance(self.source, Slice) and self.source._protected

    @property
    def _source_name(self) -> str:
        return self.source.name if self._voxels is None else "Numpy-Source"

    def _pieces(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        whole = self.source
        unit = getattr(whole, "read_unit", whole.unit)
        if self._voxels is not None:
            unit = (1,) * len(unit)
        origin = getattr(whole, "read_origin", (0,) * len(unit))
        return slc.sliced_pieces(self.slicing, whole.shape, unit, origin)

    def _in_source(self, slicing: Any) -> Slicing:
        return slc.sliced_slicing(slicing, self.slicing, self.source.shape)

    def _in_memory(self, array: Array | None) -> Array:
        if array is None:
            return self.read(Region.whole(self.shape))
        if array.shape != self.shape:
            raise SourceError(
                f"{self!r} was given an array of shape {array.shape}; give one of {self.shape}"
            )
        return array


class Block(Slice):
    """One cell of a grid, bound to a source.

    Parameters
    ----------
    source : Source
        The whole array. It may have other axes than the grid's shape, as long as it has the
        split ones.
    grid : Grid
    number : int
        Which cell, in the order of the grid.
    neighbours : bool
        Whether the block knows its neighbours.
    writable : bool
        If not, assigning is refused and reading gives private arrays, so that nothing done to the
        block or to what was read from it reaches the source.
    voxels : ndarray, optional
        The voxels of the block, if they are kept in memory (there they are always writable)
        instead of the source, which then only says its shape, dtype and order.

    Attributes
    ----------
    source : Source
    grid : Grid
    iteration : int
        Number of the block.

    Examples
    --------
    >>> from gpublocks import io
    >>> from gpublocks.splitting import split_axis
    >>> source = io.npy.Source(shape=(2, 3, 20))
    >>> grid = Grid(source.shape, (2,), (split_axis(20, size_max=8, overlap=2),))
    >>> block = Block(source, grid, 1)
    >>> block
    Block-Numpy-Source(2, 3, 8)[float64]|C|
    >>> block.info()
    '1/3<(0, 0, 1)/(1, 1, 3)> (2, 3, 8)@(2, 3, 20)[(:,:,6:14)]'
    >>> block.valid.slicing
    (slice(None, None, None), slice(None, None, None), slice(1, -1, None))
    """

    __slots__ = ("_cell", "_knows_neighbours", "_writable", "grid", "iteration")

    def __init__(
        self,
        source: Source,
        grid: Grid,
        number: int,
        *,
        neighbours: bool = False,
        writable: bool = True,
        voxels: Array | None = None,
    ) -> None:
        self.source = source
        self.iteration = number
        self.grid = grid
        self._knows_neighbours = neighbours
        self._writable = writable
        self._voxels = voxels
        self._cell: Cell | None = None

    @property
    def cell(self) -> Cell:
        """The ranges that are read and written, along the split axes."""
        # Computed when asked for: a list of a million blocks must cost next to nothing.
        if self._cell is None:
            self._cell = self.grid[self.iteration]
        return self._cell

    @property
    def slicing(self) -> Slicing:
        """The part of the source that the block covers, one slice for each axis."""
        slices = [slice(None)] * len(self.source.shape)
        for axis, (lo, hi) in zip(self.cell.axes, self.cell.read, strict=True):
            slices[axis] = slice(lo, hi)
        return tuple(slices)

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return self.cell.read_in(self.source.shape).shape

    @property
    def name(self) -> str:
        """Kind of source: ``'Block-Numpy-Source'``."""
        return f"Block-{self._source_name}"

    @property
    def writable(self) -> bool:
        """Whether assigning to the block is permitted."""
        return not self._protected and super().writable

    @property
    def array(self) -> Array | None:
        """The voxels as a view of memory or of a mapped file; None where there is no such view."""
        view = super().array
        if view is not None and self._protected:
            view = view.view()
            view.flags.writeable = False
        return view

    @property
    def valid(self) -> Slice:
        """The part of the block that is its own; those of all blocks tile the source."""
        slices = [slice(None)] * len(self.source.shape)
        cell = self.cell
        for axis, (lo, hi), (start, stop) in zip(cell.axes, cell.read, cell.valid, strict=True):
            slices[axis] = slice(start - lo or None, stop - hi or None)
        return Slice(self, tuple(slices))

    @property
    def index(self) -> tuple[int, ...]:
        """Position in the grid, one number for each axis of the array that was split."""
        return self.cell.index

    @property
    def blocks_shape(self) -> tuple[int, ...]:
        """Number of blocks along each axis of the array that was split."""
        return self.grid.counts

    @property
    def n_iterations(self) -> int:
        """Number of blocks."""
        return len(self.grid)

    @property
    def knows_neighbours(self) -> bool:
        """Whether `neighbours` were asked for."""
        return self._knows_neighbours

    @property
    def neighbours(self) -> "dict[tuple[int, ...], Block]":
        """The blocks on each side of this one, by index; none unless they were asked for."""
        found: dict[tuple[int, ...], Block] = {}
        if not self._knows_neighbours:
            return found
        for axis in self.grid.axes:
            for step in (-1, 1):
                index = list(self.index)
                index[axis] += step
                if 0 <= index[axis] < self.blocks_shape[axis]:
                    found[tuple(index)] = self._at(self.grid.number(index))
        return found

    def __getitem__(self, slicing: Any) -> Any:
        voxels = super().__getitem__(slicing)
        return np.array(voxels)[()] if self._protected else voxels

    def __setitem__(self, slicing: Any, value: Any) -> None:
        if self._protected:
            raise SinkError(
                f"block {self.iteration} of the source is read-only; "
                "change a copy and return the result, or write it to a sink"
            )
        super().__setitem__(slicing, value)

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region of the block, in `out` if given."""
        if self._voxels is not None:
            return super().read(region, out)
        lower = self.cell.read_in(self.source.shape).start
        start = tuple([a + b for a, b in zip(region.start, lower, strict=True)])
        stop = tuple([a + b for a, b in zip(region.stop, lower, strict=True)])
        return self.source.read(Region(start, stop), out)

    def as_memory(self, array: Array | None = None) -> "Block":
        """Return this block with voxels of its own in memory; it still says where it lies.

        What is assigned to it stays in its `array` and reaches no source, so that it is writable
        even where this block is not.

        Parameters
        ----------
        array : ndarray, optional
            Voxels to take over without a copy; else they are read.
        """
        return self._at(self.iteration, voxels=self._in_memory(array))

    def info(self, short: bool = True) -> str:
        """Return which block this is, and where it lies.

        ``'0/10<(0, 0, 0)/(1, 1, 10)> (50, 100, 38)@(50, 100, 200)[(:,:,0:38)]'``
        """
        return f"{self.iteration_info()} {super().info(short)}"

    def iteration_info(self) -> str:
        """Return which block this is: ``'0/10<(0, 0, 0)/(1, 1, 10)>'``."""
        return f"{self.iteration}/{self.n_iterations}<{self.index}/{self.blocks_shape}>"

    @property
    def _protected(self) -> bool:
        return not self._writable and self._voxels is None

    def _at(self, number: int, voxels: Array | None = None) -> "Block":
        return Block(
            self.source,
            self.grid,
            number,
            neighbours=self._knows_neighbours,
            writable=self._writable,
            voxels=voxels,
        )


@dataclass(frozen=True, slots=True, repr=False)
class Blocks(Sequence[Block]):
    """The blocks of a split source, in the order of the grid: a lazy sequence.

    Parameters
    ----------
    source : Source
    grid : Grid
    neighbours : bool
        Whether the blocks know their neighbours.
    writable : bool
        Whether assigning to them is permitted (see `Block`).
    """

    source: Source
    grid: Grid
    neighbours: bool = False
    writable: bool = True

    def __len__(self) -> int:
        return len(self.grid)

    @overload
    def __getitem__(self, number: int) -> Block: ...
    @overload
    def __getitem__(self, number: slice) -> list[Block]: ...
    def __getitem__(self, number: int | slice) -> Block | list[Block]:
        picked = range(len(self))[number]
        return self._block(picked) if isinstance(picked, int) else [*map(self._block, picked)]

    def __iter__(self) -> Iterator[Block]:
        return map(self._block, range(len(self)))

    def __repr__(self) -> str:
        return f"Blocks({len(self)} of {self.source!r})"

    def _block(self, number: int) -> Block:
        return Block(
            self.source,
            self.grid,
            number,
            neighbours=self.neighbours,
            writable=self.writable,
        )


def _corners(slicing: Slicing, shape: Sequence[int]) -> Region:
    """Return the smallest box that holds the sliced voxels."""
    start, stop = [], []
    for part, length in zip(slicing, shape, strict=True):
        if isinstance(part, slice):
            seen = range(length)[part]
            ends = [seen[0], seen[-1]] if seen else []
            nowhere = seen.start
        else:
            ends = np.ravel(np.arange(length)[part]).tolist()
            nowhere = 0
        start.append(min(ends, default=nowhere))
        stop.append(max(ends, default=nowhere - 1) + 1)
    return Region(tuple(start), tuple(stop))
