"""NRRD files: a text header and voxels, in one file or two. Touches local files.

Headers are read by pynrrd.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import prod
from typing import Any, Literal

import numpy as np

from gpublocks.contracts import Array, DType, Order
from gpublocks.contracts import Sink as AnySink
from gpublocks.errors import ArgumentTypeError, SinkError, SourceError
from gpublocks.formats.files.compressed import Codec, write_gzip
from gpublocks.formats.files.mapping import MappedSource, new_file
from gpublocks.formats.files.packing import PackedSink
from gpublocks.formats.files.partial import check_target
from gpublocks.formats.files.paths import final_path, find_file
from gpublocks.formats.headed.headers import array_shape, data_file, filler, read_start, skip_lines
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

__all__ = ["Encoding", "Sink", "Source"]

Encoding = Literal["raw", "gzip"]

NAME = "Nrrd-Source"
HEADER_BYTES = 1 << 20

_CODECS: dict[str, Codec | None] = {
    "raw": None,
    "gzip": "gzip",
    "gz": "gzip",
    "bzip2": "bz2",
    "bz2": "bz2",
}
_TYPES = {
    "i1": "int8, int8_t, signed char",
    "u1": "uint8, uint8_t, uchar, unsigned char",
    "i2": "int16, int16_t, short, short int, signed short, signed short int",
    "u2": "uint16, uint16_t, ushort, unsigned short, unsigned short int",
    "i4": "int32, int32_t, int, signed int",
    "u4": "uint32, uint32_t, uint, unsigned int",
    "i8": "int64, int64_t, longlong, long long, long long int, signed long long, "
    "signed long long int",
    "u8": "uint64, uint64_t, ulonglong, unsigned long long, unsigned long long int",
    "f4": "float",
    "f8": "double",
}
"""Names of NumPy's types in NRRD; the first one is written. http://teem.sf.net/nrrd/format.html"""

_SPACES = {
    "right-anterior-superior": "RAS",
    "left-posterior-superior": "LPS",
    "left-anterior-superior": "LAS",
}
_OTHER_SPACES = {"scanner-xyz", "3D-right-handed", "3D-left-handed"}
_SPATIAL = {"domain", "space", "time", "???", "none"}
"""Kinds of axes along which there are voxels; along others there are parts of one."""

_SEVERAL = "has its voxels in several files; join them with 'unu save -f nrrd', or give each alone"
_LIST = re.compile(rb"^data ?file:[ \t]*LIST\b", re.M)
_PATTERN = re.compile(r"%\d*d\S*(\s+-?\d+){3,4}$")


def Source(  # noqa: N802
    location: str | os.PathLike[str], writable: bool = False
) -> MappedSource | UnpackedSource:
    """Return the array in an NRRD file: mapped, or unpacked when it is first read.

    Axes are in the order of the header, the first one fastest, as with ``index_order='F'`` of
    pynrrd. `metadata` tells axes, spacing, units, space, directions and origin, as far as known.

    Parameters
    ----------
    location : path
        Of a file, or of a header whose voxels are beside it.
    writable : bool
        Whether the voxels may be written.

    Raises
    ------
    SourceError
        If a file is missing, damaged or truncated, the voxels are text or in several files or
        not in the header's folder, or pynrrd is missing.
    SinkError
        If they must not be written, or are compressed.
    """
    location = os.fspath(location)
    header, _ = find_file(location, "an NRRD file", writable=False)
    fields, offset = _read_header(location, header)
    dtype = _dtype(location, fields)
    shape = array_shape(location, fields["sizes"], dtype)
    codec = _codec(location, fields)
    if "data file" in fields:
        path, status = data_file(header, fields["data file"], writable=writable)
        offset = 0
    else:
        path, status = find_file(location, "an NRRD file", writable=writable)
    lines, skip = fields.get("line skip", 0), fields.get("byte skip", 0)
    if lines < 0 or skip < (0 if codec else -1):
        raise SourceError(
            f"{location} has line skip {lines} and byte skip {skip} with encoding "
            f"{fields['encoding']}; byte skip may be -1 for raw voxels, and else they are 0 or more"
        )
    offset = skip_lines(path, offset, lines)
    if skip < 0:
        offset = max(0, status.st_size - prod(shape) * dtype.itemsize)
    elif codec is None:
        offset += skip
    return open_voxels(
        location,
        path,
        status,
        offset=offset,
        shape=shape,
        dtype=dtype,
        codec=codec,
        skip=skip,
        writable=writable,
        name=NAME,
        metadata=_metadata(fields, len(shape)),
    )


@dataclass(frozen=True, slots=True)
class Sink:
    """An NRRD file that will be created when its shape and type are known.

    Until it is finished the file is called ``<name>.partial``. The first axis varies fastest in
    it, whatever the order of the source is.

    Parameters
    ----------
    location : path
        A ``.nrrd`` file; header and voxels are one file.
    overwrite : bool
        Whether a file of that name may be replaced.
    encoding : {'raw', 'gzip'}
        With 'gzip' the voxels are compressed in one pass when all are there.
    metadata : mapping, optional
        What the header is to say of the voxels: the `metadata` of another source.

    Raises
    ------
    ArgumentTypeError
        If there is no such encoding.
    """

    location: str
    overwrite: bool = False
    encoding: Encoding = "raw"
    metadata: Mapping[str, Any] | None = None

    def __init__(
        self,
        location: str | os.PathLike[str],
        overwrite: bool = False,
        *,
        encoding: Encoding = "raw",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        if encoding not in ("raw", "gzip"):
            raise ArgumentTypeError(f"the encoding is {encoding!r}; give 'raw' or 'gzip'")
        object.__setattr__(self, "location", final_path(location))
        object.__setattr__(self, "overwrite", overwrite)
        object.__setattr__(self, "encoding", encoding)
        object.__setattr__(self, "metadata", metadata)

    def check(self) -> None:
        """Raise `SinkError` if the file cannot be created. Creates nothing."""
        check_target(self.location, overwrite=self.overwrite)

    units = single_units

    def create(
        self,
        shape: tuple[int, ...],
        dtype: DType,
        order: Order,
        unit: tuple[int, ...] | None = None,
    ) -> AnySink:
        """Create the file, preallocated, under its partial name.

        Raises
        ------
        SinkError
            If it cannot be created, there is no room for it, another run is writing it, or NRRD
            has no such type.
        """
        self.check()
        dtype = np.dtype(dtype)
        header = _header(self.location, shape, dtype, self.encoding, self.metadata or {})
        if self.encoding == "raw":
            return new_file(
                self.location,
                header,
                tuple(shape),
                dtype,
                "F",
                overwrite=self.overwrite,
                name=NAME,
            )

        def pack(array: Array, path: str) -> None:
            write_gzip(path, array, plain=header)

        return PackedSink(
            self.location,
            tuple(shape),
            dtype,
            "F",
            pack=pack,
            name=NAME,
            overwrite=self.overwrite,
        )


def _read_header(location: str, path: str) -> tuple[dict[str, Any], int]:
    """Return the fields of a header, and where it ends."""
    try:
        from nrrd import read_header
    except ImportError as error:
        raise SourceError(
            f"reading {location} needs pynrrd: pip install 'gpublocks[nrrd]'"
        ) from error
    start = read_start(path, HEADER_BYTES)
    if not start.startswith(b"NRRD"):
        what = f"starts with {start[:8]!r}" if start else "is empty"
        raise SourceError(f"{location} is not an NRRD file ({what})")
    file = BytesIO(start)
    if _LIST.search(start):
        raise SourceError(f"{location} {_SEVERAL}")
    try:
        fields = {_spelled(field): value for field, value in read_header(file).items()}
        if len(fields["sizes"]) != fields["dimension"]:
            raise ValueError(f"{len(fields['sizes'])} sizes for {fields['dimension']} axes")
    except Exception as error:  # Damaged headers raise whatever pynrrd stumbles on.
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise SourceError(f"{location} has no usable NRRD header: {reason}") from error
    if file.tell() >= HEADER_BYTES:
        raise SourceError(f"{location} has no usable NRRD header: it does not end")
    if _PATTERN.search(fields.get("data file", "")):
        raise SourceError(f"{location} {_SEVERAL}")
    return fields, file.tell()


def _spelled(field: str) -> str:
    """Return a field as it is spelled with spaces."""
    return {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}.get(
        field, field
    )


def _dtype(location: str, fields: Mapping[str, Any]) -> DType:
    given = fields.get("type", "")
    kinds = [kind for kind, names in _TYPES.items() if given in names.split(", ")]
    if not kinds:
        raise SourceError(f"{location} has voxels of type {given!r}; supported: numbers")
    dtype = np.dtype(kinds[0])
    if dtype.itemsize == 1:
        return dtype
    endian = fields.get("endian")
    if endian not in ("little", "big"):
        raise SourceError(f"{location} does not tell its byte order (endian: little, or big)")
    return dtype.newbyteorder(endian)


def _codec(location: str, fields: Mapping[str, Any]) -> Codec | None:
    encoding = str(fields.get("encoding", "")).lower()
    if encoding not in _CODECS:
        raise SourceError(
            f"{location} has encoding {encoding!r}; supported: raw, gzip, bzip2; convert it with "
            "'unu save -f nrrd -e raw'"
        )
    return _CODECS[encoding]


def _metadata(fields: Mapping[str, Any], ndim: int) -> dict[str, Any]:
    directions = [_vector(row) for row in fields.get("space directions", ())][:ndim]
    if directions:
        spatial = _each([step is not None for step in directions], ndim, True)
    else:
        kinds = [str(kind).lower() in _SPATIAL for kind in fields.get("kinds", ())]
        spatial = _each(kinds, ndim, True)
    labels = _each(fields.get("labels", ()), ndim, "")
    units = _each(fields.get("units", ()), ndim, "")
    if directions and not any(units):
        of_space = iter(fields.get("space units", ()))
        units = [next(of_space, "") if inside else "" for inside in spatial]
    spacings = [float(x) if np.isfinite(x) else None for x in fields.get("spacings", ())]
    space = fields.get("space")
    return placed(
        axes=labels if all(labels) and len(set(labels)) == ndim else axis_labels(spatial),
        spacing=_each(spacings, ndim, None) if spacings else None,
        units=[unit_name(unit) for unit in units],
        space=_SPACES.get(str(space).lower(), space),
        directions=_each(directions, ndim, None),
        origin=_vector(fields.get("space origin", ())) or (),
    )


def _each(values: Sequence[Any], ndim: int, default: Any) -> list[Any]:
    """Return one value for each axis."""
    return [*values, *[default] * ndim][:ndim]


def _vector(row: Any) -> Vector | None:
    """Return a vector of a header; None for an axis that has none."""
    vector = () if row is None else tuple([float(x) for x in row])
    return vector if vector and all(np.isfinite(vector)) else None


def _header(
    location: str,
    shape: tuple[int, ...],
    dtype: DType,
    encoding: Encoding,
    metadata: Mapping[str, Any],
) -> bytes:
    """Return the header of a new file, filled up so that the voxels are aligned."""
    kind = dtype.str[1:]
    if kind not in _TYPES:
        raise SinkError(
            f"{location}: NRRD has no voxels of type {dtype}; give another dtype, such as 'u1'"
        )
    lines = [
        "NRRD0005",
        f"type: {_TYPES[kind].partition(',')[0]}",
        f"dimension: {len(shape)}",
        f"sizes: {_joined(shape)}",
        f"encoding: {encoding}",
    ]
    if dtype.itemsize > 1:
        little = dtype.newbyteorder("<") == dtype
        lines.append(f"endian: {'little' if little else 'big'}")
    lines += _placing(metadata, len(shape))
    text = "".join([f"{line}\n" for line in lines]).encode("ascii", "replace")
    space = filler(len(text) + 1, 2) - 2
    return text + b"#" + b" " * space + b"\n\n"


def _placing(metadata: Mapping[str, Any], ndim: int) -> list[str]:
    """Return the lines of a header that tell where the voxels are, as far as known."""
    lines = []
    axes = _each(metadata.get("axes", ()), ndim, "")
    units = [unit or "" for unit in _each(metadata.get("units", ()), ndim, "")]
    own = metadata.get("space", "RAS")
    framed = in_space(metadata, ndim, own)
    if framed is not None:
        steps, origin = framed
        length = next(len(step) for step in steps if step)
        inside = [unit for unit, step in zip(units, steps, strict=True) if step]
        names = {short: name for name, short in _SPACES.items()}
        space = names.get(own, own if own in _OTHER_SPACES else None)
        known = "space" in metadata and space is not None
        lines.append(f"space: {space}" if known else f"space dimension: {length}")
        lines.append("space directions: " + " ".join(map(_text, steps)))
        lines.append("kinds: " + _joined("domain" if step else "list" for step in steps))
        if origin:
            lines.append(f"space origin: {_text(origin)}")
        if any(inside) and len(inside) == length:
            lines.append(f"space units: {_quoted(inside)}")
    else:
        spacing = axis_spacings(metadata, ndim)
        if any(spacing):
            lines.append("spacings: " + _joined("nan" if x is None else repr(x) for x in spacing))
        if any(units):
            lines.append(f"units: {_quoted(units)}")
    if any(axes):
        lines.append(f"labels: {_quoted(axes)}")
    return lines


def _joined(values: Iterable[Any]) -> str:
    return " ".join(map(str, values))


def _text(vector: Vector | None) -> str:
    return f"({','.join(map(repr, vector))})" if vector else "none"


def _quoted(texts: Iterable[str]) -> str:
    """Return texts as a header has them; those that would end a line or a quote lose that."""
    clean = [re.sub(r'[^ -~]|["\\]', "", text) for text in texts]
    return _joined(f'"{text}"' for text in clean)
