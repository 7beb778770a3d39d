"""What a TIFF file holds, by what tifffile tells of it. Touches nothing but that.

Files are damaged, cut off, or made to harm: what is claimed is compared with what is there.
"""

from dataclasses import dataclass
from math import prod
from operator import add
from typing import Any

import numpy as np

from gpublocks import machine
from gpublocks.budget import format_bytes
from gpublocks.contracts import Array, DType
from gpublocks.errors import SourceError
from gpublocks.formats.files.paths import check_length
from gpublocks.formats.tiff.calibration import (
    from_imagej,
    from_json,
    from_ome,
    from_tags,
    planes_in_ome,
    scaled,
)
from gpublocks.formats.tiff.declared import declared_samples
from gpublocks.formats.tiff.paged import Pages
from gpublocks.formats.tiff.segments import Paging

__all__ = ["Stack", "find_stack"]

_MOST_PACKED = {5: 5_000, 8: 1_100, 32773: 64, 32946: 1_100}
"""Bytes that LZW, deflate and PackBits make of one at most: a strip that claims more is none."""

_MOST_OF_OTHERS = 1_000_000
_HARMLESS_BYTES = 1 << 26

_MOST_DECLARED, _HARMLESS_SAMPLES = 8, 1 << 16
"""Images in strips and tiles have their edges rounded up, and channels that nobody asks for."""

_RESOLUTION_TAG = 282


@dataclass(frozen=True, slots=True)
class Stack:
    """An array in a file: it lies there as it is from `offset` on, or in pages."""

    shape: tuple[int, ...]
    dtype: DType
    metadata: dict[str, Any]
    offset: int = 0
    pages: Pages | None = None

    @property
    def unit(self) -> tuple[int, ...]:
        """Voxels of what is decoded at once; ones where nothing is."""
        if self.pages is None or self.pages.decode is None:
            return (1,) * len(self.shape)
        return self.pages.paging.unit


def find_stack(
    tif: Any, location: str, *, series: int, level: int, pages: int, nbytes: int
) -> Stack:
    """Return where an image is in a file.

    Parameters
    ----------
    tif : tifffile.TiffFile
        Open.
    location : str
        For messages.
    series, level : int
        Which image, and which resolution of it.
    pages : int
        How many directories the file has.
    nbytes : int
        How long it is.

    Raises
    ------
    SourceError
        If there is no such image, it is not complete, or it claims to be what it cannot be.
    """
    chosen = _choose(tif, location, series, level)
    _check_complete(tif, chosen, location, series, pages)
    shape, metadata = chosen.shape, _metadata(tif, chosen, series, level)
    dtype = np.dtype(tif.byteorder + chosen.dtype.char)
    offset = chosen.dataoffset if prod(shape) else 0
    if offset is not None:
        check_length(location, nbytes, offset, prod(shape) * dtype.itemsize)
        return Stack(shape, dtype, metadata, offset)
    try:
        found = [page for page in chosen if page is not None]
    except IndexError:
        found = []
    planes = prod(shape) // prod(chosen.keyframe.shape)
    if len(found) < planes:
        raise _incomplete(location, planes, len(found) or pages)
    if chosen.keyframe.is_final:
        stored = _plain(chosen, found, dtype)
    else:
        stored = _packed(chosen, found, location, nbytes)
    _check_places(stored, location, nbytes)
    return Stack(shape, stored.dtype, metadata, pages=stored)


def _choose(tif: Any, location: str, series: int, level: int) -> Any:
    images = tif.series
    if not 0 <= series < len(images):
        shapes = ", ".join(str(image.shape) for image in images[:9])
        raise SourceError(f"{location} has {len(images)} series {shapes}; there is no {series}")
    levels = images[series].levels
    if not 0 <= level < len(levels):
        shapes = ", ".join(str(one.shape) for one in levels[:9])
        raise SourceError(f"{location} has {len(levels)} levels {shapes}; there is no {level}")
    return levels[level]


def _check_complete(tif: Any, chosen: Any, location: str, series: int, count: int) -> None:
    """Raise `SourceError` if a file says that its image has more planes than are there."""
    told, there = 0, count
    key = chosen.keyframe
    # Other programs keep tifffile's description when they take some planes of many.
    if chosen.kind == "shaped" and chosen is tif.series[series] and "tifffile" in key.software:
        shape = tuple(tif.shaped_metadata[series]["shape"])
        page = [n for n in key.shape if n > 1]
        longer = [n for n in shape if n > 1]
        if page == longer[len(longer) - len(page) :] and prod(shape) > prod(chosen.shape):
            told = prod(shape) // prod(page)
            there = count if len(tif.series) == 1 else prod(chosen.shape) // prod(page)
    elif tif.is_ome and chosen.kind != "ome":
        told = planes_in_ome(tif.ome_metadata or "")
    elif tif.is_imagej and chosen.kind != "imagej":
        description = tif.imagej_metadata or {}
        numbers = [description.get(key, 1) for key in ("channels", "slices", "frames")]
        told = max(prod(numbers), description.get("images", 1))
    if told > there or chosen.is_multifile:
        raise _incomplete(location, told, there)
    if key.dtype is None or getattr(chosen, "transform", None) is not None:
        raise SourceError(f"{location} holds voxels of a kind that is not supported")
    if not chosen.shape:
        raise SourceError(f"{location} holds a scalar (0 axes); give an image")


def _check_places(stored: Pages, location: str, nbytes: int) -> None:
    """Raise `SourceError` if strips or tiles are missing, or beyond the end of the file."""
    expected = stored.paging.segments
    for number, (offsets, counts) in enumerate(zip(stored.offsets, stored.counts, strict=True)):
        if not len(offsets) == len(counts) == expected:
            raise SourceError(
                f"{location} is damaged: page {number} has {len(offsets)} of {expected} strips "
                "or tiles"
            )
        if max(map(add, offsets, counts)) > nbytes:
            raise SourceError(f"{location} is truncated: page {number} goes beyond its end")


def _plain(chosen: Any, pages: list[Any], dtype: DType) -> Pages:
    """Return pages that hold their voxels as they are, so that any rows of them can be read."""
    samples, *segment, together = chosen.keyframe.shaped
    nbytes = prod(segment) * together * dtype.itemsize
    starts = range(0, nbytes * samples, nbytes)
    return Pages(
        paging=Paging(chosen.shape, chosen.keyframe.shaped, tuple(segment)),
        offsets=[[page.dataoffsets[0] + start for start in starts] for page in pages],
        counts=[[nbytes] * samples] * len(pages),
        decode=None,
        dtype=dtype,
        empty=0,
    )


def _packed(chosen: Any, pages: list[Any], location: str, size: int) -> Pages:
    """Return pages of which whole strips or tiles are decoded."""
    key = chosen.keyframe
    tile = (key.tiledepth, key.tilelength, key.tilewidth)
    segment = tile if key.is_tiled else (1, key.rowsperstrip, key.imagewidth)
    nbytes = prod(segment) * key.shaped[4] * chosen.dtype.itemsize
    available = machine.memory_available()
    most = _MOST_PACKED.get(int(key.compression), _MOST_OF_OTHERS) * size + _HARMLESS_BYTES
    if nbytes > min(available.bytes, most):
        raise SourceError(
            f"{location} of {format_bytes(size)} claims strips or tiles of {format_bytes(nbytes)} "
            f"each, and there are {format_bytes(available.bytes)} of {available.reason}; "
            "if it is no damaged file, write it anew in smaller ones"
        )
    decode = key.decode
    decode(None, 0)
    tables, header = [page.jpegtables for page in pages], key.jpegheader

    codec, samples = int(key.compression), prod(segment) * key.shaped[4]

    def voxels(data: bytes, page: int, number: int) -> Array:
        _check_declared((header or b"") + data, codec, samples)
        decoded = decode(data, number, jpegtables=tables[page], jpegheader=header)
        return decoded[0]  # type: ignore[no-any-return]

    return Pages(
        paging=Paging(chosen.shape, key.shaped, segment),
        offsets=[page.dataoffsets for page in pages],
        counts=[page.databytecounts for page in pages],
        decode=voxels,
        dtype=chosen.dtype,
        empty=key.nodata,
    )


def _check_declared(data: bytes, compression: int, samples: int) -> None:
    """Raise `ValueError` if a codec would make more of a strip or tile than belongs into it."""
    declared = declared_samples(data, compression)
    if declared is not None and declared > _MOST_DECLARED * samples + _HARMLESS_SAMPLES:
        raise ValueError(f"it claims {declared} samples, and has room for {samples}")


def _metadata(tif: Any, chosen: Any, series: int, level: int) -> dict[str, Any]:
    """Return axes, spacing and units, as far as the file tells."""
    axes, key = chosen.axes, chosen.keyframe
    if chosen.kind == "imagej":
        found = from_imagej(axes, tif.imagej_metadata or {}, key.resolution)
    elif chosen.kind == "ome":
        found = from_ome(axes, tif.ome_metadata or "", series)
    elif key.is_ome:
        # One file of several that together are an image: it tells of the whole.
        found = from_ome(axes, key.description, 0)
    elif chosen.kind == "shaped" and "spacing" in (told := tif.shaped_metadata[series]):
        found = from_json(axes, told)
    else:
        unit = key.resolutionunit if _RESOLUTION_TAG in key.tags else 1
        found = from_tags(axes, key.resolution, int(unit))
    if level:
        whole = tif.series[series].shape
        found = scaled(found, [n / m for n, m in zip(whole, chosen.shape, strict=True)])
    return found


def _incomplete(location: str, told: int, there: int) -> SourceError:
    return SourceError(
        f"{location} announces {told} planes, {there} are readable; write or copy it again, or if "
        "the others are in files of their own, give a pattern such as 'img_Z<Z,4>.tif'"
    )
