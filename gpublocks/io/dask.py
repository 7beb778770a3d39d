"""Arrays of Dask: their chunks are computed when blocks need them. Touches what their graphs do."""

import os
from math import isnan
from typing import Any

import numpy as np

from gpublocks.arrays import to_host
from gpublocks.contracts import Array, DType, Extent, Order, Reach
from gpublocks.errors import ArgumentTypeError, PlanError, SourceError
from gpublocks.formats.files.picking import target
from gpublocks.geometry import Region
from gpublocks.voxels import (
    source_array,
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
)

__all__ = ["Source", "wrap"]


class Source:
    """An array of Dask. It is no sink, and does not travel to other processes.

    The pieces in which it is read are its chunks: each is computed about once in a run, and kept
    for the other blocks that need it. Along an axis chunks are of one length, but for shorter ones
    at both ends; where they are not, pieces are as long as the longest of them, and a chunk is
    computed once for each piece in which it has a part: rechunk such an array, if that takes long.

    A chunk is computed in the thread that reads it, so that chunks of several blocks are computed
    at once; but by the scheduler that was set, if one was, such as a client of Dask's.

    Parameters
    ----------
    array : dask.array.Array

    Raises
    ------
    PlanError
        If it is a scalar, or the lengths of its chunks are not known.
    ArgumentTypeError
        If it holds Python objects.
    """

    __slots__ = ("array", "dtype", "read_origin", "shape", "unit")

    name = "Dask-Source"
    order: Order = "C"
    location: None = None
    reach = Reach.PROCESS
    writable = False
    single_writer = False

    def __init__(self, array: Any) -> None:
        self.array = array
        if any(isnan(n) for n in array.shape):
            raise PlanError(
                f"the dask array has chunks of unknown lengths (shape {array.shape}); call its "
                "compute_chunk_sizes() first"
            )
        if not array.shape:
            raise PlanError("the dask array is a scalar (0 axes); give one of at least one axis")
        self.shape: tuple[int, ...] = tuple(map(int, array.shape))
        self.dtype: DType = np.dtype(array.dtype)
        if self.dtype.hasobject:
            raise ArgumentTypeError(f"dtype {self.dtype} cannot be processed block-wise")
        lattice = [_lattice([n for n in lengths if n]) for lengths in array.chunks]
        self.unit = tuple([unit for unit, _ in lattice])
        self.read_origin = tuple([origin for _, origin in lattice])

    ndim = property(source_ndim)
    size = property(source_size)
    __len__ = source_len
    __array__ = source_array
    __repr__ = source_text
    info = source_info

    @property
    def extent(self) -> Extent:
        """The object itself: nothing tells what its voxels are made of."""
        return Extent(("object", os.getpid(), id(self.array)), 0, 1)

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region, in `out` if given.

        Raises
        ------
        PlanError
            If the region leaves the array, or is not of the shape of `out`.
        SourceError
            If a chunk is not of the shape that the array tells.
        """
        out = target(self, region, out)
        if not region.size:
            return out
        voxels = self[region.slices]
        if voxels.shape != region.shape:
            raise SourceError(
                f"{self!r} gave an array of shape {voxels.shape} for region {region.start} to "
                f"{region.stop}; correct what makes its chunks"
            )
        np.copyto(out, voxels, casting="unsafe")
        return out

    def __getitem__(self, slicing: Any) -> Any:
        import dask.base

        chosen: Any = dask.base.get_scheduler
        scheduler = "synchronous" if chosen() is None else None
        return np.asarray(to_host(self.array[slicing].compute(scheduler=scheduler)))

    def __reduce__(self) -> Any:
        raise ArgumentTypeError(
            f"{self!r} lies in the memory of this process and does not travel to others; "
            "use a file, or executor='threads'"
        )


def wrap(x: Any) -> Source:
    """Return the source of an array.

    Raises
    ------
    ArgumentTypeError
        If it is another object of Dask.
    """
    # Other objects of Dask have any attribute that they are asked for.
    if not any(base.__module__.startswith("dask.array") for base in type(x).__mro__):
        kind = type(x).__qualname__
        raise ArgumentTypeError(f"a dask {kind} is no array; give a dask.array.Array")
    return Source(x)


def _lattice(lengths: list[int]) -> tuple[int, int]:
    """Return the length of pieces along an axis, and by how much the first begins before it.

    Examples
    --------
    >>> _lattice([3, 8, 8, 5]), _lattice([2, 3]), _lattice([8, 3, 8])
    ((8, 5), (3, 1), (8, 0))
    """
    longest = max(lengths, default=1)
    if len(lengths) > 1 and all(n == longest for n in lengths[1:-1]):
        return longest, longest - lengths[0]
    return longest, 0
