"""MetaImage files: a text header and voxels, in one file (.mha) or two (.mhd). Touches local files.

Headers are read as MetaIO does, the library of ITK: http://github.com/Kitware/MetaIO
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import hypot, prod
from typing import Any

import numpy as np

from gpublocks.contracts import DType, Order
from gpublocks.errors import SinkError, SourceError
from gpublocks.formats.files.mapping import Address, MappedSource, Unfinished, new_file
from gpublocks.formats.files.metadata import arrangement
from gpublocks.formats.files.partial import (
    Partial,
    check_target,
    create_partial,
    drop_stale,
    partial_path,
    sync_path,
)
from gpublocks.formats.files.paths import final_path, find_file
from gpublocks.formats.files.room import check_room
from gpublocks.formats.headed.headers import array_shape, data_file, filler, read_start
from gpublocks.formats.headed.placing import (
    Vector,
    axis_labels,
    axis_spacings,
    in_space,
    placed,
    unit_name,
)
from gpublocks.formats.headed.unpacking import UnpackedSource, open_voxels
from gpublocks.voxels import single_units

__all__ = ["Sink", "Source"]

NAME = "Mhd-Source"
HEADER_BYTES = 1 << 16

_SINGULAR = 1e-6
"""Directions of unit length that span less than this lie in a plane, which ITK refuses."""

_TYPES = {
    "i1": "MET_CHAR",
    "u1": "MET_UCHAR",
    "i2": "MET_SHORT",
    "u2": "MET_USHORT",
    "i4": "MET_INT MET_LONG",
    "u4": "MET_UINT MET_ULONG",
    "i8": "MET_LONG_LONG",
    "u8": "MET_ULONG_LONG",
    "f4": "MET_FLOAT",
    "f8": "MET_DOUBLE",
}
"""Names of NumPy's types in MetaIO's metaTypes.h; the first one is written."""

_FIELD = re.compile(rb"[ \t]*(\w+)[ \t]*[=:][ \t]*(.*?)\s*$", re.S)


def Source(  # noqa: N802
    location: str | os.PathLike[str], writable: bool = False
) -> MappedSource | UnpackedSource:
    """Return the array in a MetaImage file: mapped, or unpacked when it is first read.

    Axes are in the order of the header's ``DimSize``, the first one fastest. Where voxels have
    several channels, these are one more axis, the very first. `metadata` tells axes, spacing,
    units, space, directions and origin, as far as known; and as ``scaling`` an intensity function,
    which is not applied to the voxels, just as ITK does not.

    Parameters
    ----------
    location : path
        Of a ``.mha`` file, or of a ``.mhd`` header whose voxels are beside it.
    writable : bool
        Whether the voxels may be written.

    Raises
    ------
    SourceError
        If a file is missing, damaged or truncated, or the voxels are text or in several files or
        not in the header's folder.
    SinkError
        If they must not be written, or are compressed.
    """
    location = os.fspath(location)
    header, _ = find_file(location, "a MetaImage file", writable=False)
    fields, end = _read_header(location, read_start(header, HEADER_BYTES))
    try:
        lengths, dtype, skip = _layout(fields)
        metadata = _metadata(fields)
    except (KeyError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise SourceError(f"{location} has no usable MetaImage header: {reason}") from error
    shape = array_shape(location, lengths, dtype)
    name = fields["ElementDataFile"]
    if name.lower() == "local":
        path, status = find_file(location, "a MetaImage file", writable=writable)
        offset = end
    elif name.split()[:1] == ["LIST"] or "%" in name:
        raise SourceError(
            f"{location} has its voxels in several files ({name}); join them, or give each alone"
        )
    else:
        path, status = data_file(header, name, writable=writable)
        offset = 0
    packed = _true(fields, "CompressedData")
    if packed and skip < 0:
        raise SourceError(f"{location} has HeaderSize {skip} for compressed voxels")
    if skip < 0:
        offset = max(0, status.st_size - prod(shape) * dtype.itemsize)
    elif skip:
        offset = skip
    return open_voxels(
        location,
        path,
        status,
        offset=offset,
        shape=shape,
        dtype=dtype,
        codec="zlib" if packed else None,
        writable=writable,
        name=NAME,
        metadata=metadata,
    )


@dataclass(frozen=True, slots=True)
class Sink:
    """A MetaImage file that will be created when its shape and type are known.

    With ``.mha`` it is one file; with ``.mhd`` the voxels are in a ``.raw`` file beside the
    header. Until they are finished the files are called ``<name>.partial``. The first axis varies
    fastest in them, whatever the order of the source is.

    Parameters
    ----------
    location : path
    overwrite : bool
        Whether files of these names may be replaced.
    metadata : mapping, optional
        What the header is to say of the voxels: the `metadata` of another source.
    """

    location: str
    overwrite: bool = False
    metadata: Mapping[str, Any] | None = None

    def __init__(
        self,
        location: str | os.PathLike[str],
        overwrite: bool = False,
        *,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        object.__setattr__(self, "location", final_path(location))
        object.__setattr__(self, "overwrite", overwrite)
        object.__setattr__(self, "metadata", metadata)

    @property
    def data(self) -> str | None:
        """Path of the file of voxels; None where they are in the file of the header."""
        stem, suffix = os.path.splitext(self.location)
        return f"{stem}.raw" if suffix.lower() == ".mhd" else None

    def arrangement(self, names: Sequence[str]) -> tuple[int, ...] | None:
        """Return in which order axes are as the format has them; None if they are, or have none."""
        return arrangement(names, "cxyzt")

    @property
    def has_fixed_axes(self) -> bool:
        """Whether axes have these names, whatever they are called."""
        return True

    def check(self) -> None:
        """Raise `SinkError` if the files cannot be created. Creates nothing."""
        check_target(self.location, overwrite=self.overwrite)
        if self.data is not None:
            check_target(self.data, overwrite=self.overwrite or self._left_behind(self.data))

    def _left_behind(self, data: str) -> bool:
        """Tell whether voxels are those of a run that was killed before their header had its name.

        A header under way has voxels under way beside it, until these get their name.
        """
        under_way = [os.path.lexists(partial_path(path)) for path in (self.location, data)]
        return under_way == [True, False] and not os.path.lexists(self.location)

    units = single_units

    def create(
        self,
        shape: tuple[int, ...],
        dtype: DType,
        order: Order,
        unit: tuple[int, ...] | None = None,
    ) -> MappedSource:
        """Create the files, preallocated, under their partial names.

        Raises
        ------
        SinkError
            If they cannot be created, there is no room for them, another run is writing them, or
            MetaImage has no such type.
        """
        self.check()
        dtype, shape = np.dtype(dtype), tuple(shape)
        data = self.data
        name = "LOCAL" if data is None else os.path.basename(data)
        header = _header(self.location, shape, dtype, self.metadata or {}, name)
        if data is None:
            return new_file(
                self.location, header, shape, dtype, "F", overwrite=self.overwrite, name=NAME
            )
        nbytes = prod(shape) * dtype.itemsize
        check_room(data, nbytes)
        overwrite = self.overwrite or self._left_behind(data)
        # No header is under way without voxels: see `_left_behind`.
        drop_stale(self.location)
        second = create_partial(data, nbytes, b"", overwrite=overwrite)
        try:
            first = create_partial(self.location, len(header), header, overwrite=self.overwrite)
        except BaseException:
            second.remove()
            raise
        address = Address(second.path, second.file, 0, shape, dtype, "F", writable=True)
        pair: Unfinished = _Pair(second.final, first, second)
        return MappedSource(address, NAME, partial=pair)


@dataclass(slots=True)
class _Pair:
    """A header and a file of voxels under way. The header comes last: it says all is there."""

    final: str
    header: Partial
    data: Partial

    def rename(self) -> None:
        if self.header.overwrite:
            # An old header must never describe new voxels.
            with suppress(FileNotFoundError):
                os.unlink(self.header.final)
        sync_path(self.header.path)
        self.data.rename()
        self.header.rename()

    def remove(self) -> None:
        self.header.remove()
        self.data.remove()


def _read_header(location: str, start: bytes) -> tuple[dict[str, str], int]:
    """Return the fields of a header, and where it ends: after the one that names the voxels."""
    fields: dict[str, str] = {}
    end = 0
    for line in start.splitlines(keepends=True):
        end += len(line)
        match = _FIELD.match(line)
        if match is None:
            if line.strip():
                break
            continue
        key, value = (part.decode("utf-8", "replace") for part in match.groups())
        fields[key] = value
        if key == "ElementDataFile":
            if fields.get("ObjectType", "Image") != "Image":
                raise SourceError(f"{location} holds a {fields['ObjectType']}, no image")
            return fields, end
    what = f"starts with {start[:12]!r}" if start else "is empty"
    if fields:
        what = "its header does not end with ElementDataFile"
    raise SourceError(f"{location} is not a MetaImage file ({what})")


def _layout(fields: Mapping[str, str]) -> tuple[list[int], DType, int]:
    """Return the length of each axis, the type of a voxel, and where in a file they begin."""
    ndim, lengths = int(fields["NDims"]), [int(n) for n in fields["DimSize"].split()]
    channels, skip = int(fields.get("ElementNumberOfChannels", 1)), int(fields.get("HeaderSize", 0))
    if len(lengths) != ndim:
        raise ValueError(f"it has {len(lengths)} sizes for {ndim} axes")
    if channels < 1 or skip < -1:
        raise ValueError(f"it has {channels} channels and HeaderSize {skip}")
    if not _true(fields, "BinaryData", True):
        raise ValueError("its voxels are text, which is not supported")
    given = fields["ElementType"].removesuffix("_ARRAY")
    kinds = [kind for kind, names in _TYPES.items() if given in names.split()]
    if not kinds:
        raise ValueError(f"its voxels are of type {given!r}; supported: numbers")
    big = _true(fields, "BinaryDataByteOrderMSB", _true(fields, "ElementByteOrderMSB"))
    dtype = np.dtype(kinds[0]).newbyteorder(">" if big else "<")
    return [channels, *lengths] if channels > 1 else lengths, dtype, skip


def _true(fields: Mapping[str, str], key: str, default: bool = False) -> bool:
    return fields[key][:1] in ("T", "t", "1") if key in fields else default


def _metadata(fields: Mapping[str, str]) -> dict[str, Any]:
    ndim = int(fields["NDims"])
    spacing = _numbers(fields, ("ElementSpacing", "ElementSize"), ndim)
    origin = _numbers(fields, ("Offset", "ElementOrigin", "Position", "Origin"), ndim)
    matrix = _numbers(
        fields, ("TransformMatrix", "ElementDirection", "Rotation", "Orientation"), ndim * ndim
    )
    directions: list[Vector | None] = []
    if spacing or origin or matrix:
        # What MetaIO takes for granted where the rest is given.
        known = spacing or (1.0,) * ndim
        rows = np.reshape(matrix or np.eye(ndim), (ndim, ndim))
        directions = [tuple((row * step).tolist()) for row, step in zip(rows, known, strict=True)]
        origin = origin or (0.0,) * ndim
    unit = unit_name(fields.get("DistanceUnits", ""))
    slope = float(fields.get("ElementToIntensityFunctionSlope", 1))
    channels = ["c"] if int(fields.get("ElementNumberOfChannels", 1)) > 1 else []
    none = [None] * len(channels)
    return placed(
        axes=axis_labels([not channels] * bool(channels) + [True] * ndim),
        spacing=[*none, *spacing] if spacing else None,
        units=[*none, *[unit] * ndim],
        space="LPS" if ndim == 3 and directions else None,
        directions=[*none, *directions],
        origin=origin,
        scaling=(slope, float(fields.get("ElementToIntensityFunctionOffset", 0))),
    )


def _numbers(fields: Mapping[str, str], keys: Sequence[str], count: int) -> Vector:
    """Return the numbers of the first of some fields that there is; none if there is none."""
    for key in keys:
        if key in fields:
            numbers = tuple([float(x) for x in fields[key].split()])
            if len(numbers) != count or not all(np.isfinite(numbers)):
                raise ValueError(f"{key} is {fields[key]!r}, not {count} numbers")
            return numbers
    return ()


def _header(
    location: str, shape: tuple[int, ...], dtype: DType, metadata: Mapping[str, Any], name: str
) -> bytes:
    """Return the header of new files; where voxels follow it, filled up to align them."""
    kind = dtype.str[1:]
    if kind not in _TYPES:
        raise SinkError(
            f"{location}: MetaImage has no voxels of type {dtype}; give another dtype, as 'u1'"
        )
    channels = len(shape) > 1 and metadata.get("axes", ())[:1] == ("c",)
    lengths = shape[1:] if channels else shape
    lines = [
        f"NDims = {len(lengths)}",
        "BinaryData = True",
        f"BinaryDataByteOrderMSB = {dtype.newbyteorder('>') == dtype and dtype.itemsize > 1}",
        "CompressedData = False",
        *_placing(metadata, len(shape), len(lengths)),
        f"DimSize = {_joined(lengths)}",
    ]
    if channels:
        lines.append(f"ElementNumberOfChannels = {shape[0]}")
    lines += [f"ElementType = {_TYPES[kind].split()[0]}", f"ElementDataFile = {name}"]
    text = "".join([f"{line}\n" for line in lines]).encode()
    start = b"ObjectType = Image\n"
    if name != "LOCAL":
        return start + text
    dots = filler(len(start + text), len("Comment = .\n")) - len("Comment = \n")
    return start + f"Comment = {'.' * dots}\n".encode() + text


def _placing(metadata: Mapping[str, Any], ndim: int, spatial: int) -> list[str]:
    """Return the lines of a header that tell where the voxels are, as far as known."""
    first = ndim - spatial
    spacing = axis_spacings(metadata, ndim)[first:]
    framed = in_space(metadata, ndim, "LPS")
    matrix, offset = np.eye(spatial), [0.0] * spatial
    if framed is not None:
        for axis, step in enumerate(framed[0][first:]):
            if step and len(step) <= spatial and hypot(*step):
                matrix[axis] = 0
                matrix[axis, : len(step)] = np.divide(step, hypot(*step))
        offset = [*framed[1], *offset][:spatial]
        if abs(np.linalg.det(matrix)) < _SINGULAR:
            matrix = np.eye(spatial)
    if framed is None and not any(spacing):
        return []
    lines = [
        f"TransformMatrix = {_joined(matrix.ravel().tolist())}",
        f"Offset = {_joined(offset)}",
        f"ElementSpacing = {_joined(step or 1.0 for step in spacing)}",
    ]
    units = {unit for unit in metadata.get("units", ()) if unit}
    if len(units) == 1 and units <= {"um", "mm", "cm"}:
        lines.append(f"DistanceUnits = {units.pop()}")
    return lines


def _joined(values: Iterable[Any]) -> str:
    return " ".join(map(str, values))
