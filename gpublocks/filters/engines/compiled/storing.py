"""Results in the type that they are kept in. Pure."""

from typing import Any

import numpy as np

from gpublocks.filters.engines.compiled.compiling import compiled

__all__ = ["store"]


@compiled
def store(total: Any, target: Any, n: int, whole: bool, low: float, high: float) -> None:
    """Round floats to the type of the target; to integers within limits, NaN to 0."""
    if whole:
        for i in range(n):
            value = np.rint(total[i])
            value = 0.0 if np.isnan(value) else min(max(value, low), high)
            target[i] = value
    else:
        for i in range(n):
            target[i] = total[i]
