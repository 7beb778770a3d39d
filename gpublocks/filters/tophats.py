"""What is brighter or darker than its surroundings: differences from erosions and openings. Pure.

The type of the result is that of the array, and differences are limited to what it holds.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from gpublocks.arrays import array_namespace
from gpublocks.contracts import DType
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.filters.dtypes import comparable_bytes
from gpublocks.filters.elements import Element, closed, dilated, element, eroded, opened, step_of
from gpublocks.filters.engines.differences import difference
from gpublocks.filters.parameters import Border, border
from gpublocks.filters.steps import Step, maker

__all__ = ["black_tophat", "morphological_gradient", "subtract_background", "white_tophat"]


@maker
def white_tophat(
    size: int | float | tuple[float, ...] = 3,
    *,
    footprint: Any = None,
    mode: str = "reflect",
    cval: float = 0.0,
    voxel_size: float | tuple[float, ...] | None = None,
) -> Step:
    """Make a filter for the array less its opening, as `scipy.ndimage.white_tophat`.

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
    What is brighter than its surroundings and smaller than the window stays, the background goes.
    Differences that a type does not hold, which the border may make, are limited where SciPy has
    them wrap. Of truth values those stay that the opening takes away.

    Examples
    --------
    >>> import numpy as np
    >>> white_tophat(3)(np.array([1, 1, 9, 1, 5, 5, 5, 1]))
    array([0, 0, 8, 0, 0, 0, 0, 0])
    >>> white_tophat(15).halo
    14
    """
    return _step(_white, element(size, footprint, voxel_size), border(mode, cval), both=True)


@maker
def black_tophat(
    size: int | float | tuple[float, ...] = 3,
    *,
    footprint: Any = None,
    mode: str = "reflect",
    cval: float = 0.0,
    voxel_size: float | tuple[float, ...] | None = None,
) -> Step:
    """Make a filter for the closing less the array, as `scipy.ndimage.black_tophat`.

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
    What is darker than its surroundings and smaller than the window stays. Differences are limited
    as by `white_tophat`.

    Examples
    --------
    >>> import numpy as np
    >>> black_tophat(3)(np.array([7, 7, 0, 7, 2, 2, 2, 7]))
    array([0, 0, 7, 0, 0, 0, 0, 0])
    """
    return _step(_black, element(size, footprint, voxel_size), border(mode, cval), both=True)


@maker
def morphological_gradient(
    size: int | float | tuple[float, ...] = 3,
    *,
    footprint: Any = None,
    mode: str = "reflect",
    cval: float = 0.0,
    voxel_size: float | tuple[float, ...] | None = None,
) -> Step:
    """Make a filter for the dilation less the erosion, as `scipy.ndimage.morphological_gradient`.

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
    It is high at edges. Differences are limited to what the type holds.

    Examples
    --------
    >>> import numpy as np
    >>> morphological_gradient(3)(np.array([1, 1, 1, 6, 6, 6]))
    array([0, 0, 5, 5, 0, 0])
    """
    return _step(_gradient, element(size, footprint, voxel_size), border(mode, cval), arrays=3)


@maker
def subtract_background(
    size: int | float | tuple[float, ...] | None = None,
    *,
    method: str = "opening",
    footprint: Any = None,
    mode: str = "reflect",
    cval: float = 0.0,
    voxel_size: float | tuple[float, ...] | None = None,
) -> Step:
    """Make a filter for the array less its background, and never below 0.

    Parameters
    ----------
    size : int or tuple of int
        Voxels of the box within which the background is looked for, for all axes or for each: more
        than the largest object has. With `voxel_size` lengths, of which the nearest odd number is
        taken.
    method : {'opening', 'minimum'}
        The background: the opening, which follows it closely, or the least voxel of the window.
    footprint : array_like of bool, optional
        Which voxels a window of another shape has (a disk, say), instead of `size`.
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
    With ``'opening'`` it is the white top-hat (Serra, 1982) with the negative differences that
    the border may make set to 0; with a disk in each plane that of ClearMap (Renier et al., 2016).

    Examples
    --------
    >>> import numpy as np
    >>> subtract_background(3)(np.array([1, 1, 9, 1, 5, 5, 5, 1]))
    array([0, 0, 8, 0, 0, 0, 0, 0])
    >>> subtract_background(3, method="minimum")(np.array([1, 1, 9, 1, 5, 5, 5, 1]))
    array([0, 0, 8, 0, 4, 0, 4, 0])
    >>> subtract_background(size=35.0, voxel_size=(5.0, 2.0, 2.0)).halo
    (6, 16, 16)
    """
    if size is None and footprint is None:
        raise PlanError("there is no size; give that of a window larger than the objects")
    if not isinstance(method, str):
        raise ArgumentTypeError(f"method is {method!r}; give one of {', '.join(_BACKGROUNDS)}")
    if method not in _BACKGROUNDS:
        raise PlanError(f"method is {method!r}; use one of {', '.join(_BACKGROUNDS)}")
    window = element(3 if size is None else size, footprint, voxel_size)
    operation = partial(_above, background=_BACKGROUNDS[method])
    return _step(operation, window, border(mode, cval), both=method == "opening")


_BACKGROUNDS: dict[str, Callable[..., Any]] = {"opening": opened, "minimum": eroded}


def _step(
    operation: Callable[..., Any],
    window: Element,
    border: Border,
    *,
    both: bool = False,
    arrays: int = 2,
) -> Step:
    return step_of(operation, window, border, partial(_memory, arrays=arrays), both=both)


def _memory(dtype: DType, *, arrays: int) -> float:
    """Return the bytes of so many arrays, and those that limit differences with a sign."""
    return (arrays + (dtype.kind == "i")) * dtype.itemsize + comparable_bytes(dtype)


def _white(array: Any, window: Element, border: Border) -> Any:
    background = opened(array, window, border)
    return difference(array, background, background)


def _black(array: Any, window: Element, border: Border) -> Any:
    filled = closed(array, window, border)
    return difference(filled, array, filled)


def _gradient(array: Any, window: Element, border: Border) -> Any:
    high = dilated(array, window, border)
    return difference(high, eroded(array, window, border), high)


def _above(array: Any, window: Element, border: Border, *, background: Callable[..., Any]) -> Any:
    low = background(array, window, border)
    result = difference(array, low, low)
    if array.dtype.kind in "if":
        array_namespace(array).maximum(result, 0, out=result)
    return result
