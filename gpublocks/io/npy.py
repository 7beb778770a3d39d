"""Arrays in the memory of this process, and ones that will be. Touches memory only."""

import os
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from gpublocks import machine
from gpublocks.budget import format_bytes
from gpublocks.contracts import Array, DType, Extent, Order, Reach
from gpublocks.errors import ArgumentTypeError, BudgetError, PlanError
from gpublocks.geometry import Region
from gpublocks.voxels import (
    byte_range,
    memory_order,
    put,
    single_units,
    source_array,
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
    take,
)

__all__ = ["NewArray", "Source"]


class Source:
    """An array in the memory of this process, as a source and a sink.

    Parameters
    ----------
    array : array_like, optional
        The voxels; an ndarray is not copied. Without it a new array of zeros is made.
    shape : tuple of int, optional
        Shape of a new array; where an array is given it must be that of the array.
    dtype : dtype, optional
        Type of a new array (float64 if not given), or that of the given one.
    order : {'C', 'F'}, optional
        Memory order of a new array (C if not given), or that of the given one.
    name : str, optional
        Shown in the repr.
    extent : Extent, optional
        The bytes it occupies, where those lie in a file.

    Raises
    ------
    PlanError
        If the array is a scalar, or is not as the other arguments say.
    ArgumentTypeError
        If it holds objects, or a mask.

    Examples
    --------
    >>> Source(shape=(2, 3), order="F")
    Numpy-Source(2, 3)[float64]|F|
    """

    __slots__ = ("_extent", "array", "dtype", "name", "order", "shape", "unit")

    location: None = None
    reach = Reach.PROCESS
    single_writer = False

    def __init__(
        self,
        array: npt.ArrayLike | None = None,
        shape: tuple[int, ...] | None = None,
        dtype: npt.DTypeLike | None = None,
        order: Order | None = None,
        name: str | None = None,
        *,
        extent: Extent | None = None,
    ) -> None:
        if array is None:
            if shape is None:
                raise ArgumentTypeError("io.npy.Source got neither array nor shape; give one")
            array = np.zeros(shape, float if dtype is None else dtype, order or "C")
        self.array: Array = _as_array(array)
        self.shape = self.array.shape
        self.dtype: DType = self.array.dtype
        self.order: Order = memory_order(self.array)
        self.name = name or "Numpy-Source"
        self.unit = (1,) * self.array.ndim
        self._extent = extent
        if dtype is not None and self.dtype != dtype:
            raise PlanError(f"the array is {self!r}, not {np.dtype(dtype)}; convert it first")
        if shape is not None and self.shape != tuple(np.atleast_1d(shape)):
            raise PlanError(f"the array is {self!r}, not of shape {shape}; reshape it first")
        if order is not None and not self.array.flags[order]:
            raise PlanError(f"the array is {self!r}, not in order {order}; convert it first")

    ndim = property(source_ndim)
    size = property(source_size)
    __len__ = source_len
    __array__ = source_array
    __repr__ = source_text
    info = source_info

    @property
    def extent(self) -> Extent:
        """The bytes it occupies in this process, or in the file it is a view of."""
        return self._extent or Extent(("memory", os.getpid()), *byte_range(self.array))

    @property
    def writable(self) -> bool:
        """Whether writing is permitted."""
        return self.array.flags.writeable

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a private, writable copy of a region, in `out` if given."""
        return take(self.array, region, self.order, out)

    def write(self, region: Region, array: Array) -> None:
        """Write an array of the region's shape, cast as NumPy assignment casts."""
        put(self.array, region, array)

    def sync(self) -> None:
        """Do nothing: memory does not last."""

    def finish(self) -> None:
        """Do nothing: the array is there already."""

    def abort(self) -> None:
        """Do nothing: the array was there before."""

    def as_memory(self) -> "Source":
        """Return this source, which is in memory."""
        return self

    def __getitem__(self, slicing: Any) -> Any:
        return self.array[slicing]

    def __setitem__(self, slicing: Any, value: Any) -> None:
        self.array[slicing] = value

    def __reduce__(self) -> Any:
        raise ArgumentTypeError(
            f"{self!r} lies in the memory of this process, and arrays do not travel to others; "
            "use a file, shared memory (io.sma), or executor='threads'"
        )


@dataclass(frozen=True, slots=True)
class NewArray:
    """An array in memory that will be created when its shape and type are known."""

    @property
    def location(self) -> None:
        """None: it is in memory."""
        return

    def check(self) -> None:
        """Do nothing: there is nothing in the way of a new array."""

    units = single_units

    def create(
        self,
        shape: tuple[int, ...],
        dtype: DType,
        order: Order,
        unit: tuple[int, ...] | None = None,
    ) -> Source:
        """Return a new array of zeros.

        Raises
        ------
        BudgetError
            If there is not enough memory.
        """
        nbytes = prod(shape) * np.dtype(dtype).itemsize
        available = machine.memory_available()
        if nbytes > available.bytes:
            raise BudgetError(
                f"a result of shape {shape} and type {dtype} needs {format_bytes(nbytes)} of "
                f"memory, but there are only {format_bytes(available.bytes)} of "
                f"{available.reason}; give a file as sink"
            )
        return Source(np.zeros(shape, dtype, order))


def _as_array(value: Any) -> Array:
    if isinstance(value, np.ma.MaskedArray):
        raise ArgumentTypeError("the array is a MaskedArray; convert it with .filled()")
    try:
        array = np.asarray(value)
    except ValueError as error:
        kind = type(value).__name__
        raise ArgumentTypeError(f"a {kind} is no array ({error}); give an ndarray") from error
    if array.dtype.hasobject:
        raise ArgumentTypeError(
            f"dtype {array.dtype} cannot be processed block-wise; convert it with .astype"
        )
    if array.ndim == 0:
        raise PlanError("the array is a scalar (0 axes); give an array of at least one axis")
    return array
