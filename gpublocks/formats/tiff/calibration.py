"""Axes and spacing of voxels in the words of TIFF's tags, ImageJ, OME and tifffile. Pure.

In this package they are as `gpublocks.formats.headed.placing.placed` has them. The formats here
name each axis by a capital letter.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any
from xml.etree import ElementTree

from gpublocks.formats.files.metadata import checked
from gpublocks.formats.headed.placing import placed, unit_name

__all__ = [
    "along_files",
    "as_imagej",
    "as_json",
    "as_ome",
    "from_imagej",
    "from_json",
    "from_ome",
    "from_tags",
    "letters",
    "planes_in_ome",
    "scaled",
]

Metadata = Mapping[str, Any]

_MICROMETERS = {
    "nm": 1e-3,
    "um": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "inch": 25400.0,
    "\N{ANGSTROM SIGN}": 1e-4,
    "\N{LATIN CAPITAL LETTER A WITH RING ABOVE}": 1e-4,
}
_SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}

_TAG_UNITS = {2: "inch", 3: "cm"}
"""Of the tag ResolutionUnit. Other values say that there is none."""

_CENTIMETER = 3
_SPACE = "ZYX"


def from_tags(axes: str, resolution: Sequence[float], unit: int) -> dict[str, Any]:
    """Return metadata by a page's tags: voxels per unit along X and Y, and the unit's number."""
    return _told(axes, _inverse(resolution) if unit in _TAG_UNITS else {}, _TAG_UNITS.get(unit))


def from_imagej(axes: str, description: Metadata, resolution: Sequence[float]) -> dict[str, Any]:
    """Return metadata by what ImageJ writes: the description, and voxels per unit in tags.

    Examples
    --------
    >>> from_imagej("ZYX", {"spacing": 2, "unit": "micron"}, (4, 4))["spacing"]
    (2.0, 0.25, 0.25)
    """
    scale = {"T": description.get("finterval")}
    unit = str(description.get("unit", "")).replace("\\u00B5", "\N{MICRO SIGN}")
    if unit not in ("", "pixel", "pixels"):
        scale |= {"Z": description.get("spacing"), **_inverse(resolution)}
    return _told(axes, scale, unit)


def from_json(axes: str, description: Metadata) -> dict[str, Any]:
    """Return metadata by the description that tifffile writes for `as_json`."""
    spacing, units = description.get("spacing"), description.get("units")
    if not isinstance(spacing, list) or not isinstance(units, list):
        return _told(axes, {})
    if not len(spacing) == len(units) == len(axes):
        return _told(axes, {})
    return placed(
        axes=_names(axes),
        spacing=[_positive(value) for value in spacing],
        units=[unit if isinstance(unit, str) else None for unit in units],
    )


def from_ome(axes: str, xml: str, image: int) -> dict[str, Any]:
    """Return metadata by the OME-XML of a file, for one of its images."""
    pixels = _pixels(xml)[image : image + 1]
    if not pixels:
        return _told(axes, {})
    scale = {"T": _in_unit(pixels[0], "TimeIncrement", "s", _SECONDS)}
    for axis in _SPACE:
        scale[axis] = _in_unit(pixels[0], f"PhysicalSize{axis}", "um", _MICROMETERS)
    return _told(axes, scale, "um")


def planes_in_ome(xml: str) -> int:
    """Return how many planes the first image of an OME-XML has; 0 if it does not tell."""
    for pixels in _pixels(xml)[:1]:
        try:
            samples = [int(c.get("SamplesPerPixel", 1)) for c in pixels if _is(c, "Channel")]
            channels = int(pixels.get("SizeC", 1)) // max([1, *samples])
            return channels * int(pixels.get("SizeZ", 1)) * int(pixels.get("SizeT", 1))
        except ValueError:
            return 0
    return 0


def along_files(names: Sequence[str], metadata: Metadata, ndim: int) -> dict[str, Any]:
    """Return metadata of files that are stacked along new first axes.

    Parameters
    ----------
    names : sequence of str
        Of the new axes; empty where they have none.
    metadata : mapping
        Of one file.
    ndim : int
        Number of axes of all files together.
    """
    told = checked(metadata, ndim - len(names))
    found = {key: (None,) * len(names) + values for key, values in told.items()}
    axes = tuple([name.lower() for name in names]) + told.get("axes", ())
    found["axes"] = axes if all(axes) and len(axes) == len(set(axes)) == ndim else ()
    return {key: values for key, values in found.items() if values}


def scaled(metadata: Metadata, factors: Sequence[float]) -> dict[str, Any]:
    """Return metadata of a coarser level: spacing times a factor for each axis."""
    spacing = metadata.get("spacing", ())
    wider = tuple([step and step * n for step, n in zip(spacing, factors, strict=False)])
    return {**metadata, "spacing": wider} if spacing else dict(metadata)


def letters(metadata: Metadata, ndim: int) -> str | None:
    """Return the names of axes as capital letters; None if they are not known or have none.

    Raises
    ------
    PlanError
        If the metadata are of another number of axes.

    Examples
    --------
    >>> letters({"axes": ("z", "y", "x")}, 3)
    'ZYX'
    """
    names = checked(metadata, ndim).get("axes", ())
    plain = names and all(len(name) == 1 and name.isascii() and name.isalpha() for name in names)
    return "".join(names).upper() if plain else None


def as_imagej(axes: str, metadata: Metadata) -> dict[str, Any]:
    """Return what tifffile is told, so that ImageJ knows axes and spacing."""
    scale = _scale(axes, metadata)
    told: dict[str, Any] = {"axes": axes}
    if "T" in scale:
        told["finterval"] = scale["T"]
    if not set(scale) & set(_SPACE):
        return {"metadata": told}
    if "Z" in scale:
        told["spacing"] = scale["Z"]
    return {"metadata": told | {"unit": "um"}} | _resolution(scale, 1.0)


def as_ome(axes: str, metadata: Metadata) -> dict[str, Any]:
    """Return what tifffile is told, so that the OME-XML has axes and spacing."""
    scale = _scale(axes, metadata)
    told: dict[str, Any] = {"axes": axes}
    if "T" in scale:
        told |= {"TimeIncrement": scale["T"], "TimeIncrementUnit": "s"}
    for axis in set(scale) & set(_SPACE):
        told[f"PhysicalSize{axis}"] = scale[axis]
        told[f"PhysicalSize{axis}Unit"] = "\N{MICRO SIGN}m"
    return {"metadata": told}


def as_json(axes: str, metadata: Metadata) -> dict[str, Any]:
    """Return what tifffile is told to write as JSON, and for other readers in tags."""
    told: dict[str, Any] = {"axes": axes}
    known = checked(metadata, len(axes))
    if "spacing" in known:
        told["spacing"] = list(known["spacing"])
        told["units"] = list(known.get("units", [None] * len(axes)))
    found = _resolution(_scale(axes, metadata), _MICROMETERS["cm"])
    return {"metadata": told} | ({**found, "resolutionunit": _CENTIMETER} if found else {})


def _told(axes: str, scale: Mapping[str, Any], unit: str | None = None) -> dict[str, Any]:
    """Return metadata: lengths in micrometers where their unit is known."""
    name = unit_name(unit) if unit else None
    factor = _MICROMETERS.get(name or "", 1.0)
    steps: list[float | None] = []
    units: list[str | None] = []
    for axis in axes:
        step, length = _positive(scale.get(axis)), axis in _SPACE
        steps.append(step * factor if step is not None and length else step)
        own = "um" if name in _MICROMETERS else name
        units.append(None if step is None else own if length else "s" if axis == "T" else None)
    return placed(axes=_names(axes), spacing=steps, units=units)


def _names(axes: str) -> tuple[str, ...]:
    """Return the names of axes; none if some have none (I and Q), or twice the same."""
    if len(set(axes)) < len(axes) or set(axes) & set("IQ"):
        return ()
    return tuple((axes if "C" in axes else axes.replace("S", "C")).lower())


def _scale(axes: str, metadata: Metadata) -> dict[str, float]:
    """Return the spacing of axes whose unit is known: in micrometers, and seconds for time."""
    known = checked(metadata, len(axes))
    if "spacing" not in known or "units" not in known:
        return {}
    scale: dict[str, float] = {}
    for axis, step, unit in zip(axes, known["spacing"], known["units"], strict=True):
        factor = (_SECONDS if axis == "T" else _MICROMETERS).get(unit_name(unit or "") or "")
        if step is not None and factor is not None and axis in "T" + _SPACE:
            scale[axis] = step * factor
    return scale


def _in_unit(
    pixels: ElementTree.Element, name: str, default: str, factors: Mapping[str, float]
) -> float | None:
    step = _positive(pixels.get(name))
    factor = factors.get(unit_name(pixels.get(f"{name}Unit", default)) or "")
    return None if step is None or factor is None else step * factor


def _resolution(scale: Mapping[str, float], unit: float) -> dict[str, Any]:
    if "X" not in scale or "Y" not in scale:
        return {}
    return {"resolution": (unit / scale["X"], unit / scale["Y"])}


def _inverse(resolution: Sequence[float]) -> dict[str, float | None]:
    per_unit = [_positive(value) for value in resolution]
    return {axis: n and 1 / n for axis, n in zip("XY", per_unit, strict=False)}


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if isfinite(number) and number > 0 else None


def _pixels(xml: str) -> list[ElementTree.Element]:
    """Return what OME-XML tells of the voxels of each image."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return []
    images = [image for image in root if _is(image, "Image")]
    return [child for image in images for child in image if _is(child, "Pixels")]


def _is(element: ElementTree.Element, name: str) -> bool:
    return element.tag.rpartition("}")[2] == name
