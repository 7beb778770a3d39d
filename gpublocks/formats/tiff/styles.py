"""How an array is to be written as TIFF: for ImageJ, as OME-TIFF, or plainly. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from gpublocks.contracts import DType
from gpublocks.errors import SinkError
from gpublocks.formats.tiff.calibration import as_imagej, as_json, as_ome, letters

__all__ = ["Style", "style_of"]

_CLASSIC_BYTES = 2**32 - 2**25
"""Larger files are BigTIFF, as tifffile has it."""

_DIRECTORY_BYTES = 400
"""Of a page, more or less."""

_HYPERSTACKS = {2: "YX", 3: "ZYX", 4: "TZYX", 5: "TZCYX"}
"""Axes for ImageJ of arrays whose axes have no names."""


@dataclass(frozen=True, slots=True)
class Style:
    """What tifffile is told.

    Parameters
    ----------
    opened : dict
        To open a file for writing.
    options : dict
        To write an array.
    """

    opened: dict[str, Any]
    options: dict[str, Any]


def style_of(
    location: str,
    shape: tuple[int, ...],
    dtype: DType,
    metadata: Mapping[str, Any],
    *,
    compression: str | None,
    ome: bool,
    bigtiff: bool | None,
) -> Style:
    """Return how an array is written.

    ImageJ's description is written where it says the same: an array that would be read with other
    axes has tifffile's own. OME-XML knows no axes but its own; others are called as it has them.

    Raises
    ------
    SinkError
        If it is too large for the kind of file.
    PlanError
        If the metadata are of another number of axes.
    """
    axes = letters(metadata, len(shape))
    samples = _has_samples(axes, shape)
    if axes is not None and samples:
        axes = axes[:-1] + "S"
    directories = prod(shape[: -3 if samples else -2]) * _DIRECTORY_BYTES
    large = prod(shape) * dtype.itemsize + directories > _CLASSIC_BYTES
    if large and bigtiff is False:
        raise SinkError(f"cannot create {location}: it is too large without BigTIFF")
    big = large if bigtiff is None else bigtiff
    options: dict[str, Any] = {"compression": compression}
    if len(shape) > 1:
        options["photometric"] = "minisblack"
    if samples:
        options["planarconfig"] = "contig"
        if shape[-1] > 2 and dtype.char in "BH":
            options["photometric"] = "rgb"
    opened = {"bigtiff": big, "byteorder": ">" if dtype.byteorder == ">" else "<"}
    if ome and len(shape) < 2:
        raise SinkError(f"cannot create {location}: OME-TIFF holds planes, of two axes at least")
    if ome:
        if axes is None or not _is_ome(axes):
            axes, metadata = ("TCZYXS" if samples else "TCZYX")[-len(shape) :], {}
        return Style(opened | {"ome": True}, options | as_ome(axes, metadata))
    stack = axes or _HYPERSTACKS.get(len(shape), "")
    plain = not (samples or big or compression) and dtype.char in "BHhf"
    if plain and _is_imagej(stack) and min(shape) > 1:
        return Style(opened | {"imagej": True}, options | as_imagej(stack, metadata))
    # Tifffile cannot guess some of them: where all lengths are 1.
    axes = axes or ("Q" * len(shape) + ("YXS" if samples else "YX"))[-len(shape) :]
    return Style(opened | {"ome": False}, options | as_json(axes, metadata))


def _has_samples(axes: str | None, shape: tuple[int, ...]) -> bool:
    """Tell whether the last axis is that of colours, side by side in a pixel."""
    if axes is not None:
        return axes.endswith(("YXS", "YXC")) and shape[-1] > 1
    return len(shape) > 2 and 1 < shape[-1] <= 4 < min(shape[-3:-1])


def _is_ome(axes: str) -> bool:
    """Tell whether axes are those of OME-TIFF, which stores planes of Y and X."""
    rest = axes.removesuffix("S").removesuffix("YX")
    return len(rest) + 2 == len(axes.removesuffix("S")) and set(rest) <= set("TCZ")


def _is_imagej(axes: str) -> bool:
    """Tell whether axes are those of a hyperstack, in its order."""
    return axes.endswith("YX") and axes == "".join([axis for axis in "TZCYX" if axis in axes])
