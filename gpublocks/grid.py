"""The cells of a split volume: a lazy sequence, every range by closed form. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import overload

from gpublocks.contracts import Order
from gpublocks.geometry import Cell, Range
from gpublocks.splitting import AxisSplit

__all__ = ["Grid"]

_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Grid(Sequence[Cell]):
    """All cells of a volume, in C order of the grid.

    Parameters
    ----------
    shape : tuple of int
        Shape of the (first) source.
    axes : tuple of int
        The split axes, ascending.
    splits : tuple of AxisSplit
        How each of them is split.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    splits: tuple[AxisSplit, ...]
    counts: tuple[int, ...] = field(init=False)
    """Number of blocks along each axis of the array, ones where it is not split."""
    _known: tuple[dict[int, tuple[Range, Range]], ...] = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        counts = [1] * len(self.shape)
        for axis, split in zip(self.axes, self.splits, strict=True):
            counts[axis] = split.count
        object.__setattr__(self, "counts", tuple(counts))
        object.__setattr__(self, "_known", tuple({} for _ in self.splits))

    def __len__(self) -> int:
        return prod(self.counts)

    @overload
    def __getitem__(self, number: int) -> Cell: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Cell]: ...
    def __getitem__(self, number: int | slice) -> Cell | Sequence[Cell]:
        if isinstance(number, slice):
            return [self[n] for n in range(len(self))[number]]
        number = range(len(self))[number]
        index = [0] * len(self.shape)
        rest = number
        for axis in reversed(range(len(index))):
            rest, index[axis] = divmod(rest, self.counts[axis])
        return self._cell(number, tuple(index))

    def __iter__(self) -> Iterator[Cell]:
        for number, index in enumerate(_indices(self.counts)):
            yield self._cell(number, index)

    def walk(self, order: Order) -> Iterator[Cell]:
        """Return the cells in the order of the storage: along its fastest axis first.

        Cells that share pages of a file, or pieces, so follow each other soon.
        """
        return iter(self) if order == "C" else self._columns()

    def number(self, index: Sequence[int]) -> int:
        """Return the number of the cell at a position of the grid."""
        number = 0
        for position, count in zip(index, self.counts, strict=True):
            number = number * count + position
        return number

    def _cell(self, number: int, index: tuple[int, ...]) -> Cell:
        pairs = [
            known.get(index[axis]) or _remembered(known, split, index[axis])
            for axis, split, known in zip(self.axes, self.splits, self._known, strict=True)
        ]
        read = tuple([pair[0] for pair in pairs])
        return Cell(number, index, self.axes, read, tuple([pair[1] for pair in pairs]))

    def _columns(self) -> Iterator[Cell]:
        for reverse in _indices(self.counts[::-1]):
            index = reverse[::-1]
            yield self._cell(self.number(index), index)

    @property
    def largest(self) -> tuple[int, ...]:
        """Shape of the largest block."""
        shape = list(self.shape)
        for axis, split in zip(self.axes, self.splits, strict=True):
            shape[axis] = split.largest
        return tuple(shape)

    @property
    def read_voxels(self) -> int:
        """Voxels that all blocks together read from the (first) source."""
        lengths = list(self.shape)
        for axis, split in zip(self.axes, self.splits, strict=True):
            lengths[axis] = split.read
        return prod(lengths)


def _indices(counts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Return all positions in C order; `itertools.product` would first make lists of the axes."""
    if not counts:
        yield ()
        return
    for start in _indices(counts[:-1]):
        for position in range(counts[-1]):
            yield (*start, position)


def _remembered(
    known: dict[int, tuple[Range, Range]], split: AxisSplit, k: int
) -> tuple[Range, Range]:
    """Work out the ranges of a block along an axis, for all cells that lie there too.

    So many are remembered that a volume with thousands of blocks along an axis is walked in C
    order with each range worked out once, and so few that a million of them cost nothing.
    """
    pair = split.block(k), split.valid(k)
    if len(known) < _REMEMBERED:
        known[k] = pair
    return pair
