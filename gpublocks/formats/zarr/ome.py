"""What OME-Zarr (NGFF 0.1 to 0.5) says of an image: its levels, axes and spacing. Pure."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gpublocks.errors import PlanError, SinkError, SourceError
from gpublocks.formats.files.metadata import axis_names, checked
from gpublocks.formats.headed.placing import unit_name

__all__ = ["Level", "attributes", "check_axes", "image_metadata", "levels_of", "spatial"]

_UNITS = {
    "um": "micrometer",
    "nm": "nanometer",
    "mm": "millimeter",
    "cm": "centimeter",
    "m": "meter",
    "s": "second",
    "ms": "millisecond",
    "us": "microsecond",
    "min": "minute",
    "h": "hour",
}
"""How NGFF writes units."""

_SYMBOLS = {name: symbol for symbol, name in _UNITS.items()}

_TYPES = {"x": "space", "y": "space", "z": "space", "t": "time", "c": "channel"}


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of an image.

    Parameters
    ----------
    path : str
        Of its array, in the group of the image.
    metadata : mapping
        Axes, spacing, units and translation, as far as they are known.
    """

    path: str
    metadata: Mapping[str, Any]


def levels_of(attributes: Mapping[str, Any], location: str) -> list[Level]:
    """Return the levels of an image, finest first; none if the attributes of a group tell of none.

    Raises
    ------
    SourceError
        If the path of a level is none, or leaves the group.
    """
    ome = attributes.get("ome")
    listed = (ome if isinstance(ome, Mapping) else attributes).get("multiscales")
    if not isinstance(listed, list | tuple) or not listed or not isinstance(listed[0], Mapping):
        return []
    image = listed[0]
    datasets = image.get("datasets")
    if not isinstance(datasets, list | tuple) or not all(isinstance(d, Mapping) for d in datasets):
        raise SourceError(f"{location} is an OME-Zarr image without datasets; give an array of it")
    return [Level(_path(d.get("path"), location), _metadata(image, d)) for d in datasets]


def _path(path: Any, location: str) -> str:
    parts = path.split("/") if isinstance(path, str) else [""]
    if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise SourceError(f"{location} names a level {path!r}, which is no path inside of it")
    return str(path)


def _metadata(image: Mapping[str, Any], dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an image says of a level; nothing where that is damaged."""
    try:
        (scale, origin), (factors, shift) = _transform(dataset), _transform(image)
        axes = image.get("axes") or axis_names(len(scale))
        named = [axis if isinstance(axis, Mapping) else {"name": axis} for axis in axes]
        ones, zeros = [1.0] * len(named), [0.0] * len(named)
        factors = factors or ones
        by = zip(origin or zeros, factors, shift or zeros, strict=True)
        told = {
            "axes": [axis["name"] for axis in named],
            "spacing": [a * b for a, b in zip(scale, factors, strict=True)] if scale else None,
            "units": [_symbol(axis.get("unit")) for axis in named],
            "translation": [start * factor + more for start, factor, more in by],
        }
        return checked({k: v for k, v in told.items() if v and any(v)}, len(named))
    except (AttributeError, KeyError, PlanError, TypeError, ValueError):
        return {}


def _transform(node: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Return scale and translation of a dataset or an image; empty where they are not given."""
    found: dict[str, list[float]] = {"scale": [], "translation": []}
    for transform in node.get("coordinateTransformations") or []:
        kind = transform["type"]
        if kind in found and kind in transform:
            found[kind] = [float(value) for value in transform[kind]]
    return found["scale"], found["translation"]


def _symbol(unit: str | None) -> str | None:
    return unit and _SYMBOLS.get(unit, unit_name(unit))


def image_metadata(
    told: Mapping[str, Any], given: Mapping[str, Any], ndim: int, order: str
) -> dict[str, Any]:
    """Return axes, spacing, units and translation of a new image, with what is likely by default.

    Parameters
    ----------
    told : mapping
        What another source tells of its voxels; of another number of axes it is not used.
    given : mapping
        What was asked for instead; None where nothing was.
    ndim : int
        Number of axes.
    order : {'C', 'F'}

    Raises
    ------
    PlanError
        If `given` does not fit.
    """
    known: dict[str, Any] = {}
    with suppress(PlanError):
        known = checked(told, ndim)
    known |= checked({key: value for key, value in given.items() if value is not None}, ndim)
    defaults = {"spacing": 1.0, "translation": 0.0}
    for key, default in defaults.items():
        values = known.get(key, (None,) * ndim)
        known[key] = tuple([default if value is None else value for value in values])
    return {"axes": axis_names(ndim, order), "units": (None,) * ndim, **known}


def check_axes(axes: Sequence[str], shape: Sequence[int]) -> None:
    """Check that axes are those of an image: time, then channels, then two or three of space.

    Raises
    ------
    SinkError
    """
    ranks = [("time", "channel", "space").index(_TYPES.get(axis, "channel")) for axis in axes]
    counts = [ranks.count(rank) for rank in range(3)]
    if ranks == sorted(ranks) and counts[0] < 2 and counts[1] < 2 and counts[2] in (2, 3):
        return
    raise SinkError(
        f"a result of shape {tuple(shape)} with axes {', '.join(axes)} is no OME-Zarr image, which "
        "has time, then channels, then two or three axes of space; give io.zarr.Sink(path, "
        "axes='zyx'), say, or a plain .zarr with levels=1"
    )


def spatial(axes: Sequence[str]) -> tuple[int, ...]:
    """Return which axes are those of space.

    Examples
    --------
    >>> spatial("czyx")
    (1, 2, 3)
    """
    return tuple([n for n, axis in enumerate(axes) if _TYPES.get(axis) == "space"])


def attributes(levels: Sequence[Level], *, name: str, method: str, version: str) -> dict[str, Any]:
    """Return the attributes of the group of an image.

    Parameters
    ----------
    levels : sequence of Level
        Finest first, with axes, spacing and translation.
    name : str
        Of the image.
    method : str
        How coarser levels are made: ``'mean'`` or ``'nearest'``.
    version : {'0.4', '0.5'}
        Of NGFF: that for Zarr 2, or that for Zarr 3.
    """
    told = levels[0].metadata
    units = told.get("units") or [None] * len(told["axes"])
    axes: list[dict[str, str]] = []
    for axis, unit in zip(told["axes"], units, strict=True):
        kind = _TYPES.get(axis)
        axes.append({"name": axis})
        axes[-1] |= {"type": kind} if kind else {}
        axes[-1] |= {"unit": _UNITS.get(unit, unit)} if unit and kind != "channel" else {}
    placed = any(any(level.metadata["translation"]) for level in levels)
    image: dict[str, Any] = {
        "name": name,
        "axes": axes,
        "datasets": [_dataset(level, placed=placed) for level in levels],
    }
    if len(levels) > 1:
        image["type"] = method
    if version == "0.4":
        return {"multiscales": [{"version": version, **image}]}
    return {"ome": {"version": version, "multiscales": [image]}}


def _dataset(level: Level, *, placed: bool) -> dict[str, Any]:
    transforms = [{"type": "scale", "scale": list(level.metadata["spacing"])}]
    if placed:
        translation = list(level.metadata["translation"])
        transforms.append({"type": "translation", "translation": translation})
    return {"path": level.path, "coordinateTransformations": transforms}
