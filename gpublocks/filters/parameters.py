"""What filters are told: lengths along axes, physical units, borders. Pure."""

from collections.abc import Callable, Sequence
from math import isfinite
from numbers import Integral, Real
from typing import Any, Literal

from gpublocks.errors import ArgumentTypeError, PlanError

__all__ = [
    "Border",
    "Mode",
    "PerAxis",
    "Span",
    "axis_in",
    "border",
    "number",
    "per_axis",
    "reach",
    "sigmas",
    "sizes",
    "spread",
    "together",
    "voxel_sizes",
]

PerAxis = float | tuple[float, ...]
"""One value for all axes, or one for each."""

Mode = Literal["reflect", "mirror", "nearest", "constant"]
"""What lies beyond the border, as `scipy.ndimage` has it."""

Span = tuple[int, int]
"""Voxels of a window before and after the one that it belongs to, along an axis."""

_MODES: dict[str, Mode] = {
    "reflect": "reflect",
    "grid-mirror": "reflect",
    "mirror": "mirror",
    "nearest": "nearest",
    "constant": "constant",
    "grid-constant": "constant",
}
_PERIODIC = ("wrap", "grid-wrap")

Border = tuple[Mode, float]
"""What lies beyond the border: a mode, and the value of ``'constant'``."""


def number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    whole: bool = False,
) -> Any:
    """Return a parameter as a plain int or float.

    Parameters
    ----------
    least, most : float, optional
        Limits, themselves allowed.
    above : float, optional
        A limit that is not allowed itself.
    whole : bool
        Whether it is a number of something.

    Raises
    ------
    ArgumentTypeError
        If it is no number.
    PlanError
        If it is out of range, infinite or NaN.
    """
    if getattr(value, "ndim", 0):
        raise ArgumentTypeError(
            f"{name} is an array of shape {value.shape}; a filter is made first, with its "
            "parameters, and then called: gaussian(sigma=2)(array)"
        )
    kind = Integral if whole else Real
    if isinstance(value, bool) or not isinstance(value, kind):
        what = "a whole number" if whole else "a number"
        raise ArgumentTypeError(f"{name} is {value!r} ({type(value).__name__}); give {what}")
    found = float(value)
    if not isfinite(found):
        raise PlanError(f"{name} is {value!r}; give a finite number")
    if least is not None and found < least:
        raise PlanError(f"{name} is {value!r}; give at least {least}")
    if above is not None and found <= above:
        raise PlanError(f"{name} is {value!r}; give more than {above}")
    if most is not None and found > most:
        raise PlanError(f"{name} is {value!r}; give at most {most}")
    return int(value) if isinstance(value, Integral) else found


def per_axis(name: str, value: Any, check: Callable[[str, Any], Any]) -> Any:
    """Return a parameter that may have a value for each axis, each of them checked."""
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    if not listed and getattr(value, "ndim", 0) != 1:
        return check(name, value)
    values = list(value)
    if not values:
        raise PlanError(f"{name} is empty; give one value for all axes, or one for each")
    return tuple([check(f"{name}[{axis}]", item) for axis, item in enumerate(values)])


def sigmas(value: Any, voxel_size: Any = None, name: str = "sigma") -> Any:
    """Return standard deviations in voxels; those that are given are in units of `voxel_size`."""
    checked = per_axis(name, value, lambda name, item: number(name, item, least=0))
    return checked if voxel_size is None else _scaled(name, checked, voxel_size, lambda x: x)


def sizes(value: Any, voxel_size: Any = None, name: str = "size") -> Any:
    """Return lengths of a window in voxels.

    Those that are given in units of `voxel_size` become the nearest odd number of voxels, so that
    windows lie around their voxel.
    """
    if voxel_size is None:
        return per_axis(name, value, lambda name, item: number(name, item, least=1, whole=True))
    checked = per_axis(name, value, lambda name, item: number(name, item, least=0))
    return _scaled(
        name, checked, voxel_size, lambda length: 2 * max(0, round((length - 1) / 2)) + 1
    )


def voxel_sizes(voxel_size: Any) -> Any:
    """Return the lengths of a voxel, or the one of all axes."""

    def length(name: str, item: Any) -> float:
        found = float(number(name, item))
        if found <= 0:
            raise PlanError(f"{name} is {item!r}; give the length of a voxel, above 0")
        return found

    return per_axis("voxel_size", voxel_size, length)


def _scaled(name: str, value: Any, voxel_size: Any, rounded: Callable[[float], Any]) -> Any:
    """Return lengths in voxels, of lengths in the unit of `voxel_size`."""
    lengths, steps = together(**{name: value, "voxel_size": voxel_sizes(voxel_size)})
    if not isinstance(lengths, tuple):
        return rounded(lengths / steps)
    return tuple([rounded(length / step) for length, step in zip(lengths, steps, strict=True)])


def reach(size: Any) -> Any:
    """Return how far windows of so many voxels look, for all axes or for each."""
    return tuple([length // 2 for length in size]) if isinstance(size, tuple) else size // 2


def spread(name: str, value: Any, axes: int) -> tuple[Any, ...]:
    """Return a value for each of so many axes.

    Raises
    ------
    PlanError
        If there is another number of them.
    """
    values = value if isinstance(value, tuple) else (value,) * axes
    if len(values) != axes:
        raise PlanError(f"{name} has {len(values)} values, but there are {axes} axes")
    return values


def axis_in(axis: int, ndim: int) -> int:
    """Return an axis counted from the first one.

    Raises
    ------
    PlanError
        If there are not so many axes.
    """
    if not -ndim <= axis < ndim:
        raise PlanError(
            f"axis is {axis}, but the array has {ndim} axes; give {-ndim} to {ndim - 1}"
        )
    return axis % ndim


def together(**values: Any) -> list[Any]:
    """Return parameters that have a value for each axis if one of them has.

    Raises
    ------
    PlanError
        If two have values for different numbers of axes.
    """
    listed = {name: value for name, value in values.items() if isinstance(value, tuple)}
    if not listed:
        return list(values.values())
    axes = len(next(iter(listed.values())))
    if any(len(value) != axes for value in listed.values()):
        told = " and ".join(f"{name} for {len(value)}" for name, value in listed.items())
        raise PlanError(f"there are values of {told} axes; give as many, or one value for all axes")
    return [spread(name, value, axes) for name, value in values.items()]


def border(mode: Any, cval: Any = 0.0) -> Border:
    """Return what lies beyond the border of the volume, as `scipy.ndimage` names it.

    Raises
    ------
    ArgumentTypeError, PlanError
        If the mode is unknown, or is that of a periodic volume, whose far side no block has.
    """
    if not isinstance(mode, str):
        raise ArgumentTypeError(f"mode is {mode!r}; give one of {', '.join(_MODES)}")
    if mode in _PERIODIC:
        raise PlanError(
            f"mode={mode!r} takes voxels of the far side of the volume, which no block has; "
            f"use one of {', '.join(_MODES)}"
        )
    if mode not in _MODES:
        raise PlanError(f"mode is {mode!r}; use one of {', '.join(_MODES)}")
    return _MODES[mode], float(number("cval", cval))
