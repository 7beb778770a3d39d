"""Where voxels lie in the world, as image formats tell it: the metadata of sources. Pure."""

from collections.abc import Mapping, Sequence
from math import hypot, isfinite
from typing import Any

__all__ = ["axis_labels", "axis_spacings", "in_space", "placed", "unit_name"]

Vector = tuple[float, ...]

_SIGNS = {"RAS": (1, 1, 1), "LPS": (-1, -1, 1), "LAS": (-1, 1, 1)}
"""Directions of the three axes of anatomical spaces, compared with right, anterior, superior."""

_UNITS = {
    "micron": "um",
    "microns": "um",
    "micrometer": "um",
    "\N{MICRO SIGN}m": "um",
    "\N{GREEK SMALL LETTER MU}m": "um",
    "millimeter": "mm",
    "meter": "m",
    "sec": "s",
    "msec": "ms",
    "usec": "us",
}


def unit_name(unit: str) -> str | None:
    """Return the symbol of a unit, such as 'um' for 'micron'; None where it is not known."""
    return _UNITS.get(unit.lower(), unit) if unit not in ("", "?", "unknown", "none") else None


def placed(
    *,
    axes: Sequence[str],
    spacing: Sequence[float | None] | None = None,
    units: Sequence[str | None] = (),
    space: str | None = None,
    directions: Sequence[Vector | None] = (),
    origin: Sequence[float] = (),
    scaling: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Return the metadata of a source; what is not known is not in it.

    Parameters
    ----------
    axes : sequence of str
        Name of each axis: ``'x'``, ``'y'``, ``'z'``, ``'t'``, ``'c'``, or as the file has it.
    spacing : sequence of float or None, optional
        Distance of voxels along each axis; by default the length of its direction.
    units : sequence of str or None
        Unit of the spacing of each axis.
    space : str, optional
        What the axes of the world are: ``'RAS'`` if they point to the right, to the front and up
        of a patient, ``'LPS'``, or as the file has it.
    directions : sequence of (tuple of float, or None)
        For each axis the step in the world from a voxel to the next one.
    origin : sequence of float
        Where in the world the first voxel is.
    scaling : (float, float), optional
        Slope and intercept: what the file says that ``slope * voxel + intercept`` is.
    """
    if spacing is None:
        spacing = [hypot(*step) if step else None for step in directions]
    found = {
        "axes": tuple(axes),
        "spacing": _known(spacing),
        "units": _known(units),
        "space": space,
        "directions": _known(directions),
        "origin": tuple(origin),
        "scaling": scaling if scaling != (1, 0) else None,
    }
    return {key: value for key, value in found.items() if value}


def axis_labels(spatial: Sequence[bool]) -> list[str]:
    """Return names for axes that have none: x, y, z and t in turn, and c for one not of space.

    Parameters
    ----------
    spatial : sequence of bool
        Of each axis, whether there are voxels along it, not parts of one.

    Examples
    --------
    >>> axis_labels([False, True, True])
    ['c', 'x', 'y']
    """
    names = {True: iter("xyzt"), False: iter("c")}
    return [next(names[along], f"dim_{axis}") for axis, along in enumerate(spatial)]


def axis_spacings(metadata: Mapping[str, Any], ndim: int) -> list[float | None]:
    """Return the spacing of each of so many axes; None where it is not known."""
    return _filled(metadata.get("spacing", ()), ndim)


def in_space(
    metadata: Mapping[str, Any], ndim: int, space: str
) -> tuple[list[Vector | None], Vector] | None:
    """Return directions of so many axes, and the origin, in a space; None if they are not known.

    Parameters
    ----------
    space : {'RAS', 'LPS', 'LAS'}
        If metadata do not say which one they are of, they are taken to be of this one.
    """
    directions, origin = metadata.get("directions", ())[:ndim], metadata.get("origin", ())
    length = next((len(step) for step in directions if step), 0)
    if not length or len(origin) not in (0, length):
        return None
    signs: Sequence[int] = (1,) * length
    if metadata.get("space", space) in _SIGNS and length == 3:
        pairs = zip(_SIGNS[space], _SIGNS[metadata.get("space", space)], strict=True)
        signs = [one * other for one, other in pairs]
    turned = [step and _times(step, signs) for step in directions]
    return _filled(turned, ndim), _times(origin, signs) if origin else ()


def _times(vector: Sequence[float], signs: Sequence[int]) -> Vector:
    # Adding 0.0 makes zeros of negative ones.
    return tuple([x * sign + 0.0 for x, sign in zip(vector, signs, strict=True)])


def _filled(values: Sequence[Any], ndim: int) -> list[Any]:
    """Return one value for each axis: None for those beyond, or where a number is not finite."""
    known = [None if isinstance(v, float) and not isfinite(v) else v for v in values[:ndim]]
    return known + [None] * (ndim - len(known))


def _known(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(values) if any(value is not None for value in values) else ()
