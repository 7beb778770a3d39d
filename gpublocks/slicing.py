"""The arithmetic of NumPy's slicings: composing them, their shapes, and text for them. Pure.

A slicing is what stands between the brackets of ``a[...]``: ints, slices with any step, an
Ellipsis, and at most one index array (a list or array of ints, or a mask of one axis).
"""

import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gpublocks.errors import PlanError

__all__ = [
    "Index",
    "Slicing",
    "simplify",
    "sliced_pieces",
    "sliced_shape",
    "sliced_slicing",
    "sliced_unit",
    "slicing_text",
    "slicing_within",
    "unpack_slicing",
]

Positions: TypeAlias = npt.NDArray[np.intp]
"""An index array: positions along one axis."""

Index: TypeAlias = int | slice | Positions
"""What a slicing says about one axis."""

Slicing: TypeAlias = tuple[Index, ...]
"""One index for each axis of the array that is sliced."""


def unpack_slicing(slicing: Any, ndim: int) -> Slicing:
    """Return a slicing with one index for each axis of an array.

    Parameters
    ----------
    slicing : int, slice, Ellipsis, list or array of ints, mask, or tuple of these
    ndim : int
        Number of axes of the array.

    Returns
    -------
    tuple of int, slice or ndarray
        Python ints, slices as they were given, and at most one array: positions, or a mask.

    Raises
    ------
    IndexError
        If there are more indices than axes.
    PlanError
        If it holds what is no int, slice, Ellipsis or single index array of one axis.

    Examples
    --------
    >>> unpack_slicing((..., slice(0, 3)), 3)
    (slice(None, None, None), slice(None, None, None), slice(0, 3, None))
    """
    parts = slicing if isinstance(slicing, tuple) else (slicing,)
    gaps = [n for n, part in enumerate(parts) if part is Ellipsis]
    if len(gaps) > 1:
        raise IndexError("a slicing can hold one Ellipsis ('...') only")
    given = len(parts) - len(gaps)
    if given > ndim:
        raise IndexError(f"{given} indices for an array of {ndim} axes; give at most {ndim}")
    gap = gaps[0] if gaps else len(parts)
    left, right = parts[:gap], parts[gap + 1 :]
    first, last = (
        [part if type(part) is slice else _as_index(part) for part in side]
        for side in (left, right)
    )
    # To NumPy an Ellipsis stands between two indices even where it stands for no axis.
    _check_positions([*first, *[slice(None)] * max(ndim - given, len(gaps)), *last])
    return (*first, *(slice(None),) * (ndim - given), *last)


def sliced_shape(slicing: Any, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of ``a[slicing]`` for an array of a shape.

    Raises
    ------
    IndexError
        If an int is outside of its axis.
    PlanError
        As `unpack_slicing`.

    Examples
    --------
    >>> sliced_shape((slice(None, None, 2), -1), (5, 6, 7))
    (3, 7)
    """
    seen = _seen(slicing, shape)
    return tuple([len(part) for part in seen if not isinstance(part, int)])


def sliced_unit(slicing: Any, shape: Sequence[int], unit: Sequence[int]) -> tuple[int, ...]:
    """Return the smallest box that a part of an array may be written in, for each of its axes.

    It is the array's own unit where the part begins with one. Where it begins inside of one, no
    multiple of one number avoids the units of the array, but one writer for the whole axis does.

    Examples
    --------
    >>> sliced_unit((slice(8, 40), slice(3, 20), 0), (64, 64, 64), (8, 8, 8))
    (8, 17)
    """
    units: list[int] = []
    for part, step in zip(_seen(slicing, shape), unit, strict=True):
        if not isinstance(part, int):
            dense = isinstance(part, range) and part.step == 1 and part.start % step == 0
            units.append(step if step == 1 or dense else len(part))
    return tuple(units)


def sliced_pieces(
    slicing: Any, shape: Sequence[int], unit: Sequence[int], origin: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the pieces that a part of an array is read in, and where the first one begins.

    Parameters
    ----------
    unit, origin : sequence of int
        The pieces of the array, and the voxels by which the first one begins before it.

    Returns
    -------
    unit, origin : tuple of int
        The same for the part; ones and zeros where its pieces are not all alike.

    Examples
    --------
    >>> sliced_pieces((slice(12, 40), 0), (64, 64), (8, 8), (0, 0))
    ((8,), (4,))
    """
    seen = _seen(slicing, shape)
    parts = [part for part in seen if not isinstance(part, int)]
    along = [
        (length, (part.start + first) % length)
        for part, length, first in zip(seen, unit, origin, strict=True)
        if isinstance(part, range) and part.step == 1
    ]
    if len(along) < len(parts):
        return (1,) * len(parts), (0,) * len(parts)
    return tuple([length for length, _ in along]), tuple([first for _, first in along])


def sliced_slicing(second: Any, first: Any, shape: Sequence[int]) -> Slicing:
    """Return the one slicing that does the same as two, one after the other.

    ``a[sliced_slicing(second, first, a.shape)]`` equals ``a[first][second]``.

    Parameters
    ----------
    second : slicing
        Applies to what `first` leaves.
    first : slicing
        Applies to the array.
    shape : sequence of int
        Shape of the array.

    Returns
    -------
    tuple of int, slice or ndarray
        One index for each axis of the array, simplified (see `simplify`).

    Raises
    ------
    IndexError
        If an int is outside of what it applies to.
    PlanError
        If there is no such slicing, as with two index arrays.

    Examples
    --------
    >>> sliced_slicing(slice(2, None), slice(10, 20, 3), (50,))
    (slice(16, 20, 3),)
    """
    outer = _seen(first, shape)
    left = [part for part in outer if not isinstance(part, int)]
    indices = unpack_slicing(second, len(left))
    rest = iter([_within(part, index) for part, index in zip(left, indices, strict=True)])
    composed = [part if isinstance(part, int) else next(rest) for part in outer]
    return _as_slicing(composed, shape)


def simplify(slicing: Any, shape: Sequence[int]) -> Slicing:
    """Return the same slicing with None for the start, the end and a step of one.

    Examples
    --------
    >>> simplify((slice(0, 28, 1), slice(0, 6), -1), (50, 6, 7))
    (slice(None, 28, None), slice(None, None, None), 6)
    """
    return _as_slicing(_seen(slicing, shape), shape)


def slicing_within(slicing: Any, shape: Sequence[int], region: Sequence[slice]) -> Slicing:
    """Return a slicing of an array as the slicing of a box of it.

    Parameters
    ----------
    slicing : slicing
        Of an array of shape `shape`.
    shape : sequence of int
    region : sequence of slice
        The box: start and stop per axis.

    Raises
    ------
    IndexError
        If it needs voxels outside of the box.

    Examples
    --------
    >>> slicing_within(slice(12, 18), (50,), (slice(10, 20),))
    (slice(2, 8, None),)
    """
    moved: list[int | range | Positions] = []
    for axis, (part, box) in enumerate(zip(_seen(slicing, shape), region, strict=True)):
        ends = [part] if isinstance(part, int) else [min(part), max(part)] if len(part) else []
        if any(not box.start <= end < box.stop for end in ends):
            raise IndexError(
                f"{ends[0]}:{ends[-1] + 1} on axis {axis} is outside of the "
                f"{box.start}:{box.stop} that is at hand"
            )
        if isinstance(part, range):
            part = range(part.start - box.start, part.stop - box.start, part.step)
            moved.append(part if ends else range(0))
        else:
            moved.append(part - box.start)
    return _as_slicing(moved, [box.stop - box.start for box in region])


def slicing_text(slicing: Any) -> str:
    """Return a slicing as text.

    Examples
    --------
    >>> slicing_text((slice(None), 3, slice(0, 38), slice(None, None, -1)))
    '(:,3,0:38,::-1)'
    """
    parts = slicing if isinstance(slicing, tuple) else (slicing,)
    return f"({','.join([_index_text(part) for part in parts])})"


def _index_text(part: Any) -> str:
    if isinstance(part, slice):
        ends = ["" if end is None else str(end) for end in (part.start, part.stop)]
        return ":".join(ends if part.step is None else [*ends, str(part.step)])
    if part is Ellipsis:
        return "..."
    return str(part) if np.ndim(part) == 0 else f"[{np.size(part)} positions]"


def _as_index(part: Any) -> Index:
    if isinstance(part, slice):
        return part
    if part is None or isinstance(part, bool | np.bool_):
        raise PlanError(f"a slicing holds {part!r}; use ints, slices and '...'")
    if not isinstance(part, list) and not (isinstance(part, np.ndarray) and part.ndim):
        try:
            return operator.index(part)
        except TypeError:
            raise PlanError(
                f"a slicing holds {part!r} ({type(part).__name__}); use ints, slices and '...'"
            ) from None
    positions = np.asarray(part, dtype=None if len(part) else np.intp)
    if positions.ndim != 1 or positions.dtype.kind not in "iub":
        raise PlanError(
            f"a slicing holds an index array of shape {positions.shape} and type "
            f"{positions.dtype}; use positions along one axis, or a mask of one axis"
        )
    return positions


def _check_positions(indices: Sequence[Any]) -> None:
    """Refuse what NumPy would broadcast, or move to another axis, when slicings are composed."""
    arrays = [n for n, index in enumerate(indices) if isinstance(index, np.ndarray)]
    if len(arrays) > 1:
        raise PlanError(f"a slicing holds {len(arrays)} index arrays; use one at a time")
    fancy = [n for n, index in enumerate(indices) if not isinstance(index, slice | range)]
    if arrays and fancy[-1] - fancy[0] >= len(fancy):
        raise PlanError(
            "a slicing holds an index array and an int that is not next to it, which NumPy moves "
            "to the first axis; slice in two steps"
        )


def _seen(slicing: Any, shape: Sequence[int]) -> list[int | range | Positions]:
    """Return the positions along each axis that a slicing shows."""
    indices = unpack_slicing(slicing, len(shape))
    return [_within(range(n), index) for n, index in zip(shape, indices, strict=True)]


def _within(part: range | Positions, index: Index) -> int | range | Positions:
    """Return which positions remain of those that are seen along an axis."""
    if isinstance(part, range) and isinstance(index, np.ndarray):
        part = np.arange(part.start, part.stop, part.step)
    try:
        picked = part[index]
    except IndexError:
        what = f"index {index}" if isinstance(index, int) else "an index array"
        raise IndexError(f"{what} is out of bounds for an axis of {len(part)} voxels") from None
    return picked if isinstance(picked, range | np.ndarray) else int(picked)


def _as_slicing(seen: Sequence[int | range | Positions], shape: Sequence[int]) -> Slicing:
    _check_positions(seen)
    return tuple(
        [
            _as_slice(part, length) if isinstance(part, range) else part
            for part, length in zip(seen, shape, strict=True)
        ]
    )


def _as_slice(seen: range, length: int) -> slice:
    if not seen:
        return slice(None, 0)
    step = seen.step if len(seen) > 1 else 1
    first, last = seen[0], seen[-1]
    if step > 0:
        start = first or None
        stop = None if last + step >= length else last + 1
    else:
        start = None if first == length - 1 else first
        stop = None if last + step < 0 else last - 1
    return slice(start, stop, None if step == 1 else step)
