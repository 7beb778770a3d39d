"""Numbers of a whole volume: extremes, histograms, percentiles. Touches what `process` does.

A volume is read block by block, and nothing is kept of a block but its counts, so that memory does
not grow with the volume. Counts are whole numbers: the result does not depend on the blocks, nor on
the order in which they are done.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpublocks import io
from gpublocks.arrays import array_namespace
from gpublocks.block_processing import process
from gpublocks.contracts import DType
from gpublocks.errors import PlanError
from gpublocks.filters.dtypes import check_real
from gpublocks.filters.engines.layouts import in_memory_order
from gpublocks.filters.parameters import number

__all__ = ["histogram", "minmax", "percentiles"]

Counts = npt.NDArray[np.int64]

_BITS = 16
"""Bits of a voxel that are counted in one pass over the volume."""


def minmax(source: Any, **options: Any) -> tuple[Any, Any]:
    """Return the least and the greatest voxel of a volume.

    Parameters
    ----------
    source : array_like, path or Source
    **options
        Of `gpublocks.process`: ``memory``, ``processes``, ``device``, ``progress``, ...

    Returns
    -------
    low, high : int, float or bool
        Voxels that are no numbers are left out; if all are, both are NaN.

    Raises
    ------
    PlanError
        If there are no voxels.
    ArgumentTypeError
        If they are no real numbers.

    Examples
    --------
    >>> minmax(np.arange(10, dtype=np.uint8).reshape(2, 5))
    (0, 9)
    """
    opened = _opened(source, "minmax")
    found: list[Any] = []

    def take(extremes: tuple[Any, Any]) -> None:
        lows, highs = zip(extremes, *found, strict=True)
        found[:] = [(min(lows), max(highs))]

    process(_extremes, opened, overlap=0, return_result=take, **options)
    low, high = [opened.dtype.type(extreme).item() for extreme in found[0]]
    return (low, high) if low <= high else (float("nan"), float("nan"))


def histogram(
    source: Any,
    bins: int | Sequence[float] | None = None,
    range: tuple[float, float] | None = None,  # as numpy.histogram has it
    **options: Any,
) -> tuple[Counts, npt.NDArray[Any]]:
    """Return how many voxels of a volume lie in each bin, as `numpy.histogram`.

    Parameters
    ----------
    source : array_like, path or Source
    bins : int or sequence of float, optional
        Number of bins of equal width, or their edges. By default there is a bin for each value of
        truth values and integers of 8 and 16 bits, and 256 bins for others.
    range : (float, float), optional
        Lower end of the first bin and upper end of the last one, which belongs to it. By default
        the least and the greatest voxel, which take a pass of their own.
    **options
        Of `gpublocks.process`.

    Returns
    -------
    counts : ndarray of int64
    edges : ndarray
        One more than bins. Voxels beyond them, and those that are no numbers, do not count.

    Raises
    ------
    PlanError, ArgumentTypeError

    Examples
    --------
    >>> counts, edges = histogram(np.array([0, 1, 1, 200], np.uint8))
    >>> counts[:3].tolist(), counts[200], len(edges)
    ([1, 2, 0], np.int64(1), 257)
    """
    opened = _opened(source, "histogram")
    dtype = opened.dtype
    if bins is None and range is None and dtype.itemsize <= 2 and dtype.kind in "biu":
        counts = _counts(opened, _Count(_Keys.of(dtype), (0,), 0), options)[0]
        least = 0 if dtype.kind == "b" else np.iinfo(dtype).min
        many = 2 if dtype.kind == "b" else len(counts)
        return counts[:many], np.arange(least, least + many + 1)
    if range is None and not isinstance(bins, Sequence | np.ndarray):
        low, high = minmax(opened, **options)
        kind = dtype.type if dtype.kind in "iu" else float
        range = kind(low), kind(high)
    bins = 256 if bins is None else bins
    try:
        edges = np.histogram_bin_edges(np.empty(0), bins, range)
    except (ValueError, TypeError) as error:
        raise PlanError(f"bins={bins!r} and range={range!r} make no bins: {error}") from None
    return _counts(opened, _Bins(bins, range), options)[0], edges


def percentiles(source: Any, q: float | Sequence[float], **options: Any) -> Any:
    """Return percentiles of all voxels of a volume, exactly, as `numpy.percentile` does.

    Parameters
    ----------
    source : array_like, path or Source
    q : float or sequence of float
        Percentages, from 0 to 100.
    **options
        Of `gpublocks.process`.

    Returns
    -------
    float or list of float
        Like `q`. Between two voxels it is interpolated; voxels that are no numbers are left out,
        and without any other the result is NaN.

    Raises
    ------
    PlanError, ArgumentTypeError

    Notes
    -----
    Voxels are counted by sixteen bits of a key that sorts as they do, the highest ones first; then,
    where there are more, by the next bits of those that share the bits found: volumes of 8 and 16
    bits are read once, of 32 bits twice, of 64 bits four times (a radix selection).

    Examples
    --------
    >>> percentiles(np.arange(101, dtype=np.float32), [0, 50, 99.5])
    [0.0, 50.0, 99.5]
    """
    listed = isinstance(q, Sequence | np.ndarray)
    wanted = [number("q", item, least=0, most=100) for item in (q if listed else [q])]  # type: ignore[union-attr]
    opened = _opened(source, "percentiles")
    found = _selected(opened, wanted, options)
    return found if listed else found[0]


def _opened(source: Any, name: str) -> Any:
    opened = io.as_source(source)
    check_real(opened.dtype, name)
    if 0 in opened.shape:
        raise PlanError(f"{name} of a source of shape {opened.shape}, which has no voxels")
    return opened


def _extremes(array: Any) -> tuple[Any, Any]:
    """Return the least and the greatest number of a block; if there is none, infinities."""
    if array.dtype.kind != "f":
        return array.min(), array.max()
    xp = array_namespace(array)
    none = xp.isnan(array)
    return xp.where(none, np.inf, array).min(), xp.where(none, -np.inf, array).max()


def _counts(opened: Any, count: Callable[[Any], Counts], options: dict[str, Any]) -> Counts:
    """Return the sum of the counts of all blocks."""
    total: list[Counts] = []

    def take(counts: Counts) -> None:
        total[:] = [total[0] + counts if total else counts.astype(np.int64)]

    process(count, opened, overlap=0, return_result=take, **options)
    return total[0]


def _selected(opened: Any, q: list[float], options: dict[str, Any]) -> list[float]:
    """Return percentiles by radix selection."""
    keys = _Keys.of(opened.dtype)
    shifts = [max(0, shift) for shift in range(keys.bits - _BITS, -1, -_BITS)] or [0]
    total, places = 0, np.empty(0)
    targets: list[tuple[int, int]] = []
    for shift in shifts:
        prefixes = tuple(sorted({prefix for prefix, _ in targets})) or (0,)
        counts = _counts(opened, _Count(keys, prefixes, shift), options)
        if not targets:
            total = int(counts.sum())
            if not total:
                return [float("nan")] * len(q)
            places = np.asarray(q) / 100 * (total - 1)
            ranks = [int(place) for place in places]
            targets = [(0, min(rank + more, total - 1)) for rank in ranks for more in (0, 1)]
        targets = [_next(prefixes, counts, *target) for target in targets]
    values = [float(keys.value(prefix)) for prefix, _ in targets]
    pairs = zip(values[::2], values[1::2], (places % 1).tolist(), strict=True)
    return [_between(low, high, part) for low, high, part in pairs]


def _next(prefixes: tuple[int, ...], counts: Counts, prefix: int, rank: int) -> tuple[int, int]:
    """Return sixteen more bits of the voxel of some rank, and its rank among these."""
    upto = counts[prefixes.index(prefix)].cumsum()
    low = int(np.searchsorted(upto, rank, side="right"))
    return prefix << _BITS | low, rank - int(upto[low - 1] if low else 0)


def _between(low: float, high: float, part: float) -> float:
    """Interpolate as NumPy does (``numpy.lib._function_base_impl._lerp``)."""
    if low == high or not part:
        return low
    with np.errstate(invalid="ignore"):
        return low + (high - low) * part if part < 0.5 else high - (high - low) * (1 - part)


@dataclass(frozen=True, slots=True)
class _Keys:
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
    def of(cls, dtype: DType) -> "_Keys":
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

    def value(self, key: int) -> Any:
        """Return the voxel of a key."""
        below = bool(self.infinity) and not key & self.sign
        bits = key ^ ((1 << self.bits) - 1 if below else self.flip)
        return np.array(bits, f"u{self.dtype.itemsize}").view(self.dtype)[()]


@dataclass(frozen=True, slots=True)
class _Count:
    """Counts the voxels of a block by sixteen bits of their keys, a row for each prefix."""

    keys: _Keys
    prefixes: tuple[int, ...]
    shift: int

    def memory(self, dtype: DType) -> float:
        """Return what it takes for a voxel: keys, their bits, and indices for `bincount`."""
        return 3 * dtype.itemsize + 9

    def __call__(self, array: Any) -> Any:
        """Return counts, a row for each prefix."""
        bits = self.keys.bits_of(array)
        width = 1 << min(_BITS, self.keys.bits)
        xp = array_namespace(array)
        keys = self.keys.of_bits(bits) >> bits.dtype.type(self.shift)
        if self.shift + _BITS >= self.keys.bits:
            return xp.bincount(keys, minlength=width)[None]
        low, high = keys & bits.dtype.type(width - 1), keys >> bits.dtype.type(_BITS)
        found = [low[high == bits.dtype.type(prefix)] for prefix in self.prefixes]
        return xp.stack([xp.bincount(those, minlength=width) for those in found])


@dataclass(frozen=True, slots=True)
class _Bins:
    """Counts the voxels of a block that lie in bins."""

    bins: Any
    range: tuple[float, float] | None

    def __call__(self, array: Any) -> Any:
        """Return counts, in one row."""
        xp = array_namespace(array)
        # NumPy warns of truth values, and finds edges in the type of the array.
        array = array.view(np.uint8) if array.dtype.kind == "b" else array
        array = array.astype(np.float32) if array.dtype == np.float16 else array
        bins = self.bins if isinstance(self.bins, int) else xp.asarray(self.bins)
        return xp.histogram(array, bins, self.range)[0][None]
