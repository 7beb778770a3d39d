"""Unsigned integers in the order of the voxels that they stand for. Pure.

Ranks need nothing but an order. For integers with a sign the first bit is turned; floats are in the
order of their bits, but for negative ones, whose bits are all turned. -0.0 comes before 0.0, and
NaN after everything.
"""

from typing import Any

import numpy as np

from gpublocks.contracts import DType
from gpublocks.filters.dtypes import converted

__all__ = ["as_bits", "from_keys", "outside_bits", "to_keys"]


def as_bits(array: Any) -> Any:
    """Return a view of voxels as unsigned integers."""
    return array.view(f"u{array.dtype.itemsize}")


def outside_bits(cval: float, dtype: DType) -> Any:
    """Return the bits of a constant beyond the border, as a voxel holds it, in an array of one."""
    return as_bits(converted(np.array([cval]), dtype))


def to_keys(bits: Any, dtype: DType) -> None:
    """Make keys of the bits of voxels of some type, in place."""
    first, last = _ends(bits.dtype)
    if dtype.kind == "i":
        bits ^= first
    elif dtype.kind == "f":
        unknown = np.isnan(bits.view(dtype))
        turned = bits >> last
        np.negative(turned, out=turned)
        turned |= first
        bits ^= turned
        if unknown.any():
            bits[unknown] = ~bits.dtype.type(0)


def from_keys(keys: Any, dtype: DType) -> None:
    """Make the bits of voxels of some type of their keys, in place."""
    first, last = _ends(keys.dtype)
    if dtype.kind == "i":
        keys ^= first
    elif dtype.kind == "f":
        turned = keys >> last
        turned -= keys.dtype.type(1)
        turned |= first
        keys ^= turned


def _ends(dtype: DType) -> tuple[Any, Any]:
    """Return the number with the first bit only, and by how many bits it is before the last one."""
    last = dtype.type(8 * dtype.itemsize - 1)
    return dtype.type(1) << last, last
