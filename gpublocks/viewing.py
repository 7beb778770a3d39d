"""Planes and maximum projections of a source, reduced to what a picture shows. Touches the source.

No more of it is in memory at once than `BOX_BYTES`, or the pieces in which it is stored.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod
from typing import Any

import numpy as np

from gpublocks.contracts import Array, Source
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.formats.files.metadata import axis_names
from gpublocks.geometry import Range, Region

__all__ = [
    "BOX_BYTES",
    "SIDE",
    "Panel",
    "Scene",
    "maximum_panels",
    "plane_panels",
    "scene_of",
    "views_of",
]

SIDE = 1000
"""Pixels of the longest side of a panel."""
BOX_BYTES = 32 << 20
"""Bytes that are read at once, where no piece of the source has more."""

_SPACE = ("z", "y", "x")
_COLOURS = ("c", "s", "channel")


@dataclass(frozen=True, slots=True)
class Scene:
    """What is shown of a source.

    Parameters
    ----------
    source : Source
    names : tuple of str
        Names of its axes.
    shown : tuple of int
        The two or three axes of space: across the picture is the last one.
    indices : mapping of int to int
        Index of each other axis, and of the planes that cut the axes of space.
    """

    source: Source
    names: tuple[str, ...]
    shown: tuple[int, ...]
    indices: Mapping[int, int]

    @property
    def text(self) -> str:
        """What is shown of the axes that are not of space: ``'t = 3, c = 0'``."""
        others = [axis for axis in range(len(self.names)) if axis not in self.shown]
        return ", ".join(f"{self.names[axis]} = {self.indices[axis]}" for axis in others)


@dataclass(frozen=True, slots=True)
class Panel:
    """An image of a part of a source.

    Parameters
    ----------
    image : ndarray
        Two axes: down and across.
    names : (str, str)
        Names of these axes.
    lengths, steps : (int, int)
        Voxels of the source along them, and voxels for each pixel.
    spacing : tuple of (float or None)
        Distance of voxels along them, where it is known.
    units : tuple of (str or None)
        Units of that.
    text : str
        What is seen: ``'z = 12'``, ``'maximum along z'``.
    """

    image: Array
    names: tuple[str, str]
    lengths: tuple[int, int]
    steps: tuple[int, int]
    spacing: tuple[float | None, float | None]
    units: tuple[str | None, str | None]
    text: str


def scene_of(source: Source, indices: Mapping[int | str, int] | None = None) -> Scene:
    """Return what is shown of a source.

    Axes called z, y and x are those of space. Where these names are not known they are the last
    three axes, or the first three where the first axis varies fastest.

    Parameters
    ----------
    source : Source
    indices : mapping, optional
        Index for an axis by its number or its name. The default is the middle, and 0 of channels.

    Raises
    ------
    ArgumentTypeError
        If its voxels are no real numbers.
    PlanError
        If it has less than two axes or no voxels, or there is no such axis or index.
    """
    if source.dtype.kind not in "biuf":
        raise ArgumentTypeError(f"{source!r} cannot be shown; give an array of real numbers")
    if len(source.shape) < 2 or not prod(source.shape):
        raise PlanError(f"{source!r} cannot be shown; give an array with at least two axes")
    names, shown = _axes(source)
    middle = {
        axis: 0 if names[axis].lower() in _COLOURS else length // 2
        for axis, length in enumerate(source.shape)
    }
    given = {_axis(key, names): index for key, index in (indices or {}).items()}
    for axis, index in given.items():
        if not 0 <= index < source.shape[axis]:
            raise PlanError(
                f"index {index} is not on axis {axis} ({names[axis]}) of {source!r}; "
                f"give one from 0 to {source.shape[axis] - 1}"
            )
    return Scene(source, names, shown, middle | given)


def plane_panels(scene: Scene) -> list[Panel]:
    """Return a panel for each pair of axes of space: the plane at the scene's index of the third.

    Of long axes every n-th voxel is taken.
    """
    panels = []
    for looked, down, across in views_of(scene):
        kept = [axis for axis in (looked, down, across) if axis is not None]
        steps = dict.fromkeys(kept, 1) | {axis: _step(scene, axis) for axis in (down, across)}
        ranges = [(i, i + 1, 1) for _, i in sorted(scene.indices.items())]
        for axis in (down, across):
            ranges[axis] = (0, scene.source.shape[axis], steps[axis])
        image = _sampled(scene.source, ranges)
        text = "" if looked is None else f"{scene.names[looked]} = {scene.indices[looked]}"
        panels.append(_panel(scene, image, down, across, text))
    return panels


def maximum_panels(scene: Scene) -> list[Panel]:
    """Return a panel for each pair of axes of space: the maximum along the third.

    All of them are made while the source is read once. A pixel is the maximum of its voxels; those
    that are not a number do not count.
    """
    source, views = scene.source, views_of(scene)
    steps = [_step(scene, axis) if axis in scene.shown else 1 for axis in range(len(source.shape))]
    lowest: Any = np.nan
    if source.dtype.kind in "iu":
        lowest = np.iinfo(source.dtype).min
    if source.dtype.kind == "b":
        lowest = False
    found = []
    for looked, *_ in views:
        counts = [-(-n // step) for n, step in zip(source.shape, steps, strict=True)]
        seen = [n if axis in scene.shown and axis != looked else 1 for axis, n in enumerate(counts)]
        found.append(np.full(seen, lowest, source.dtype))
    bounds = [
        (0, n) if axis in scene.shown else (scene.indices[axis], scene.indices[axis] + 1)
        for axis, n in enumerate(source.shape)
    ]
    for box in _boxes(source, bounds):
        voxels = source.read(box)
        for (looked, *_), image in zip(views, found, strict=True):
            part = voxels if looked is None else np.fmax.reduce(voxels, axis=looked, keepdims=True)
            _raise_to(image, part, box, [axis for axis in scene.shown if axis != looked], steps)
    texts = [f"maximum along {scene.names[v[0]]}" if v[0] is not None else "" for v in views]
    return [
        _panel(scene, image, down, across, text)
        for (_, down, across), image, text in zip(views, found, texts, strict=True)
    ]


def _axes(source: Source) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the names of the axes, and those of space as they are seen: down, then across."""
    ndim = len(source.shape)
    told = (getattr(source, "metadata", None) or {}).get("axes") or ()
    names = tuple(map(str, told)) if len(told) == ndim else axis_names(ndim, source.order)
    space = [names.index(name) for name in _SPACE if names.count(name) == 1]
    if not {"y", "x"} <= {names[axis] for axis in space}:
        space = list(range(ndim))[:3][::-1] if source.order == "F" else list(range(ndim))[-3:]
    return names, tuple(space)


def _axis(key: int | str, names: Sequence[str]) -> int:
    axis = names.index(key) if key in names else key
    if isinstance(axis, str) or not 0 <= axis < len(names):
        listed = ", ".join(f"{n} ({name})" for n, name in enumerate(names))
        raise PlanError(f"there is no axis {key}; the source has axes {listed}")
    return axis


def views_of(scene: Scene) -> list[tuple[int | None, int, int]]:
    """Return for each panel the axis that is looked along, the one down and the one across."""
    if len(scene.shown) == 2:
        return [(None, *scene.shown)]
    z, y, x = scene.shown
    return [(z, y, x), (y, z, x), (x, z, y)]


def _step(scene: Scene, axis: int) -> int:
    return -(-scene.source.shape[axis] // SIDE)


def _panel(scene: Scene, image: Array, down: int, across: int, text: str) -> Panel:
    source = scene.source
    told = getattr(source, "metadata", None) or {}
    spacing, units = told.get("spacing") or {}, told.get("units") or {}
    ndim = len(source.shape)
    spacing = spacing if len(spacing) == ndim else [None] * ndim
    units = units if len(units) == ndim else [None] * ndim
    order = [axis for axis in range(ndim) if axis not in (down, across)]
    flat = image.transpose(*order, down, across).reshape(image.shape[down], image.shape[across])
    return Panel(
        flat,
        (scene.names[down], scene.names[across]),
        (source.shape[down], source.shape[across]),
        (_step(scene, down), _step(scene, across)),
        (spacing[down], spacing[across]),
        (units[down], units[across]),
        text,
    )


def _sampled(source: Source, ranges: Sequence[tuple[int, int, int]]) -> Array:
    """Return every n-th voxel of a box, given by start, stop and n of each axis.

    Only the pieces that hold such a voxel are read; of mapped files only the pages.
    """
    mapped = getattr(source, "array", None)
    if isinstance(mapped, np.ndarray):
        return np.array(mapped[tuple([slice(*one) for one in ranges])])
    image = np.empty([len(range(*one)) for one in ranges], source.dtype)
    pieces = getattr(source, "read_unit", source.unit)
    fastest = max(
        (axis for axis, one in enumerate(ranges) if one[1] - one[0] > 1),
        key=lambda axis: -axis if source.order == "F" else axis,
        default=0,
    )
    cuts = []
    for axis, ((start, stop, step), piece) in enumerate(zip(ranges, pieces, strict=True)):
        alone = step > 1 and axis != fastest
        cuts.append(list(_cuts(start, stop, step, piece)) if alone else [(start, stop)])
    for outer in product(*cuts):
        for box in _boxes(source, outer):
            sampled, into = [], []
            for (start, _, step), lo, hi in zip(ranges, box.start, box.stop, strict=True):
                first = -(-(lo - start) // step)
                last = -(-(hi - start) // step)
                sampled.append(slice(start + first * step - lo, None, step))
                into.append(slice(first, last))
            if all(part.start < part.stop for part in into):
                image[tuple(into)] = source.read(box)[tuple(sampled)]
    return image


def _cuts(start: int, stop: int, step: int, piece: int) -> Iterator[Range]:
    """Return for each piece along an axis the range of its sampled voxels."""
    at = start
    while at < stop:
        end = min(stop, (at // piece + 1) * piece)
        last = at + (end - 1 - at) // step * step
        yield at, last + 1
        at = last + step


def _boxes(source: Source, bounds: Sequence[Range]) -> Iterator[Region]:
    """Return the boxes of whole pieces, of about `BOX_BYTES`, that make up a box of a source."""
    pieces = list(getattr(source, "read_unit", source.unit))
    lengths = [min(p, hi - lo) for p, (lo, hi) in zip(pieces, bounds, strict=True)]
    nbytes = prod(pieces) * source.dtype.itemsize
    axes = range(len(bounds)) if source.order == "F" else reversed(range(len(bounds)))
    for axis in axes:
        lo, hi = bounds[axis]
        first, last = lo // pieces[axis], -(-hi // pieces[axis])
        count = max(1, min(last - first, BOX_BYTES // max(1, nbytes)))
        lengths[axis], nbytes = count * pieces[axis], nbytes * count
    parts = [_ranges(lo, hi, length) for (lo, hi), length in zip(bounds, lengths, strict=True)]
    for box in product(*parts):
        yield Region(tuple([lo for lo, _ in box]), tuple([hi for _, hi in box]))


def _ranges(start: int, stop: int, length: int) -> list[Range]:
    """Cut a range at the multiples of a length."""
    borders = [start, *range((start // length + 1) * length, stop, length), stop]
    return list(pairwise(borders))


def _raise_to(
    image: Array, part: Array, box: Region, axes: Sequence[int], steps: Sequence[int]
) -> None:
    """Let the pixels of an image be at least the voxels of a box, some of which make one pixel."""
    into = [slice(None)] * image.ndim
    for axis in axes:
        lo, hi, step = box.start[axis], box.stop[axis], steps[axis]
        into[axis] = slice(lo // step, (hi - 1) // step + 1)
        if step > 1:
            starts = [max(0, k * step - lo) for k in range(into[axis].start, into[axis].stop)]
            part = np.fmax.reduceat(part, starts, axis=axis)
    pixels = image[tuple(into)]
    np.fmax(pixels, part, out=pixels)
