"""How one axis is split into overlapping ranges: the documented rules, exact and lazy. Pure."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any, Literal

import numpy as np

from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.geometry import Range

__all__ = ["AxisSplit", "aligned", "as_count", "blocks_needed", "even_split", "split_axis"]

log = logging.getLogger(__name__)

_IRREGULAR = 2
"""So many blocks at either end of an axis may differ from those between them: the first and last
have one neighbour, and their neighbours may have context that the axis end cuts."""


@dataclass(frozen=True, slots=True)
class AxisSplit:
    """One axis cut into `count` overlapping ranges, each given by a closed form.

    Parameters
    ----------
    size : int
        Length of the axis.
    count : int
        Number of blocks.
    overlap : int
        Voxels that neighbours share.
    width : int
        Whole part of the width of a block.
    extra : int
        Fraction of the width, in `count`-ths of a voxel: the first ``k`` blocks together are
        ``k * extra // count`` voxels longer than ``k * width``.
    pulled : bool
        Whether the last block is pulled back to end at the axis end; else it is cut there.
    unit : int
        Inner valid borders are multiples of it; reads follow with the same overlap.
    """

    size: int
    count: int
    overlap: int
    width: int
    extra: int = 0
    pulled: bool = False
    unit: int = 1

    def __len__(self) -> int:
        return self.count

    def block(self, k: int) -> Range:
        """Return the range that block `k` reads."""
        if self.unit == 1:
            return self._block(k)
        lower = self.border(k) - self._context(k)[0] if k else 0
        last = k == self.count - 1
        upper = self.size if last else self.border(k + 1) + self._context(k + 1)[1]
        return max(0, lower), min(self.size, upper)

    def valid(self, k: int) -> Range:
        """Return the part of block `k` that is written. Valid ranges tile the axis."""
        return self.border(k), self.border(k + 1)

    def border(self, k: int) -> int:
        """Return where the valid range of block `k` begins (``border(count)`` is the axis end).

        It is the middle of the overlap, halves to even; to below where blocks advance by a single
        voxel, since rounding to even would leave every other valid range empty there. The middle
        is then moved to the nearest unit, if there is one.
        """
        if k <= 0:
            return 0
        if k >= self.count:
            return self.size
        middle = self._border(k)
        return (2 * middle + self.unit) // (2 * self.unit) * self.unit

    @property
    def largest(self) -> int:
        """Length of the longest block."""
        if self.unit > 1:
            ends = [hi - lo for lo, hi in map(self.block, self._ends())]
            between = self._between()
            return max(*ends, between[-1] + self.overlap) if between else max(ends)
        return min(self.size, self.width + (1 if self.extra else 0))

    @property
    def read(self) -> int:
        """Sum of the lengths of all blocks."""
        if self.unit > 1 or self.count == 0:
            ends = sum(hi - lo for lo, hi in map(self.block, self._ends()))
            blocks = max(0, self.count - 2 * _IRREGULAR)
            borders = self.border(self.count - _IRREGULAR) - self.border(_IRREGULAR)
            return ends + (borders + blocks * self.overlap if blocks else 0)
        lo, hi = self._block(self.count - 1)
        n = self.count - 1
        return n * self.width + n * self.extra // self.count + hi - lo

    def _ends(self) -> Sequence[int]:
        """Return the blocks that the ends of the axis may cut or pull back."""
        if self.count <= 2 * _IRREGULAR:
            return range(self.count)
        return [*range(_IRREGULAR), *range(self.count - _IRREGULAR, self.count)]

    def _between(self) -> Sequence[int]:
        """Return the lengths, at most two, of the valid ranges of the other blocks.

        Where borders lie on units they are ``floor(a * k + b)`` units for some a and b, and the
        differences of such a sequence are ``floor(a)`` or ``floor(a) + 1``.
        """
        blocks = self.count - 2 * _IRREGULAR
        if blocks < 1:
            return ()
        units = (self.border(self.count - _IRREGULAR) - self.border(_IRREGULAR)) // self.unit
        return units // blocks * self.unit, -(-units // blocks) * self.unit

    def _block(self, k: int) -> Range:
        lo = k * (self.width - self.overlap) + k * self.extra // self.count
        if k < self.count - 1:
            return lo, (k + 1) * self.width + (k + 1) * self.extra // self.count - k * self.overlap
        return (min(lo, self.size - self.width) if self.pulled else lo), self.size

    def _border(self, k: int) -> int:
        total = self._block(k)[0] + self._block(k - 1)[1]
        half, odd = divmod(total, 2)
        down = self.unit > 1 or self.width - self.overlap == 1
        return half + (odd and half % 2 and not down)

    def _context(self, k: int) -> Range:
        middle = self._border(k)
        return middle - self._block(k)[0], self._block(k - 1)[1] - middle


def as_count(name: str, value: Any, minimum: int) -> int:
    """Return a whole number from an int or NumPy integer.

    Raises
    ------
    ArgumentTypeError
        If it is a bool, a float or not a number.
    PlanError
        If it is below `minimum`.
    """
    given: Any = None if isinstance(value, bool | np.bool_) else value
    try:
        number = index(given)
    except TypeError:
        kind = type(value).__name__
        raise ArgumentTypeError(f"{name} is {value!r} ({kind}); give a whole number") from None
    if number < minimum:
        hint = "use 0 for none" if minimum == 0 else f"it must be at least {minimum}"
        raise PlanError(f"{name} is {number}; {hint}")
    return number


def split_axis(
    size: int,
    *,
    processes: int = 1,
    size_max: int | None = None,
    size_min: int | Literal["fixed"] | None = None,
    overlap: int | None = None,
    optimization: bool | None = True,
    optimization_fix: str | None = "all",
    multiple_of: int | None = None,
    label: str = "",
) -> AxisSplit:
    """Split one axis by the documented rules (see `gpublocks.block_processing.block_sizes`).

    Parameters
    ----------
    label : str
        Text such as ``' of axis 2'`` that error messages put behind the name of a parameter.

    Raises
    ------
    PlanError, ArgumentTypeError
        If the sizes contradict each other or mean nothing.
    """
    size = as_count(f"size{label}", size, 1)
    processes = as_count(f"processes{label}", processes, 1)
    if optimization_fix not in ("all", "increase", "decrease", None):
        raise PlanError(
            f"optimization_fix is {optimization_fix!r}; use 'all', 'increase', 'decrease' or None"
        )
    if optimization not in (True, False, None):
        raise PlanError(f"optimization is {optimization!r}; use True or False")
    largest = size if size_max is None else min(as_count(f"size_max{label}", size_max, 1), size)
    shared = 0 if overlap is None else min(as_count(f"overlap{label}", overlap, 0), size - 1)
    fixed, smallest = _smallest(size_min, size, largest, shared, label)
    if smallest > largest:
        raise PlanError(f"size_min {smallest}{label} is above size_max {largest}")
    if shared >= largest:
        raise PlanError(
            f"overlap {shared}{label} is not smaller than size_max {largest}; "
            f"use an overlap of at most {largest - 1} or a larger size_max"
        )
    if shared >= smallest:
        raise PlanError(f"overlap {shared}{label} is not smaller than size_min {smallest}")
    if multiple_of is not None:
        multiple = as_count(f"size_multiple_of{label}", multiple_of, 1)
        if multiple > 1 and largest < size:
            least = None if fixed else smallest
            return _multiples(size, largest, least, shared, multiple, label)
    count = blocks_needed(size, largest, shared)
    if count == 1:
        return AxisSplit(size, 1, shared, size)
    if fixed:
        return AxisSplit(size, count, shared, largest, pulled=True)
    split = even_split(size, count, shared)
    if split.width < smallest:
        split = replace(split, width=smallest, extra=0, pulled=True)
    if not optimization or count % processes == 0:
        return split
    count = _optimised(count, processes, optimization_fix, size, shared)
    split = even_split(size, count, shared) if count != split.count else split
    if split.largest > largest:
        log.warning(
            "optimising for %d processes makes blocks of %d voxels%s, above size_max %d",
            processes,
            split.largest,
            label,
            largest,
        )
    return split


def blocks_needed(size: int, width: int, overlap: int) -> int:
    """Return the fewest blocks of a width that cover an axis."""
    return 1 if width >= size else 1 - (-(size - width) // (width - overlap))


def even_split(size: int, count: int, overlap: int) -> AxisSplit:
    """Split an axis into `count` blocks whose lengths differ by at most one."""
    width, extra = divmod(size + (count - 1) * overlap, count)
    return AxisSplit(size, count, overlap, width, extra)


def _smallest(
    size_min: int | Literal["fixed"] | None, size: int, largest: int, shared: int, label: str
) -> tuple[bool, int]:
    if isinstance(size_min, str):
        if size_min != "fixed":
            raise PlanError(f"size_min is {size_min!r}; give a number or 'fixed'")
        return True, largest
    if size_min is None:
        return False, min(largest, shared + 1)
    return False, min(as_count(f"size_min{label}", size_min, 1), size)


def _optimised(count: int, processes: int, fix: str | None, size: int, shared: int) -> int:
    """Return a number of blocks that is a multiple of `processes`, if that can be had.

    Blocks advance by at least one voxel as long as there are at most ``size - shared`` of them,
    so that no valid range is empty.
    """
    rest = count % processes
    if fix in ("all", None):
        fix = "increase" if 2 * rest < processes else "decrease"
    if fix == "decrease":
        return min(count - rest + processes, size - shared)
    return count - rest if count > rest else count


def _multiples(
    size: int, largest: int, smallest: int | None, shared: int, multiple: int, label: str
) -> AxisSplit:
    """Split into equal blocks whose width is a multiple, the last one cut by the axis end.

    Without a smallest width they are as large as can be, and the last one is pulled back.
    """
    limit = largest // multiple * multiple
    least = smallest or max(limit, shared + 1)
    if limit < least:
        raise PlanError(
            f"no block{label} is a multiple of size_multiple_of {multiple}, above overlap "
            f"{shared}, and from {least} to {largest} voxels (size_min, size_max) long; "
            f"use a size_max of at least {-(-least // multiple) * multiple}"
        )
    count = blocks_needed(size, limit, shared)
    mean = -(-(size + (count - 1) * shared) // count)
    width = -(-max(mean, least) // multiple) * multiple
    count = blocks_needed(size, width, shared)
    return AxisSplit(size, count, shared, width, pulled=smallest is None)


def aligned(split: AxisSplit, unit: int, size_max: int | None, label: str = "") -> AxisSplit:
    """Snap the valid borders of a split to multiples of a sink's write unit.

    Raises
    ------
    PlanError
        If two borders meet, or a block would then exceed `size_max`.
    """
    if unit == 1 or split.count == 1:
        return split
    snapped = replace(split, unit=unit)
    ends = [hi - lo for lo, hi in map(snapped.valid, snapped._ends())]
    if min([*ends, *snapped._between()]) < 1:
        raise PlanError(
            f"blocks of {split.width} voxels{label} are too small for a sink that is written "
            f"{unit} voxels at a time"
        )
    if size_max is not None and snapped.largest > size_max:
        raise PlanError(
            f"blocks{label} aligned to the sink's unit of {unit} voxels grow to "
            f"{snapped.largest}, above size_max {size_max}"
        )
    return snapped
