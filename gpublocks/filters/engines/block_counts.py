"""Extremes of the voxels of a block, and counts of them: by bits of their keys, or in bins. Pure.

The blocks may be of NumPy or CuPy, and what is found is the same: edges of bins, not the
arithmetic that comes near them, say where a voxel belongs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpublocks.arrays import array_namespace
from gpublocks.contracts import DType
from gpublocks.filters.engines.layouts import in_memory_order

__all__ = ["BITS", "BinCounts", "Extremes", "Inside", "KeyCounts", "Keys"]

BITS = 16
"""Bits of a voxel that are counted in one pass over the volume."""

_PIECE, _DEVICE_PIECE = 1 << 16, 1 << 20
"""Voxels that are put into bins at once: what they take stays in caches, or does for a GPU."""


@dataclass(frozen=True, slots=True)
class Inside:
    """Hands those voxels on that lie inside a mask, one after the other."""

    function: Callable[[Any], Any]

    def memory(self, dtype: DType) -> float:
        """Return bytes for a voxel: it is copied first."""
        own: Callable[[DType], float] = self.function.memory  # type: ignore[attr-defined]
        return dtype.itemsize + own(dtype)

    def __call__(self, array: Any, inside: Any) -> Any:
        """Return what the function returns."""
        return self.function(array[inside])


class Extremes:
    """Finds the least and the greatest number of a block."""

    def memory(self, dtype: DType) -> float:
        """Return bytes for a voxel: one of floats is copied without those that are no numbers."""
        return dtype.itemsize + 1 if dtype.kind == "f" else 0

    def __call__(self, array: Any) -> tuple[Any, Any] | None:
        """Return both; None if there are none."""
        if array.dtype.kind == "f":
            array = array[~array_namespace(array).isnan(array)]
        return (array.min(), array.max()) if array.size else None


@dataclass(frozen=True, slots=True)
class Keys:
    """Unsigned integers that sort as voxels do.

    For signed integers it is the bit of the sign that is flipped; for floats too, but all bits of
    those below 0.

    Parameters
    ----------
    dtype : numpy.dtype
    bits : int
    infinity : int
        Bits of infinity; 0 for integers.
    """

    dtype: DType
    bits: int
    infinity: int

    @classmethod
    def of(cls, dtype: DType) -> "Keys":
        """Return the keys of a type."""
        native = dtype.newbyteorder("=")
        infinity = np.array(np.inf, native).view(f"u{native.itemsize}") if native.kind == "f" else 0
        return cls(native, 8 * native.itemsize, int(infinity))

    @property
    def sign(self) -> int:
        """The bit of the sign."""
        return 1 << (self.bits - 1)

    @property
    def flip(self) -> int:
        """The bits that are flipped."""
        return self.sign if self.dtype.kind in "if" else 0

    def bits_of(self, array: Any) -> Any:
        """Return voxels as unsigned integers, one after the other."""
        native = array.astype(self.dtype, copy=False)
        return in_memory_order(native)[0].reshape(-1).view(f"u{self.dtype.itemsize}")

    def of_bits(self, bits: Any) -> Any:
        """Return the keys, without those of what is no number."""
        kind = bits.dtype.type
        if not self.infinity:
            return bits ^ kind(self.flip)
        bits = bits[(bits & kind(self.sign - 1)) <= kind(self.infinity)]
        below = (bits >> kind(self.bits - 1)) * kind(self.sign - 1)
        return bits ^ (below | kind(self.sign))

    def values(self, keys: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the voxels of keys."""
        bits = np.array(keys, f"u{self.dtype.itemsize}")
        kind = bits.dtype.type
        found = bits ^ kind(self.flip)
        if self.infinity:
            found = np.where(bits & kind(self.sign), found, ~bits)
        voxels: npt.NDArray[Any] = found.view(self.dtype)
        return voxels


@dataclass(frozen=True, slots=True)
class KeyCounts:
    """Counts the voxels of a block by sixteen bits of their keys, a row for each prefix."""

    keys: Keys
    prefixes: tuple[int, ...]
    shift: int

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the counts."""
        return len(self.prefixes), 1 << min(BITS, self.keys.bits)

    def memory(self, dtype: DType) -> float:
        """Return bytes for a voxel: keys, their bits, and indices for `bincount`."""
        return 3 * dtype.itemsize + 9

    def __call__(self, array: Any) -> Any:
        """Return counts, a row for each prefix."""
        bits = self.keys.bits_of(array)
        width = self.shape[1]
        xp = array_namespace(array)
        keys = self.keys.of_bits(bits) >> bits.dtype.type(self.shift)
        if self.shift + BITS >= self.keys.bits:
            return _counted(xp, keys, width)[None]
        low, high = keys & bits.dtype.type(width - 1), keys >> bits.dtype.type(BITS)
        found = [low[high == bits.dtype.type(prefix)] for prefix in self.prefixes]
        return xp.stack([_counted(xp, those, width) for those in found])


@dataclass(frozen=True, slots=True, eq=False)
class BinCounts:
    """Counts the voxels of a block that lie in bins, as `numpy.histogram` does.

    A voxel on an edge belongs to the bin above, or to the last one.

    Parameters
    ----------
    edges : ndarray
        Ascending; those of an `even` one differ.
    even : bool
        Whether all bins are as wide as can be rounded to.
    """

    edges: npt.NDArray[Any]
    even: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the counts."""
        return 1, len(self.edges) - 1

    def memory(self, dtype: DType) -> float:
        """Return bytes for a voxel: a copy of one that does not lie in the order of memory."""
        return dtype.itemsize

    def __call__(self, array: Any) -> Any:
        """Return counts, in one row."""
        xp = array_namespace(array)
        kind = np.result_type(array.dtype, self.edges.dtype)
        edges, bins = self.edges.astype(kind), self.shape[1]
        voxels = in_memory_order(array)[0].reshape(-1)
        counts = xp.zeros(bins + 1, np.int64)
        step = _PIECE if xp is np else _DEVICE_PIECE
        for start in range(0, voxels.size, step):
            part = voxels[start : start + step].astype(kind, copy=False)
            part = part[(part >= edges[0]) & (part <= edges[-1])]
            counts += _counted(xp, self._bin_of(xp, part, edges), bins + 1)
        counts[bins - 1] += counts[bins]
        return counts[None, :bins]

    def _bin_of(self, xp: Any, part: Any, edges: npt.NDArray[Any]) -> Any:
        """Return the bins of voxels; those on the last edge are in a bin of their own."""
        scale, there = self._scale(edges), xp.asarray(edges)
        if scale is None:
            return xp.searchsorted(there, part, side="right") - 1
        guess = ((part - edges[0]) * scale).astype(np.intp).clip(0, self.shape[1] - 1)
        return guess + (part >= there[guess + 1]) - (part < there[guess])

    def _scale(self, edges: npt.NDArray[Any]) -> Any:
        """Return bins for a unit of length; None unless a guess by it is at most one bin off."""
        # Of more bins than that, what is rounded may add up to a bin.
        if not self.even or self.shape[1] * np.finfo(edges.dtype).eps > 0.1:
            return None
        with np.errstate(over="ignore", divide="ignore"):
            scale = edges.dtype.type(self.shape[1]) / (edges[-1] - edges[0])
        return scale if 0 < scale < np.inf else None


def _counted(xp: Any, indices: Any, width: int) -> Any:
    # NumPy before 2 does not take indices of 64 bits without a sign.
    return xp.bincount(indices.astype(np.intp, copy=False), minlength=width)
