"""Filters of numbers, which make a known number of bytes of so many. Pure.

They are those of Zarr, by the names and parameters of its third format. To the bytes of all voxels
they do what they do to the voxels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpublocks.contracts import Array, DType

__all__ = ["Filter", "filter_of"]

_NAMES = ("astype", "bitround", "delta", "fixedscaleoffset", "packbits", "quantize", "shuffle")


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter of numcodecs, which makes a known number of bytes of so many.

    Parameters
    ----------
    codec : object
    dtype : dtype
        What it is given.
    size : callable
        Returns how many bytes so many become.
    """

    codec: Any
    dtype: DType
    size: Callable[[int], int]

    def length(self, count: int | None) -> int | None:
        """Return how many bytes so many become."""
        return None if count is None else self.size(count)

    def encode(self, data: Any) -> Array:
        """Return the bytes as they are stored."""
        stored: Array = np.ascontiguousarray(self.codec.encode(np.frombuffer(data, self.dtype)))
        return stored.view(np.uint8)

    def decode(self, data: Any, length: int | None, memory: Array | None) -> Array:
        """Return what was encoded."""
        assert length is not None
        stored = np.frombuffer(data, np.uint8)
        if stored.nbytes != self.size(length):
            raise ValueError(f"it holds {stored.nbytes} bytes, not {self.size(length)}")
        plain: Array = np.ascontiguousarray(self.codec.decode(stored)).view(np.uint8)
        if plain.nbytes != length:
            raise ValueError(f"it does not hold {length} bytes")
        return plain


@dataclass(frozen=True, slots=True)
class _Rounding:
    """The filter bitround, which tells the type of voxels by that of what it is given."""

    codec: Any
    dtype: DType

    def encode(self, data: Array) -> Any:
        return self.codec.encode(data)

    def decode(self, data: Array) -> Any:
        return self.codec.decode(data.view(self.dtype))


def filter_of(name: str, given: dict[str, Any], dtype: DType) -> Filter | None:
    """Return a filter with its parameters; None if it is not known here.

    Parameters
    ----------
    dtype : dtype
        Of the voxels.
    """
    from numcodecs.registry import codec_registry

    make = codec_registry.get(name) if name in _NAMES else None
    if make is None:
        return None
    if name == "shuffle":
        return Filter(make(**{"elementsize": dtype.itemsize, **given}), np.dtype("u1"), int)
    if name == "bitround":
        return Filter(_Rounding(make(**given), dtype), dtype, int)
    if name == "packbits":
        return Filter(make(**given), np.dtype("u1"), lambda count: 1 + -(-count // 8))
    key = "decode_dtype" if name == "astype" else "dtype"
    codec = make(**{key: dtype.str, **given})
    before = np.dtype(getattr(codec, key))
    after = np.dtype(codec.encode_dtype if name == "astype" else codec.astype)
    if before.itemsize != dtype.itemsize:
        return None
    return Filter(codec, before, lambda count: count // before.itemsize * after.itemsize)
