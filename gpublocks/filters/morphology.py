"""Grey morphology: minima and maxima of windows, and what is made of them. Pure.

The type of the result is that of the array.
"""

from collections.abc import Callable
from typing import Any

from gpublocks.contracts import DType
from gpublocks.filters.dtypes import comparable_bytes
from gpublocks.filters.elements import (
    Element,
    closed,
    dilated,
    element,
    eroded,
    extreme,
    opened,
    step_of,
)
from gpublocks.filters.parameters import Border, border
from gpublocks.filters.steps import Step, maker

__all__ = [
    "grey_closing",
    "grey_dilation",
    "grey_erosion",
    "grey_opening",
    "maximum",
    "minimum",
]


@maker
def minimum(
    size: int | float | tuple[float, ...] = 3,
    *,
    footprint: Any = None,
    mode: str = "reflect",
    cval: float = 0.0,
    voxel_size: float | tuple[float, ...] | None = None,
) -> Step:
    """Make a filter for the least voxel of a window, as `scipy.ndimage.minimum_filter`.

    Parameters
    ----------
    size : int or tuple of int
        Voxels of the box that is the window, for all axes or for each; it begins ``size // 2``
        before its own voxel. With `voxel_size` lengths, of which the nearest odd number is taken.
    footprint : array_like of bool, optional
        Which voxels a window of another shape has, around that at ``shape // 2``.
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    voxel_size : float or tuple of float, optional
        Size of a voxel, in the unit of `size` (micrometres, say).

    Returns
    -------
    Filter

    Raises
    ------
    ArgumentTypeError, PlanError

    Notes
    -----
    Boxes are done axis by axis, by windows of 4, 16, 64, ... voxels; of other shapes each line is
    the minimum of two windows whose length is a power of two (Van Droogenbroeck and Talbot, 1996).
    A window that has a NaN gives NaN, where that of SciPy depends on the order of voxels.

    Examples
    --------
    >>> import numpy as np
    >>> minimum(3)(np.array([5, 3, 4, 8, 9]))
    array([3, 3, 3, 4, 8])
    >>> minimum((1, 5, 5)).halo
    (0, 2, 2)
    """
    return _step(_minimum, element(size, footprint, voxel_size), border(mode, cval))


@maker
def maximum(
    size: int | float | tuple[float, ...] = 3,
    *,
    footprint: Any = None,
    mode: str = "reflect",
    cval: float = 0.0,
    voxel_size: float | tuple[float, ...] | None = None,
) -> Step:
    """Make a filter for the greatest voxel of a window, as `scipy.ndimage.maximum_filter`.

    Parameters
    ----------
    size : int or tuple of int
        Voxels of the box that is the window, for all axes or for each; it begins ``size // 2``
        before its own voxel. With `voxel_size` lengths, of which the nearest odd number is taken.
    footprint : array_like of bool, optional
        Which voxels a window of another shape has, around that at ``shape // 2``.
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    voxel_size : float or tuple of float, optional
        Size of a voxel, in the unit of `size` (micrometres, say).

    Returns
    -------
    Filter

    Raises
    ------
    ArgumentTypeError, PlanError

    Notes
    -----
    Boxes and other shapes are done as by `minimum`. A window that has a NaN gives NaN.

    Examples
    --------
    >>> import numpy as np
    >>> maximum(footprint=[1, 0, 1])(np.array([5, 3, 4, 8, 9]))
    array([5, 5, 8, 9, 9])
    """
    return _step(_maximum, element(size, footprint, voxel_size), border(mode, cval))


@maker
def grey_erosion(
    size: int | float | tuple[float, ...] = 3,
    *,
    footprint: Any = None,
    mode: str = "reflect",
    cval: float = 0.0,
    voxel_size: float | tuple[float, ...] | None = None,
) -> Step:
    """Make an erosion by a flat structuring element, as `scipy.ndimage.grey_erosion`.

    Parameters
    ----------
    size : int or tuple of int
        Voxels of the box that is the window, for all axes or for each; it begins ``size // 2``
        before its own voxel. With `voxel_size` lengths, of which the nearest odd number is taken.
    footprint : array_like of bool, optional
        Which voxels a window of another shape has, around that at ``shape // 2``.
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    voxel_size : float or tuple of float, optional
        Size of a voxel, in the unit of `size` (micrometres, say).

    Returns
    -------
    Filter

    Raises
    ------
    ArgumentTypeError, PlanError

    Notes
    -----
    It is `minimum` under the name that it has in morphology.

    Examples
    --------
    >>> import numpy as np
    >>> grey_erosion(3)(np.array([5, 3, 4, 8, 9]))
    array([3, 3, 3, 4, 8])
    """
    return _step(eroded, element(size, footprint, voxel_size), border(mode, cval))


@maker
def grey_dilation(
    size: int | float | tuple[float, ...] = 3,
    *,
    footprint: Any = None,
    mode: str = "reflect",
    cval: float = 0.0,
    voxel_size: float | tuple[float, ...] | None = None,
) -> Step:
    """Make a dilation by a flat structuring element, as `scipy.ndimage.grey_dilation`.

    Parameters
    ----------
    size : int or tuple of int
        Voxels of the box that is the window, for all axes or for each; it begins ``size // 2``
        before its own voxel. With `voxel_size` lengths, of which the nearest odd number is taken.
    footprint : array_like of bool, optional
        Which voxels a window of another shape has, around that at ``shape // 2``.
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    voxel_size : float or tuple of float, optional
        Size of a voxel, in the unit of `size` (micrometres, say).

    Returns
    -------
    Filter

    Raises
    ------
    ArgumentTypeError, PlanError

    Notes
    -----
    It is `maximum` of the mirrored window, which matters for even sizes, and for shapes that are
    not symmetric.

    Examples
    --------
    >>> import numpy as np
    >>> grey_dilation(2)(np.array([0, 0, 7, 0]))
    array([0, 7, 7, 0])
    """
    return _step(dilated, element(size, footprint, voxel_size), border(mode, cval))


@maker
def grey_opening(
    size: int | float | tuple[float, ...] = 3,
    *,
    footprint: Any = None,
    mode: str = "reflect",
    cval: float = 0.0,
    voxel_size: float | tuple[float, ...] | None = None,
) -> Step:
    """Make an opening: an erosion, then a dilation, as `scipy.ndimage.grey_opening`.

    Parameters
    ----------
    size : int or tuple of int
        Voxels of the box that is the window, for all axes or for each; it begins ``size // 2``
        before its own voxel. With `voxel_size` lengths, of which the nearest odd number is taken.
    footprint : array_like of bool, optional
        Which voxels a window of another shape has, around that at ``shape // 2``.
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    voxel_size : float or tuple of float, optional
        Size of a voxel, in the unit of `size` (micrometres, say).

    Returns
    -------
    Filter

    Raises
    ------
    ArgumentTypeError, PlanError

    Notes
    -----
    What is brighter than its surroundings and smaller than the window goes.

    Examples
    --------
    >>> import numpy as np
    >>> grey_opening(3)(np.array([1, 1, 9, 1, 5, 5, 5, 1]))
    array([1, 1, 1, 1, 5, 5, 5, 1])
    >>> grey_opening(7).halo
    6
    """
    return _step(opened, element(size, footprint, voxel_size), border(mode, cval), both=True)


@maker
def grey_closing(
    size: int | float | tuple[float, ...] = 3,
    *,
    footprint: Any = None,
    mode: str = "reflect",
    cval: float = 0.0,
    voxel_size: float | tuple[float, ...] | None = None,
) -> Step:
    """Make a closing: a dilation, then an erosion, as `scipy.ndimage.grey_closing`.

    Parameters
    ----------
    size : int or tuple of int
        Voxels of the box that is the window, for all axes or for each; it begins ``size // 2``
        before its own voxel. With `voxel_size` lengths, of which the nearest odd number is taken.
    footprint : array_like of bool, optional
        Which voxels a window of another shape has, around that at ``shape // 2``.
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    voxel_size : float or tuple of float, optional
        Size of a voxel, in the unit of `size` (micrometres, say).

    Returns
    -------
    Filter

    Raises
    ------
    ArgumentTypeError, PlanError

    Notes
    -----
    What is darker than its surroundings and smaller than the window goes.

    Examples
    --------
    >>> import numpy as np
    >>> grey_closing(3)(np.array([7, 7, 0, 7, 2, 2, 2, 7]))
    array([7, 7, 7, 7, 2, 2, 2, 7])
    """
    return _step(closed, element(size, footprint, voxel_size), border(mode, cval), both=True)


def _step(
    operation: Callable[..., Any], window: Element, border: Border, *, both: bool = False
) -> Step:
    return step_of(operation, window, border, _memory, both=both)


def _memory(dtype: DType) -> float:
    return 2 * dtype.itemsize + comparable_bytes(dtype)


def _minimum(array: Any, window: Element, border: Border) -> Any:
    return extreme(array, window, border, most=False)


def _maximum(array: Any, window: Element, border: Border) -> Any:
    return extreme(array, window, border, most=True)
