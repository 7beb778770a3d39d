"""CuPy arrays, in the memory of a GPU: sources and sinks for that one. Touches memory only."""

from typing import Any

import numpy as np

from gpublocks.arrays import array_namespace
from gpublocks.contracts import Array, DType, Extent, Order, Reach
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.geometry import Region
from gpublocks.voxels import (
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
)

__all__ = ["Source"]


class Source:
    """An array in the memory of a GPU, on which its blocks are used as they are.

    Parameters
    ----------
    array : cupy.ndarray

    Raises
    ------
    PlanError
        If it is a scalar.

    Attributes
    ----------
    on_device : int
        CUDA's number of the GPU.
    """

    __slots__ = ("array", "dtype", "on_device", "order", "shape", "unit")

    name = "Cupy-Source"
    location: None = None
    reach = Reach.PROCESS
    single_writer = False
    writable = True

    def __init__(self, array: Any) -> None:
        if not array.shape:
            raise PlanError("the array is a scalar (0 axes); give an array of at least one axis")
        self.array = array
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype: DType = np.dtype(array.dtype)
        self.on_device = int(array.device.id)
        self.unit = (1,) * len(self.shape)
        steps = [abs(s) for n, s in zip(array.shape, array.strides, strict=True) if n > 1]
        self.order: Order = "F" if len(steps) > 1 and steps[0] < steps[-1] else "C"

    ndim = property(source_ndim)
    size = property(source_size)
    __len__ = source_len
    __repr__ = source_text
    info = source_info

    @property
    def extent(self) -> Extent:
        """The bytes it occupies on its GPU."""
        steps = [
            (n - 1) * step for n, step in zip(self.array.shape, self.array.strides, strict=True)
        ]
        start = int(self.array.data.ptr) + sum(min(0, step) for step in steps)
        stop = int(self.array.data.ptr) + sum(max(0, step) for step in steps) + self.dtype.itemsize
        return Extent(("device", self.on_device), start, stop if self.size else start)

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a copy of a region in host memory, in `out` if given."""
        with self.array.device:
            voxels: Array = self.array[region.slices].get()
        if voxels.shape != region.shape:
            raise PlanError(f"region {region.start} to {region.stop} leaves {self!r}")
        if out is None:
            return voxels
        np.copyto(out, voxels, casting="unsafe")
        return out

    def write(self, region: Region, array: Array) -> None:
        """Write an array in host memory of the region's shape, cast as NumPy assignment casts."""
        if array.shape != region.shape:
            raise PlanError(f"an array of shape {array.shape} does not fit {region.shape}")
        with self.array.device:
            self.array[region.slices] = array_namespace(self.array).asarray(array)

    def sync(self) -> None:
        """Do nothing: memory does not last."""

    def finish(self) -> None:
        """Do nothing: the array is there already."""

    def abort(self) -> None:
        """Do nothing: the array was there before."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.asarray(self.read(Region.whole(self.shape)), dtype=dtype)

    def __getitem__(self, slicing: Any) -> Any:
        return self.array[slicing]

    def __setitem__(self, slicing: Any, value: Any) -> None:
        self.array[slicing] = value

    def __reduce__(self) -> Any:
        raise ArgumentTypeError(
            f"{self!r} lies in the memory of a GPU, and arrays do not travel to other processes; "
            "convert it with .get()"
        )
