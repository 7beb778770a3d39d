"""Arrays of xarray: what holds their voxels, and what their coordinates tell. Touches neither."""

from typing import Any

import numpy as np

from gpublocks.errors import ArgumentTypeError

__all__ = ["unwrap"]

_REGULAR = 1e-3
"""Part of a step by which coordinates may be beside those of equal steps."""


def unwrap(x: Any) -> tuple[Any, dict[str, Any]]:
    """Return what holds the voxels of an array, and what is told of them.

    Voxels in memory are those of the array itself, those of Dask stay in chunks, and those of a
    file stay there until they are read. Names of dimensions become axes; one whose coordinates are
    numbers that rise in equal steps has spacing and translation, in the unit of their attribute
    ``units``.

    Parameters
    ----------
    x : DataArray, Variable, or Dataset of one array

    Raises
    ------
    ArgumentTypeError
        If it is something else.
    """
    kind = type(x).__name__
    if kind == "Dataset":
        names = [str(name) for name in x.data_vars]
        if len(names) != 1:
            raise ArgumentTypeError(
                f"the Dataset holds the arrays {', '.join(names) or 'none'}; give one of them"
            )
        x = x[names[0]]
    elif not hasattr(x, "dims") or not hasattr(x, "dtype"):
        raise ArgumentTypeError(f"an xarray {kind} is no array; give a DataArray")
    return _voxels(x), _told(x)


class _Unread:
    """Voxels that are in a file until they are indexed.

    Parameters
    ----------
    array : DataArray or Variable
    """

    def __init__(self, array: Any) -> None:
        self.shape, self.dtype = array.shape, array.dtype
        preferred = array.encoding.get("preferred_chunks") or {}
        self.chunks = tuple([preferred.get(name, 1) for name in array.dims])
        self.read_only = True
        self._array = array

    def __getitem__(self, slicing: Any) -> Any:
        return np.asarray(self._array[slicing].values)


def _voxels(x: Any) -> Any:
    variable = getattr(x, "variable", x)
    if x.chunks is not None or getattr(variable, "_in_memory", True):
        return x.data
    return _Unread(x)


def _told(x: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"axes": tuple(map(str, x.dims))}
    coordinates = getattr(x, "coords", {})
    axes = [_of_axis(coordinates[name]) if name in coordinates else None for name in x.dims]
    for place, key in enumerate(("spacing", "translation", "units")):
        values = tuple([None if axis is None else axis[place] for axis in axes])
        if any(value is not None for value in values):
            found[key] = values
    return found


def _of_axis(coordinate: Any) -> tuple[float | None, float, str | None] | None:
    """Return spacing, translation and unit along an axis; None where they do not fit a lattice."""
    values = coordinate.values
    if values.dtype.kind not in "iuf" or values.ndim != 1 or not values.size:
        return None
    values = values.astype(float)
    unit = coordinate.attrs.get("units")
    unit = unit if isinstance(unit, str) and unit else None
    if values.size == 1:
        return None, float(values[0]), unit
    step = (values[-1] - values[0]) / (values.size - 1)
    even = values[0] + step * np.arange(values.size)
    if not step > 0 or not np.abs(values - even).max() <= _REGULAR * step:
        return None
    return float(step), float(values[0]), unit
