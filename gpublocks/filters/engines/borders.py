"""Which voxels stand for those beyond the border of an axis. Pure."""

import numpy as np
import numpy.typing as npt

__all__ = ["OUTSIDE", "extended"]

OUTSIDE = -1
"""Index of the constant value beyond the border."""


def extended(size: int, before: int, after: int, mode: str) -> npt.NDArray[np.int64]:
    """Return the indices of the voxels of an axis that is continued beyond both of its ends.

    Parameters
    ----------
    size : int
        Voxels of the axis; at least one.
    before, after : int
        Voxels beyond its ends.
    mode : {'reflect', 'mirror', 'nearest', 'constant'}
        As `scipy.ndimage` has them: ``(d c b a | a b c d | d c b a)``,
        ``(d c b | a b c d | c b a)``, ``(a a a a | a b c d | d d d d)``, and `OUTSIDE`.

    Returns
    -------
    ndarray of int64, shape (before + size + after,)

    Examples
    --------
    >>> extended(3, 2, 2, "reflect").tolist()
    [1, 0, 0, 1, 2, 2, 1]
    >>> extended(3, 2, 2, "mirror").tolist()
    [2, 1, 0, 1, 2, 1, 0]
    """
    indices = np.arange(-before, size + after)
    if mode == "reflect":
        indices %= 2 * size
        return np.minimum(indices, 2 * size - 1 - indices)
    if mode == "mirror":
        period = max(1, 2 * size - 2)
        indices %= period
        return np.minimum(indices, period - indices)
    inside = indices.clip(0, size - 1)
    return inside if mode == "nearest" else np.where(inside == indices, indices, OUTSIDE)
