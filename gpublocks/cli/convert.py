"""The function that the command `convert` runs: none. Pure."""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["same"]


def same(block: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the block as it is."""
    return block


def _own_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype


same.memory = 0.0  # type: ignore[attr-defined]
same.result_dtype = _own_type  # type: ignore[attr-defined]
