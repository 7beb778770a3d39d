"""Masks: binary morphology, and where an array is highest. The type of the result is bool. Pure."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from gpublocks.arrays import array_namespace
from gpublocks.contracts import DType
from gpublocks.errors import ArgumentTypeError
from gpublocks.filters.dtypes import Always, comparable_bytes
from gpublocks.filters.elements import Element, cross, dilated, element, eroded, extreme, of_shape
from gpublocks.filters.parameters import Border, border, number
from gpublocks.filters.pointwise import compared
from gpublocks.filters.steps import Step, maker

__all__ = [
    "binary_closing",
    "binary_dilation",
    "binary_erosion",
    "binary_opening",
    "local_maxima",
]


@maker
def binary_erosion(
    structure: Any = None,
    *,
    iterations: int = 1,
    border_value: bool = False,
) -> Step:
    """Make an erosion of masks, as `scipy.ndimage.binary_erosion`.

    Parameters
    ----------
    structure : array_like of bool, optional
        Which voxels a window has, around that at ``shape // 2``. By default a voxel and its
        neighbours along each axis.
    iterations : int
        How often it is done, at least once.
    border_value : bool
        What lies beyond the border of the volume.

    Returns
    -------
    Filter

    Raises
    ------
    ArgumentTypeError, PlanError

    Notes
    -----
    Whatever is not 0 is True; the result is of bool.

    Examples
    --------
    >>> import numpy as np
    >>> binary_erosion()(np.array([0, 1, 1, 1, 0])).astype(int)
    array([0, 0, 1, 0, 0])
    >>> binary_erosion(iterations=3).halo
    3
    """
    return _step(_erosion, structure, iterations, border_value, both=False)


@maker
def binary_dilation(
    structure: Any = None,
    *,
    iterations: int = 1,
    border_value: bool = False,
) -> Step:
    """Make a dilation of masks, as `scipy.ndimage.binary_dilation`.

    Parameters
    ----------
    structure : array_like of bool, optional
        Which voxels a window has, around that at ``shape // 2``. By default a voxel and its
        neighbours along each axis.
    iterations : int
        How often it is done, at least once.
    border_value : bool
        What lies beyond the border of the volume.

    Returns
    -------
    Filter

    Raises
    ------
    ArgumentTypeError, PlanError

    Notes
    -----
    Whatever is not 0 is True; the result is of bool.

    Examples
    --------
    >>> import numpy as np
    >>> binary_dilation()(np.array([0, 0, 1, 0, 0])).astype(int)
    array([0, 1, 1, 1, 0])
    """
    return _step(_dilation, structure, iterations, border_value, both=False)


@maker
def binary_opening(
    structure: Any = None,
    *,
    iterations: int = 1,
    border_value: bool = False,
) -> Step:
    """Make an opening of masks: erosions, then dilations, as `scipy.ndimage.binary_opening`.

    Parameters
    ----------
    structure : array_like of bool, optional
        Which voxels a window has, around that at ``shape // 2``. By default a voxel and its
        neighbours along each axis.
    iterations : int
        How often it is done, at least once: so many erosions, and then so many dilations.
    border_value : bool
        What lies beyond the border of the volume.

    Returns
    -------
    Filter

    Raises
    ------
    ArgumentTypeError, PlanError

    Notes
    -----
    Whatever is not 0 is True; the result is of bool.

    Examples
    --------
    >>> import numpy as np
    >>> binary_opening()(np.array([0, 1, 1, 1, 0, 1, 0])).astype(int)
    array([0, 1, 1, 1, 0, 0, 0])
    """
    return _step(_opening, structure, iterations, border_value, both=True)


@maker
def binary_closing(
    structure: Any = None,
    *,
    iterations: int = 1,
    border_value: bool = False,
) -> Step:
    """Make a closing of masks: dilations, then erosions, as `scipy.ndimage.binary_closing`.

    Parameters
    ----------
    structure : array_like of bool, optional
        Which voxels a window has, around that at ``shape // 2``. By default a voxel and its
        neighbours along each axis.
    iterations : int
        How often it is done, at least once: so many dilations, and then so many erosions.
    border_value : bool
        What lies beyond the border of the volume.

    Returns
    -------
    Filter

    Raises
    ------
    ArgumentTypeError, PlanError

    Notes
    -----
    Whatever is not 0 is True; the result is of bool. What touches the border of the
    volume is eroded from there unless `border_value` is True, as in SciPy.

    Examples
    --------
    >>> import numpy as np
    >>> binary_closing()(np.array([0, 1, 1, 0, 1, 1, 0])).astype(int)
    array([0, 1, 1, 1, 1, 1, 0])
    """
    return _step(_closing, structure, iterations, border_value, both=True)


@maker
def local_maxima(
    size: int | float | tuple[float, ...] = 3,
    *,
    threshold: float | None = None,
    footprint: Any = None,
    mode: str = "reflect",
    cval: float = 0.0,
    voxel_size: float | tuple[float, ...] | None = None,
) -> Step:
    """Make a filter for the voxels that are as high as any in the window around them.

    Parameters
    ----------
    size : int or tuple of int
        Voxels of the box that is the window, for all axes or for each; it begins ``size // 2``
        before its own voxel. With `voxel_size` lengths, of which the nearest odd number is taken.
    threshold : float, optional
        What maxima must be above.
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
    All voxels of a plateau are maxima, also those of an array that is the same everywhere: give a
    threshold, or smooth before. Windows that have a NaN have no maximum.

    Examples
    --------
    >>> import numpy as np
    >>> local_maxima(3, threshold=2)(np.array([0, 5, 1, 1, 2, 2, 9])).astype(int)
    array([0, 1, 0, 0, 0, 0, 1])
    """
    window = element(size, footprint, voxel_size)
    if threshold is not None:
        threshold = number("threshold", threshold)
    operation = partial(_maxima, window=window, border=border(mode, cval), threshold=threshold)
    return Step(operation, halo=window.halo(), dtype=Always(_BOOL), memory=_maxima_bytes)


_BOOL = np.dtype(np.bool_)


def _maxima(
    array: Any, dtype: DType, *, window: Element, border: Border, threshold: float | None
) -> Any:
    xp = array_namespace(array)
    result = xp.greater_equal(array, extreme(array, window, border, most=True))
    if threshold is not None:
        result &= compared(array, dtype, value=threshold)
    return result


def _maxima_bytes(dtype: DType) -> float:
    return 2 * dtype.itemsize + comparable_bytes(dtype) + 1


def _step(
    operation: Callable[..., Any], structure: Any, iterations: Any, border_value: Any, both: bool
) -> Step:
    window = None if structure is None else of_shape("structure", structure)
    times = number("iterations", iterations, least=1, whole=True)
    if border_value not in (False, True):
        raise ArgumentTypeError(f"border_value is {border_value!r}; give True or False")
    if window is None:
        halo: Any = times * (1 + both)
    else:
        halo = window.halo(both=both, times=times)
    return Step(
        partial(
            _apply,
            operation=operation,
            window=window,
            border=border("constant", float(border_value)),
            times=times,
        ),
        halo=halo,
        dtype=Always(_BOOL),
        memory=Always(3.0),
    )


def _apply(
    array: Any,
    dtype: DType,
    *,
    operation: Callable[..., Any],
    window: Element | None,
    border: Border,
    times: int,
) -> Any:
    # The window of no given shape has as many axes as the array.
    chosen = cross(array.ndim) if window is None else window
    return operation(array.astype(_BOOL, copy=False), chosen, border, times)


def _erosion(mask: Any, window: Element, border: Border, times: int, reuse: bool = False) -> Any:
    for _ in range(times):
        mask = eroded(mask, window, border, reuse=reuse)
        reuse = True
    return mask


def _dilation(mask: Any, window: Element, border: Border, times: int, reuse: bool = False) -> Any:
    for _ in range(times):
        mask = dilated(mask, window, border, reuse=reuse)
        reuse = True
    return mask


def _opening(mask: Any, window: Element, border: Border, times: int) -> Any:
    return _dilation(_erosion(mask, window, border, times), window, border, times, reuse=True)


def _closing(mask: Any, window: Element, border: Border, times: int) -> Any:
    return _erosion(_dilation(mask, window, border, times), window, border, times, reuse=True)
