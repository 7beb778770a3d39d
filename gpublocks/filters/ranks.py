"""Filters that pick a voxel by its rank among neighbours: medians and percentiles. Pure."""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

from gpublocks.contracts import DType
from gpublocks.errors import PlanError
from gpublocks.filters.dtypes import same
from gpublocks.filters.engines.footprints import Footprint, box, footprint_of, truth_values
from gpublocks.filters.engines.ranking import ranked, ranking_bytes
from gpublocks.filters.parameters import Border, border, number, reach, sizes, spread
from gpublocks.filters.steps import Step, maker

__all__ = ["median", "percentile", "rank", "rank_of_percentile"]

_SIZE = 3


@maker
def median(
    size: int | tuple[int, ...] | None = None,
    *,
    footprint: Any = None,
    mode: str = "reflect",
    cval: float = 0.0,
    voxel_size: float | tuple[float, ...] | None = None,
) -> Step:
    """Make a filter that gives the median of a window, as `scipy.ndimage.median_filter`.

    Parameters
    ----------
    size : int or tuple of int, optional
        Voxels of the window, or its lengths in the unit of `voxel_size`, for all axes or for each;
        3 by default. Even numbers reach one voxel further back than ahead.
    footprint : array of bool, optional
        The voxels of a window of another shape, instead of `size`, around its middle
        (``length // 2``).
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        What lies beyond the border of the volume, as in `scipy.ndimage`.
    cval : float
        Value beyond the border where `mode` is ``'constant'``, rounded and limited to what the
        type of the array holds.
    voxel_size : float or tuple of float, optional
        Size of a voxel, in the unit of `size` (micrometres, say).

    Returns
    -------
    Filter
        Its results have the type of the array. Of an even number of voxels it gives the upper one
        of the two in the middle.

    Raises
    ------
    ArgumentTypeError, PlanError

    Notes
    -----
    The voxels are SciPy's, exactly. NaN counts as larger than everything, -0.0 as less than 0.0.

    Small windows are sorted by networks that whole rows pass through, of which the columns are
    sorted once for all windows that they are in (A. Adams, 2021; K. E. Batcher, 1968). In large
    ones voxels are counted in histograms that slide (T. S. Huang, 1979), in boxes of integers with
    few values in a time that hardly depends on their size (S. Perreault, P. Hebert, 2007).

    Two things differ from SciPy: integers of 64 bits are not rounded, and footprints with holes
    count on one axis too.

    Examples
    --------
    >>> import numpy as np
    >>> median(3)(np.array([1, 9, 2, 3, 8, 4]))
    array([1, 2, 3, 3, 4, 4])
    >>> median(size=(3.0, 5.0, 5.0), voxel_size=(2.0, 1.0, 1.0)).halo
    (0, 2, 2)
    """
    return _step(_middle, size, footprint, mode, cval, voxel_size)


@maker
def percentile(
    percentile: float,
    size: int | tuple[int, ...] | None = None,
    *,
    footprint: Any = None,
    mode: str = "reflect",
    cval: float = 0.0,
    voxel_size: float | tuple[float, ...] | None = None,
) -> Step:
    """Make a filter that gives a percentile of a window, as `scipy.ndimage.percentile_filter`.

    Parameters
    ----------
    percentile : float
        From 0 to 100; negative ones count from 100 downwards. Of n voxels it gives the one that
        ``int(n * percentile / 100)`` others are not above; the greatest for 100.
    size, footprint, mode, cval, voxel_size
        As for `median`.

    Returns
    -------
    Filter
        Its results have the type of the array.

    Raises
    ------
    ArgumentTypeError, PlanError

    Examples
    --------
    >>> import numpy as np
    >>> percentile(25, size=5)(np.array([5, 9, 2, 3, 8, 4]))
    array([5, 3, 3, 3, 3, 4])
    """
    wanted = number("percentile", percentile, least=-100, most=100)
    wanted = wanted + 100.0 if wanted < 0 else float(wanted)
    return _step(partial(rank_of_percentile, wanted), size, footprint, mode, cval, voxel_size)


@maker
def rank(
    rank: int,
    size: int | tuple[int, ...] | None = None,
    *,
    footprint: Any = None,
    mode: str = "reflect",
    cval: float = 0.0,
    voxel_size: float | tuple[float, ...] | None = None,
) -> Step:
    """Make a filter that gives the voxel of a rank in a window, as `scipy.ndimage.rank_filter`.

    Parameters
    ----------
    rank : int
        0 for the least voxel, -1 for the greatest one.
    size, footprint, mode, cval, voxel_size
        As for `median`.

    Returns
    -------
    Filter
        Its results have the type of the array.

    Raises
    ------
    ArgumentTypeError, PlanError
        If there is no voxel of this rank; for one size for all axes this is found out when it is
        called.

    Examples
    --------
    >>> import numpy as np
    >>> rank(-2, size=3)(np.array([1, 9, 2, 3, 8, 4]))
    array([1, 2, 3, 3, 4, 4])
    """
    wanted = number("rank", rank, whole=True)
    return _step(partial(_at_rank, wanted), size, footprint, mode, cval, voxel_size)


def _middle(count: int) -> int:
    return count // 2


def rank_of_percentile(percentile: float, count: int) -> int:
    """Return the rank of a percentile, as `scipy.ndimage` has it."""
    return count - 1 if percentile == 100 else int(float(count) * percentile / 100)


def _at_rank(rank: int, count: int) -> int:
    if not -count <= rank < count:
        raise PlanError(f"rank is {rank}; a window of {count} voxels has {-count} to {count - 1}")
    return rank % count


def _step(
    pick: Callable[[int], int],
    size: Any,
    footprint: Any,
    mode: Any,
    cval: Any,
    voxel_size: Any,
) -> Step:
    """Return what gives the voxel of the rank that is picked for a number of voxels."""
    beyond = border(mode, cval)
    if footprint is None:
        window = sizes(_SIZE if size is None else size, voxel_size)
        halo = reach(window)
        if isinstance(window, tuple):
            pick(prod(window))
    else:
        if size is not None or voxel_size is not None:
            raise PlanError("footprint is given, and so is size or voxel_size; give one of the two")
        window = footprint_of(truth_values(footprint))
        halo = window.halo
        pick(len(window))
    return Step(
        partial(_picked, window=window, pick=pick, border=beyond),
        halo=halo,
        dtype=same,
        memory=ranking_bytes,
    )


def _picked(
    array: Any, dtype: DType, *, window: Any, pick: Callable[[int], int], border: Border
) -> Any:
    if not isinstance(window, Footprint):
        window = box(spread("size", window, array.ndim))
    return ranked(array, window, pick(len(window)), border)
