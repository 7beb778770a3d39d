"""NIfTI files: a binary header and voxels, plain or compressed. Touches local files.

Headers are read and written by nibabel.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from gpublocks.contracts import Array, DType, Order
from gpublocks.contracts import Sink as AnySink
from gpublocks.errors import SinkError, SourceError, line_of
from gpublocks.formats.files.compressed import Codec, pieces, write_gzip
from gpublocks.formats.files.mapping import MappedSource, new_file
from gpublocks.formats.files.metadata import arrangement
from gpublocks.formats.files.packing import PackedSink
from gpublocks.formats.files.partial import check_target
from gpublocks.formats.files.paths import final_path, find_file
from gpublocks.formats.headed.headers import array_shape, data_file, read_start
from gpublocks.formats.headed.placing import Vector, axis_spacings, in_space, placed, unit_name
from gpublocks.formats.headed.unpacking import UnpackedSource, open_voxels
from gpublocks.voxels import single_units

__all__ = ["Sink", "Source"]

NAME = "Nifti-Source"
HEADER_BYTES = 540
"""Of NIfTI-2; NIfTI-1 has 348."""

_LONGEST = 32767
"""Voxels along an axis that NIfTI-1 can tell."""
_MOST_AXES = 7
_AXES = "xyztuvw"
_UNITS = {"m": "meter", "mm": "mm", "um": "micron", "s": "sec", "ms": "msec", "us": "usec"}


def Source(  # noqa: N802
    location: str | os.PathLike[str], writable: bool = False, *, scaled: bool = True
) -> MappedSource | UnpackedSource:
    """Return the array in a NIfTI file: mapped, or unpacked when it is first read.

    Axes are in the order of nibabel, the first one fastest. `metadata` tells axes, spacing, units,
    and where the header has a transform, the directions and the origin in RAS space.

    A NIfTI header may say that voxels are to be scaled to be what they mean, and nibabel does that
    when it reads them. Here voxels are always given as they are stored. Where that would not be
    what they mean, the file is refused, unless `scaled` is False; `metadata` tells slope and
    intercept as ``scaling`` then.

    Parameters
    ----------
    location : path
        Of a ``.nii`` or ``.nii.gz`` file, or one of a pair of ``.hdr`` and ``.img``.
    writable : bool
        Whether the voxels may be written.
    scaled : bool
        Whether the voxels are to be what the header says that they mean.

    Raises
    ------
    SourceError
        If a file is missing, damaged or truncated, its voxels would have to be scaled, or nibabel
        is missing.
    SinkError
        If they must not be written, or are compressed.
    """
    location = os.fspath(location)
    pair = _pair(location)
    header, _ = find_file(pair[0] if pair else location, "a NIfTI file", writable=False)
    fields = _read_header(location, header)
    try:
        dtype, offset, scaling = _layout(fields)
        shape = array_shape(location, fields.get_data_shape(), dtype)
        metadata = _metadata(fields, shape, scaling)
    except SourceError:
        raise
    except Exception as error:  # Damaged headers raise whatever nibabel stumbles on.
        reason = line_of(error)
        raise SourceError(f"{location} has no usable NIfTI header: {reason}") from error
    if scaled and scaling != (1, 0):
        raise SourceError(
            f"{location} says that voxels mean {scaling[0]} * voxel + {scaling[1]}; scale them "
            "in the function, and give io.nifti.Source(path, scaled=False), or --as-stored on the "
            "command line, for them as stored"
        )
    if _is_single(fields):
        path, status = find_file(header, "a NIfTI file", writable=writable)
    elif pair:
        path, status = data_file(header, pair[1], writable=writable)
    else:
        raise SourceError(f"{location} has its voxels in an .img file; give that one")
    codec = _codec(path)
    return open_voxels(
        location,
        path,
        status,
        offset=0 if codec else offset,
        shape=shape,
        dtype=dtype,
        codec=codec,
        skip=offset if codec else 0,
        writable=writable,
        name=NAME,
        metadata=metadata,
    )


@dataclass(frozen=True, slots=True)
class Sink:
    """A NIfTI file that will be created when its shape and type are known.

    It is NIfTI-2 where an axis is too long for NIfTI-1. With the suffix ``.nii.gz`` it is
    compressed in one pass when all voxels are there. Until it is finished the file is called
    ``<name>.partial``. The first axis varies fastest in it, whatever the order of the source is.

    Parameters
    ----------
    location : path
    overwrite : bool
        Whether a file of that name may be replaced.
    metadata : mapping, optional
        What the header is to say of the voxels: the `metadata` of another source. Its scaling is
        not taken over, for new voxels need not mean what the old ones did.
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

    def arrangement(self, names: Sequence[str]) -> tuple[int, ...] | None:
        """Return in which order axes are as the format has them; None if they are, or have none."""
        return arrangement(names, "xyztc")

    @property
    def has_fixed_axes(self) -> bool:
        """Whether axes have these names, whatever they are called."""
        return True

    def check(self) -> None:
        """Raise `SinkError` if the file cannot be created. Creates nothing."""
        _nibabel(self.location, "writing", SinkError)
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
            If it cannot be created, there is no room for it, another run is writing it, or NIfTI
            has no such type or shape.
        """
        self.check()
        dtype, shape = np.dtype(dtype), tuple(shape)
        header = _header(self.location, shape, dtype, self.metadata or {})
        if not self.location.lower().endswith(".gz"):
            return new_file(
                self.location, header, shape, dtype, "F", overwrite=self.overwrite, name=NAME
            )

        def pack(array: Array, path: str) -> None:
            write_gzip(path, array, header=header)

        return PackedSink(
            self.location, shape, dtype, "F", pack=pack, name=NAME, overwrite=self.overwrite
        )


def _nibabel(location: str, doing: str, error: type[SourceError] | type[SinkError]) -> Any:
    try:
        import nibabel
    except ImportError as missing:
        raise error(
            f"{doing} {location} needs nibabel: pip install 'gpublocks[nifti]'"
        ) from missing
    return nibabel


def _pair(location: str) -> tuple[str, str] | None:
    """Return the path of the header and the name of the image, if there are two files."""
    packed = location[-3:] if location.lower().endswith(".gz") else ""
    stem, suffix = os.path.splitext(location.removesuffix(packed))
    if suffix.lower() not in (".hdr", ".img"):
        return None
    return f"{stem}.hdr{packed}", f"{os.path.basename(stem)}.img{packed}"


def _codec(path: str) -> Codec | None:
    return "gzip" if read_start(path, 2) == b"\x1f\x8b" else None


def _read_header(location: str, path: str) -> Any:
    """Return the header as nibabel has it."""
    nibabel = _nibabel(location, "reading", SourceError)
    start = read_start(path, HEADER_BYTES)
    if _codec(path):
        with open(path, "rb") as file:
            start = next(pieces(file, "gzip"), b"")[:HEADER_BYTES]
    for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        if kind.may_contain_header(start):
            # It is checked by what is made of it: nibabel would print what it finds.
            return kind(start[: kind.template_dtype.itemsize], check=False)
    what = f"starts with {start[:8]!r}" if start else "is empty"
    raise SourceError(f"{location} is not a NIfTI file ({what})")


def _is_single(header: Any) -> bool:
    return bool(header["magic"].item().startswith(b"n+"))


def _layout(header: Any) -> tuple[DType, int, tuple[float, float]]:
    """Return the type of a voxel, where in the file they begin, and how they are scaled."""
    dtype: DType = header.get_data_dtype()
    if not dtype.itemsize or dtype.hasobject:
        raise ValueError(f"its voxels are of type {header['datatype']}")
    if not header["dim"][0]:
        raise ValueError("it has no axes")
    offset = header.get_data_offset()
    least = header.template_dtype.itemsize if _is_single(header) else 0
    if offset < least:
        raise ValueError(f"its voxels begin at byte {offset}, before {least}")
    slope, inter = header.get_slope_inter()
    return dtype, offset, (1.0, 0.0) if slope is None else (slope, inter)


def _metadata(header: Any, shape: tuple[int, ...], scaling: tuple[float, float]) -> dict[str, Any]:
    spacing = [float(abs(x)) or None for x in header.get_zooms()]
    directions: list[Vector] = []
    origin: Vector = ()
    # Without these codes the transform is one that nibabel makes up.
    if header["sform_code"] or header["qform_code"]:
        affine = header.get_best_affine()
        if np.isfinite(affine).all():
            directions = [tuple(step) for step in affine[:3, :3].T.tolist()][: len(shape)]
            origin = tuple(affine[:3, 3].tolist())
    unit, time_unit = map(unit_name, header.get_xyzt_units())
    return placed(
        axes=_AXES[: len(shape)],
        spacing=spacing,
        units=[unit, unit, unit, time_unit][: len(shape)],
        space="RAS" if directions else None,
        directions=directions,
        origin=origin,
        scaling=scaling,
    )


def _header(
    location: str, shape: tuple[int, ...], dtype: DType, metadata: Mapping[str, Any]
) -> bytes:
    """Return the header of a new file."""
    nibabel = _nibabel(location, "writing", SinkError)
    if len(shape) > _MOST_AXES:
        raise SinkError(f"{location}: NIfTI has {_MOST_AXES} axes at most, not {len(shape)}")
    long = max(shape) > _LONGEST
    kind = nibabel.Nifti2Header if long else nibabel.Nifti1Header
    header = kind(endianness=">" if dtype.newbyteorder(">") == dtype else "<")
    try:
        header.set_data_dtype(dtype)
    except (nibabel.spatialimages.HeaderDataError, KeyError) as error:
        raise SinkError(
            f"{location}: NIfTI has no voxels of type {dtype}; give another dtype, such as 'u1'"
        ) from error
    header.set_data_shape(shape)
    header.set_zooms([step or 1.0 for step in axis_spacings(metadata, len(shape))])
    units = [_UNITS.get(unit) for unit in [*metadata.get("units", ()), None, None, None, None][:4]]
    header.set_xyzt_units(units[0], units[3])
    framed = in_space(metadata, len(shape), "RAS")
    if framed is not None and len(shape) >= 3:
        steps, origin = framed[0][:3], framed[1]
        affine = np.eye(4)
        if len(origin) == 3 and all(step and len(step) == 3 for step in steps):
            affine[:3, :3], affine[:3, 3] = np.array(steps).T, origin
            header.set_sform(affine, "aligned")
    file = BytesIO()
    header.write_to(file)
    return file.getvalue()
