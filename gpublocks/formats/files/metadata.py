"""What sources tell of their voxels beside shape and type, carried to parts and levels. Pure.

It is a mapping, see `gpublocks.formats.headed.placing.placed`: ``axes``, ``spacing``, ``units`` for
each axis, and here ``translation``, where along each axis the middle of the first voxel is.
"""

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from typing import Any

from gpublocks.errors import PlanError

__all__ = ["arrangement", "axis_names", "checked", "coarser", "of_part", "permuted"]

Metadata = Mapping[str, Any]

_PER_AXIS = ("axes", "spacing", "units", "translation")


def axis_names(ndim: int, order: str = "C") -> tuple[str, ...]:
    """Return the likely names of the axes of an image: the last ones of ``tczyx``, slowest first.

    Examples
    --------
    >>> axis_names(4), axis_names(3, "F")
    (('c', 'z', 'y', 'x'), ('x', 'y', 'z'))
    """
    names = [f"dim_{n}" for n in range(ndim - 5)] + list("tczyx"[-ndim:])
    return tuple(reversed(names) if order == "F" else names)


def checked(metadata: Metadata, ndim: int) -> dict[str, Any]:
    """Return what is told of each axis, as tuples with one value for each.

    Parameters
    ----------
    metadata : mapping
        Values that are not known may be left out, or be None.
    ndim : int
        Number of axes.

    Raises
    ------
    PlanError
        If there are more or fewer values than axes, or they make no sense.
    """
    found: dict[str, Any] = {}
    for key in _PER_AXIS:
        values = metadata.get(key)
        if values is None or len(values) == 0:
            continue
        if len(values) != ndim:
            raise PlanError(
                f"{key} {values!r} has {len(values)} values, but there are {ndim} axes; give one "
                "for each"
            )
        found[key] = tuple([_value(key, value) for value in values])
    names = found.get("axes", ())
    if len(set(names)) < len(names) or not all(names):
        raise PlanError(f"axes are {names}; give each a name of its own")
    return found


def _value(key: str, value: Any) -> Any:
    if value is None:
        return None
    if key in ("axes", "units"):
        if not isinstance(value, str):
            raise PlanError(f"{key} hold {value!r}; use names")
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = nan
    if not isfinite(number) or (key == "spacing" and number <= 0):
        raise PlanError(f"{key} holds {value!r}; use finite numbers, of spacing above 0")
    return number


def coarser(metadata: Metadata, factors: Sequence[int], *, centred: bool) -> dict[str, Any]:
    """Return what holds for a coarser level of the same array.

    Parameters
    ----------
    metadata : mapping
        With ``spacing`` and ``translation`` of each axis.
    factors : sequence of int
        How many voxels become one, along each axis.
    centred : bool
        Whether a voxel stands for the middle of those that it was made of, not for the first.

    Examples
    --------
    >>> coarser({"spacing": (2.0,), "translation": (0.0,)}, [2], centred=True)
    {'spacing': (4.0,), 'translation': (1.0,)}
    """
    spacing = tuple([s * f for s, f in zip(metadata["spacing"], factors, strict=True)])
    steps = zip(metadata["translation"], metadata["spacing"], factors, strict=True)
    shifted = tuple([t + (f - 1) / 2 * s * centred for t, s, f in steps])
    return {**metadata, "spacing": spacing, "translation": shifted}


def of_part(metadata: Metadata, slicing: Sequence[Any], ndim: int) -> dict[str, Any]:
    """Return what holds for a part of an array; nothing where that is not known.

    Parameters
    ----------
    slicing : sequence of int or slice
        One for each axis, as `gpublocks.slicing.simplify` returns them.
    ndim : int
        Number of axes of the array.

    Examples
    --------
    >>> told = {"axes": ("c", "y", "x"), "spacing": (None, 2.0, 2.0)}
    >>> of_part(told, (0, slice(4, None), slice(None, None, 2)), 3)
    {'axes': ('y', 'x'), 'spacing': (2.0, 4.0)}
    """
    slices = [index for index in slicing if isinstance(index, slice)]
    plain = len(slices) + sum(isinstance(i, int) for i in slicing) == ndim
    if not plain or any((index.step or 1) < 0 for index in slices):
        return {}
    kept = [axis for axis, index in enumerate(slicing) if isinstance(index, slice)]
    told = {key: metadata[key] for key in _PER_AXIS if len(metadata.get(key) or ()) == ndim}
    spacing, translation = told.get("spacing"), told.get("translation")
    if translation is not None:
        told["translation"] = [
            t if t is None or not start else None if s is None else t + start * s
            for t, s, start in zip(
                translation, spacing or [None] * ndim, map(_start, slicing), strict=True
            )
        ]
    if spacing is not None:
        told["spacing"] = [s and s * _step(i) for s, i in zip(spacing, slicing, strict=True)]
    return {key: tuple([values[axis] for axis in kept]) for key, values in told.items()}


def permuted(metadata: Metadata, axes: Sequence[int]) -> dict[str, Any]:
    """Return what holds for an array whose axes are in another order.

    Parameters
    ----------
    axes : sequence of int
        Which axis each one was.

    Examples
    --------
    >>> permuted({"axes": ("y", "x"), "spacing": (2.0, 1.0), "space": "RAS"}, (1, 0))
    {'axes': ('x', 'y'), 'spacing': (1.0, 2.0), 'space': 'RAS'}
    """
    found = dict(metadata)
    for key in (*_PER_AXIS, "directions"):
        values = list(metadata.get(key) or ())
        if values:
            values += [None] * (len(axes) - len(values))
            found[key] = tuple([values[axis] for axis in axes])
    return found


def arrangement(names: Sequence[str], order: str) -> tuple[int, ...] | None:
    """Return in which order axes are as a format has them; None if they are, or it has others.

    Examples
    --------
    >>> arrangement(("x", "y", "z"), "tczyx"), arrangement(("z", "x"), "tczyx")
    ((2, 1, 0), None)
    """
    if any(len(name) != 1 or name not in order for name in names):
        return None
    axes = tuple(sorted(range(len(names)), key=lambda axis: order.index(names[axis])))
    return None if axes == tuple(range(len(names))) else axes


def _start(index: Any) -> int:
    return (index.start or 0) if isinstance(index, slice) else 0


def _step(index: Any) -> int:
    return (index.step or 1) if isinstance(index, slice) else 1
