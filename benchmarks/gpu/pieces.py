"""The blocks that everything is compared over: what each reads, and writes. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from gpublocks.geometry import Cell

__all__ = ["Piece", "from_cells", "shape_within", "slabs"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A block: what is read, what of it is valid, and that counted from its start.

    Parameters
    ----------
    read, valid, crop : tuple of slice
        In the volume, in the volume, and in what was read.
    """

    read: tuple[slice, ...]
    valid: tuple[slice, ...]
    crop: tuple[slice, ...]

    @property
    def read_shape(self) -> tuple[int, ...]:
        """Voxels per axis that are read."""
        return tuple(part.stop - part.start for part in self.read)

    @property
    def valid_shape(self) -> tuple[int, ...]:
        """Voxels per axis that are written."""
        return tuple(part.stop - part.start for part in self.valid)

    @property
    def read_size(self) -> int:
        """Voxels that are read."""
        return prod(self.read_shape)

    @property
    def valid_size(self) -> int:
        """Voxels that are written."""
        return prod(self.valid_shape)


def from_cells(cells: Iterable[Cell], shape: Sequence[int]) -> list[Piece]:
    """Return the blocks of a grid's cells in an array of this shape, in the order of the grid."""
    found = []
    for cell in sorted(cells, key=lambda cell: cell.number):
        read, valid = cell.read_in(shape), cell.valid_in(shape)
        found.append(Piece(read.slices, valid.slices, valid.within(read).slices))
    return found


def slabs(shape: Sequence[int], halo: int, itemsize: int, block_bytes: int) -> list[Piece]:
    """Cut a volume along its first axis into blocks of about so many bytes, halos included.

    Examples
    --------
    >>> [piece.read[0] for piece in slabs((10, 1, 1), 1, 1, 6)]
    [slice(0, 6, None), slice(4, 10, None)]
    """
    plane = prod(shape[1:]) * itemsize
    count = -(-shape[0] // max(1, block_bytes // plane - 2 * halo))
    rest = tuple(slice(0, length) for length in shape[1:])
    found = []
    for n in range(count):
        start, stop = shape[0] * n // count, shape[0] * (n + 1) // count
        lower, upper = max(0, start - halo), min(shape[0], stop + halo)
        crop = (slice(start - lower, stop - lower), *rest)
        found.append(Piece((slice(lower, upper), *rest), (slice(start, stop), *rest), crop))
    return found


def shape_within(shape: Sequence[int], itemsize: int, most_bytes: float) -> tuple[int, ...]:
    """Return a shape in the same proportions that takes at most so many bytes, or the shape.

    Examples
    --------
    >>> shape_within((100, 100, 100), 2, 250_000)
    (50, 50, 50)
    """
    factor = (most_bytes / (prod(shape) * itemsize)) ** (1 / len(shape))
    if factor >= 1:
        return tuple(shape)
    # Rounding errors must not lose a voxel: 0.5 * 100 may be 49.999...
    return tuple(max(1, int(factor * length + 1e-6)) for length in shape)
