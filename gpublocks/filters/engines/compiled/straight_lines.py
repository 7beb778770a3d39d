"""Straight lines through single voxels, in one pass over memory. Pure."""

from typing import Any

import numpy as np

from gpublocks.filters.engines.compiled.compiling import compiled

__all__ = ["straight_line"]


@compiled
def straight_line(
    source: Any,
    target: Any,
    low: float,
    high: float,
    origin: float,
    unit: float,
    factor: float,
    offset: float,
    whole: bool,
    least: float,
    most: float,
) -> None:
    """Set each voxel to ``(limited - origin) / unit * factor + offset``.

    Parameters
    ----------
    source, target : ndarray, shape (n,), contiguous, of integers, float32 or float64
    low, high : float
        Limits of the values before, from `least` to `most` those of integers after.
    whole : bool
        Whether the target is of integers.
    """
    if whole:
        for i in range(source.size):
            value: Any = np.float64(source[i])
            value = low if value < low else high if value > high else value
            value = np.rint((value - origin) / unit * factor + offset)
            value = 0.0 if np.isnan(value) else min(max(value, least), most)
            target[i] = value
    else:
        for i in range(source.size):
            value = np.float64(source[i])
            value = low if value < low else high if value > high else value
            target[i] = (value - origin) / unit * factor + offset
