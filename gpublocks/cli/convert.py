"""What the command `convert` does to voxels: nothing, and to axes: what the sink needs. Pure."""

from typing import Any

import numpy as np
import numpy.typing as npt

from gpublocks import io
from gpublocks.contracts import Source

__all__ = ["arranged", "same"]


def same(block: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the block as it is."""
    return block


def _own_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype


same.memory = 0.0  # type: ignore[attr-defined]
same.result_dtype = _own_type  # type: ignore[attr-defined]


def arranged(source: Source, sink: Any) -> Source:
    """Return a source with its axes in the order that a sink's format has, if they have names."""
    names = (getattr(source, "metadata", None) or {}).get("axes", ())
    arrangement = getattr(sink, "arrangement", None)
    if arrangement is None or len(names) != len(source.shape):
        return source
    axes = arrangement(names)
    return source if axes is None else io.permuted.Permuted(source, axes)
