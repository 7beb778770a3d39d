"""Differences that stay within what a type holds. Pure."""

from typing import Any

import numpy as np

from gpublocks.arrays import array_namespace

__all__ = ["difference"]


def difference(first: Any, second: Any, out: Any) -> Any:
    """Return ``first - second``, limited to what their type holds; of truth values, and not.

    Parameters
    ----------
    first, second : ndarray, of one type
    out : ndarray
        One of both, which is overwritten and returned.

    Examples
    --------
    >>> one, other = np.array([200, 3], np.uint8), np.array([7, 5], np.uint8)
    >>> difference(one, other, other).tolist()
    [193, 0]
    """
    xp = array_namespace(first)
    kind = first.dtype.kind
    if kind == "b":
        return xp.greater(first, second, out=out)
    if kind == "u" and out is second:
        xp.minimum(first, second, out=out)
    elif kind == "u":
        xp.maximum(first, second, out=out)
    elif kind == "i":
        _limit(first, second, out)
    # Infinities less each other are NaN, which is no news.
    with np.errstate(invalid="ignore"):
        return xp.subtract(first, second, out=out)


def _limit(first: Any, second: Any, out: Any) -> None:
    """Limit one of two arrays of signed integers so that their difference does not overflow."""
    xp = array_namespace(first)
    info = np.iinfo(first.dtype)
    low, high = int(info.min), int(info.max)
    if out is second:
        bound = xp.maximum(first, -1)
        bound -= high
        xp.maximum(second, bound, out=out)
        xp.minimum(first, -1, out=bound)
        bound -= low
        xp.minimum(second, bound, out=out)
    else:
        bound = xp.maximum(second, 0)
        bound += low
        xp.maximum(first, bound, out=out)
        xp.minimum(second, 0, out=bound)
        bound += high
        xp.minimum(first, bound, out=out)
