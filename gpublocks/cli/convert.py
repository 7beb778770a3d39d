"""What the command `convert` does to voxels: nothing, and to axes: what the sink needs. Pure."""

from typing import Any

import numpy as np
import numpy.typing as npt

from gpublocks import io
from gpublocks.contracts import Source
from gpublocks.formats.files.metadata import arrangement

__all__ = ["arranged", "same"]


def same(block: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the block as it is."""
    return block


def _own_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype


same.memory = 0.0  # type: ignore[attr-defined]
same.result_dtype = _own_type  # type: ignore[attr-defined]


def arranged(source: Source, sink: Any) -> Source:
    """Return a source with its axes in the order that the format of a sink has, if they have names.

    Colours side by side stay where they are in TIFF.
    """
    names = (getattr(source, "metadata", None) or {}).get("axes", ())
    order = getattr(sink, "axis_order", None)
    coloured = isinstance(sink, io.tiff.Sink) and tuple(names[-3:]) == ("y", "x", "c")
    if order is None or len(names) != len(source.shape) or coloured:
        return source
    axes = arrangement(names, order)
    return source if axes is None else io.permuted.Permuted(source, axes)
