"""Slots of shared memory that stand in, in a worker process, for an array of another process.

Touches anonymous shared memory only.
"""

import mmap
import os
from typing import Any

import numpy as np

from gpublocks.contracts import Array, DType, Order, Reach
from gpublocks.errors import PlanError
from gpublocks.geometry import Region
from gpublocks.sharing import shared_file
from gpublocks.slicing import slicing_within
from gpublocks.voxels import (
    array_at,
    put,
    source_array,
    source_info,
    source_len,
    source_ndim,
    source_size,
    source_text,
)

__all__ = ["Ring", "Staged", "array_at"]


class Ring:
    """Shared memory without a name: it is gone when the last process that has it open is.

    Parameters
    ----------
    nbytes : int
        Size.
    fd : int, optional
        Descriptor of the memory, which is taken over; without it new memory is preallocated.

    Attributes
    ----------
    fd : int
        File descriptor, to be sent to another process over a socket; -1 once closed.
    buffer : mmap.mmap or None
        The memory; None once closed.
    nbytes : int

    Raises
    ------
    BudgetError
        If there is no room for it.
    """

    __slots__ = ("buffer", "fd", "nbytes")

    def __init__(self, nbytes: int, *, fd: int | None = None) -> None:
        self.nbytes = nbytes
        self.fd = shared_file(max(nbytes, 1)) if fd is None else fd
        self.buffer: mmap.mmap | None = None
        try:
            self.buffer = mmap.mmap(self.fd, max(nbytes, 1))
        except BaseException:
            self.close()
            raise

    @classmethod
    def attach(cls, fd: int, nbytes: int) -> "Ring":
        """Return the ring of a descriptor that came from another process; it is taken over."""
        return cls(nbytes, fd=fd)

    def close(self) -> None:
        """Let go of the memory. Arrays that lie in it keep it until they are gone."""
        # Never buffer.close(): NumPy does not announce its arrays, and their memory would be gone.
        self.buffer = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Staged:
    """The stand-in for an array of another process: one region of it at a time, in shared memory.

    It has the shape of the whole array, pickles without voxels, and is bound to a place in shared
    memory for each cell. Reading copies: the place is another cell's next, and whoever keeps an
    array must not see it change.

    Parameters
    ----------
    name : str
        That of the source it stands for.
    shape : tuple of int
        Shape of the whole array.
    dtype : dtype
    order : {'C', 'F'}
        Memory order of the regions.
    location : str, optional
        That of the source it stands for.
    """

    __slots__ = ("_bound", "_region", "dtype", "location", "name", "order", "shape")

    extent = None
    reach = Reach.MACHINE
    writable = True
    single_writer = False

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: DType,
        order: Order,
        location: str | None = None,
    ) -> None:
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.order: Order = order
        self.location = location
        self._bound: Array | None = None
        self._region: Region | None = None

    ndim = property(source_ndim)
    size = property(source_size)
    __len__ = source_len
    __array__ = source_array
    __repr__ = source_text
    info = source_info

    @property
    def unit(self) -> tuple[int, ...]:
        """Ones: voxels stand alone."""
        return (1,) * len(self.shape)

    def bind(self, buffer: Any, offset: int, region: Region) -> Array:
        """Let a place in shared memory hold the voxels of a region; return them as an array.

        Parameters
        ----------
        buffer : buffer
        offset : int
            Where in the buffer the region begins, in bytes.
        region : Region
            Of the whole array.
        """
        self._bound = array_at(buffer, offset, region.shape, self.dtype, self.order)
        self._region = region
        return self._bound

    def release(self) -> None:
        """Let go of the shared memory."""
        self._bound = self._region = None

    def read(self, region: Region, out: Array | None = None) -> Array:
        """Return a copy of a region, in `out` if given."""
        view = self._within(region)
        if out is None:
            return np.array(view, order=self.order)
        out[...] = view
        return out

    def write(self, region: Region, array: Array) -> None:
        """Write an array of the region's shape, cast as NumPy assignment casts."""
        view = self._within(region)
        put(view, Region.whole(view.shape), array)

    def sync(self) -> None:
        """Do nothing: memory does not last."""

    def finish(self) -> None:
        """Do nothing: the other process does."""

    def abort(self) -> None:
        """Do nothing: the other process does."""

    def __getitem__(self, slicing: Any) -> Any:
        bound, region = self._place()
        return bound[slicing_within(slicing, self.shape, region.slices)]

    def __setitem__(self, slicing: Any, value: Any) -> None:
        bound, region = self._place()
        bound[slicing_within(slicing, self.shape, region.slices)] = value

    def __reduce__(self) -> Any:
        return Staged, (self.name, self.shape, self.dtype, self.order, self.location)

    def _within(self, region: Region) -> Array:
        bound, at_hand = self._place()
        if region == at_hand:
            return bound
        if not at_hand.contains(region):
            raise PlanError(
                f"region {region.start} to {region.stop} of {self!r} is not at hand, "
                f"only {at_hand.start} to {at_hand.stop}; use executor='threads'"
            )
        return bound[region.within(at_hand).slices]

    def _place(self) -> tuple[Array, Region]:
        if self._bound is None or self._region is None:
            raise PlanError(f"{self!r} is not bound to any memory yet")
        return self._bound, self._region
