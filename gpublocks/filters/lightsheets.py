"""Corrections of what light sheets do to images. Pure."""

from functools import partial
from typing import Any

import numpy as np

from gpublocks.arrays import array_namespace
from gpublocks.contracts import DType
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.filters.dtypes import converted, same, wide
from gpublocks.filters.engines.footprints import box
from gpublocks.filters.engines.ranking import ranked, ranking_bytes
from gpublocks.filters.parameters import Border, border, number, sizes, together
from gpublocks.filters.ranks import rank_of_percentile
from gpublocks.filters.steps import Step, maker

__all__ = ["lightsheet"]


@maker
def lightsheet(
    percentile: float = 25.0,
    *,
    length: float,
    axis: int,
    background: tuple[float, ...],
    factor: float = 2.0,
    mode: str = "reflect",
    cval: float = 0.0,
    voxel_size: float | tuple[float, ...] | None = None,
) -> Step:
    """Make a correction of the stripes and the haze that a light sheet leaves along its way.

    Parameters
    ----------
    percentile : float
        From 0 to 100: low, so that bright structures do not count.
    length : int or float
        Voxels of a line along the light sheet (150 or so), or its length in the unit of
        `voxel_size`.
    axis : int
        The axis that the light goes along; negative ones count from the last.
    background : tuple of int or float
        Voxels of the window of the background for each axis, such as ``(1, 200, 200)`` for planes
        that are lit one after the other; or its lengths in the unit of `voxel_size`.
    factor : float
        At most so many times the percentile in the window of the background is taken away.
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`.
    cval : float
        Value beyond the border where `mode` is ``'constant'``.
    voxel_size : float or tuple of float, optional
        Size of a voxel, in the unit of `length` and `background` (micrometres, say).

    Returns
    -------
    Filter
        Its results have the type of the array.

    Raises
    ------
    ArgumentTypeError, PlanError

    Notes
    -----
    ``voxel - min(l, factor * b)``, and 0 where this is negative; `l` and `b` are the percentiles
    along the light sheet and of the background. The latter keeps structures along the light sheet,
    such as vessels, from being taken for stripes. It is the correction of ClearMap (C. Kirst et
    al., Mapping the fine-scale organization and plasticity of the brain vasculature, Cell 180,
    2020), which finds the background at some voxels only, and between them by interpolation; here
    it is found at all of them, so that it does not depend on where a block begins.

    Examples
    --------
    >>> corrected = lightsheet(length=151, axis=2, background=(1, 201, 201))
    >>> corrected.halo
    (0, 100, 100)
    >>> import numpy as np
    >>> plane = np.array([[9, 9, 9, 30, 9], [4, 4, 4, 4, 4], [1, 1, 2, 1, 1]])
    >>> lightsheet(50, length=5, axis=1, background=(3, 5))(plane)
    array([[ 0,  0,  0, 21,  0],
           [ 0,  0,  0,  0,  0],
           [ 0,  0,  1,  0,  0]])
    """
    wanted = float(number("percentile", percentile, least=0, most=100))
    window = sizes(background, voxel_size, "background")
    if not isinstance(window, tuple):
        raise ArgumentTypeError(f"background is {background!r}; give a length for each axis")
    axis = number("axis", axis, whole=True)
    if not -len(window) <= axis < len(window):
        raise PlanError(f"axis is {axis}, but background has values for {len(window)} axes")
    lengths, window = together(length=sizes(length, voxel_size, "length"), background=window)
    line = [1] * len(window)
    line[axis] = lengths[axis]
    factor = float(number("factor", factor, least=0))
    beyond = border(mode, cval)
    return Step(
        partial(
            _lightsheet,
            line=tuple(line),
            window=window,
            percentile=wanted,
            factor=factor,
            border=beyond,
        ),
        halo=tuple(max(n, m) // 2 for n, m in zip(line, window, strict=True)),
        dtype=same,
        memory=_memory,
    )


def _memory(dtype: DType) -> float:
    return dtype.itemsize + ranking_bytes(dtype)


def _lightsheet(
    array: Any,
    dtype: DType,
    *,
    line: tuple[int, ...],
    window: tuple[int, ...],
    percentile: float,
    factor: float,
    border: Border,
) -> Any:
    xp = array_namespace(array)
    between = wide(dtype)
    along, around = (
        ranked(array, footprint, rank_of_percentile(percentile, len(footprint)), border)
        for footprint in (box(line), box(window))
    )
    # Plane by plane, in place: numbers that are not whole take more memory than the voxels.
    for z in range(len(array)):
        plane = slice(z, z + 1)
        with np.errstate(over="ignore", invalid="ignore"):
            most = around[plane].astype(between) * factor
            taken = xp.minimum(along[plane].astype(between), most)
            left = xp.maximum(array[plane].astype(between) - taken, 0)
        along[plane] = converted(left, dtype)
    return along
