"""TIFF files: stacks, BigTIFF, ImageJ, OME-TIFF, and series of planes. Touches local files."""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from math import prod
from typing import Any

import numpy as np

from gpublocks import machine
from gpublocks.contracts import Array, DType, Order
from gpublocks.errors import ArgumentTypeError, SinkError, SourceError, line_of
from gpublocks.formats.files.mapping import Address, MappedSource
from gpublocks.formats.files.metadata import arrangement, of_part
from gpublocks.formats.files.packing import PackedSink
from gpublocks.formats.files.partial import check_target, create_partial, preallocate
from gpublocks.formats.files.paths import final_path, find_file
from gpublocks.formats.files.room import check_room
from gpublocks.formats.tiff.calibration import along_files
from gpublocks.formats.tiff.directories import count_pages
from gpublocks.formats.tiff.filing import PlanesSink, check_planes
from gpublocks.formats.tiff.paged import PagedAddress, PagedSource, Pages
from gpublocks.formats.tiff.planes import Numbering, has_placeholder, is_pattern
from gpublocks.formats.tiff.series import SeriesSource
from gpublocks.formats.tiff.stacks import Stack, find_stack
from gpublocks.formats.tiff.styles import Style, style_of

__all__ = ["Sink", "Source", "wrap"]

NAME = "Tiff-Source"
SERIES = "Tiff-Series-Source"

_OME_TYPES = ("i1", "i2", "i4", "u1", "u2", "u4", "f4", "f8", "c8", "c16")

_OWN_PAGES = {"is_ome": False, "is_mmstack": False, "is_ndtiff": False}
"""Tells tifffile to take a file of a set for itself."""


def Source(  # noqa: N802
    location: str | os.PathLike[str], series: int = 0, level: int = 0, writable: bool = False
) -> MappedSource | PagedSource | SeriesSource:
    """Return the array in a TIFF file, or in a series of them.

    Voxels that lie in the file one after the other, as they are, are mapped into memory. Of
    others only the strips and tiles that a region touches are decoded.

    Parameters
    ----------
    location : path
        A file; or several: with a placeholder for their number, as in ``'img_Z<Z,4>.tif'`` (four
        digits; each placeholder is an axis), or with wildcards, as in ``'planes/*.tif'`` (one axis,
        sorted by the numbers in their names).
    series : int
        Which image of a file that has several.
    level : int
        Which resolution of it; 0 is the finest.
    writable : bool
        Whether the file is opened for writing, in place.

    Returns
    -------
    MappedSource, PagedSource or SeriesSource
        ``metadata`` of it tells ``axes``, ``scale`` and ``unit``, as far as they are known.

    Raises
    ------
    SourceError
        If it is missing, damaged, truncated, or not as tifffile can read it.
    SinkError
        If it must not, or cannot, be written in place.
    """
    location = os.fspath(location)
    if not is_pattern(location):
        return _open(location, series, level, writable=writable)
    if writable:
        raise SinkError(f"{location} names several files, which are not written in place")
    path = final_path(location)
    source = SeriesSource(path, partial(_member, series=series, level=level), SERIES)
    names = Numbering(path).names if has_placeholder(path) else ("",)
    source.metadata = along_files(names, source.metadata, len(source.shape))
    return source


def wrap(x: Any) -> MappedSource | PagedSource:
    """Return the source of a `tifffile.TiffFile`, or of a series of one.

    Raises
    ------
    ArgumentTypeError
        If it is another object of tifffile, or not of a local file.
    """
    kind = type(x).__name__
    if kind == "TiffFile":
        return _open(x.filehandle.path, 0, 0)
    if kind == "TiffPageSeries" and x.parent is not None:
        for number, series in enumerate(x.parent.series):
            for level, one in enumerate(series.levels):
                if one is x:
                    return _open(x.parent.filehandle.path, number, level)
    raise ArgumentTypeError(f"a tifffile.{kind} is no source; give a TiffFile, a series, or a path")


@dataclass(frozen=True, slots=True)
class Sink:
    """A TIFF file that will be created when its shape and type are known, or a series of them.

    Without compression it is contiguous, and any process writes into it; one of ``bool`` holds
    ``uint8``. Until it is finished the file is called ``<name>.partial``.

    Parameters
    ----------
    location : path
        With placeholders, as in ``'planes/img_Z<Z,4>.tif'``, each plane becomes a file: the first
        axes count them, and the folder is new.
    compression : str, optional
        ``'zlib'``, ``'zstd'``, ``'lzw'``, or another one of tifffile's.
    ome : bool
        Whether to write OME-XML, as to files called ``.ome.tif``.
    bigtiff : bool, optional
        Whether to write BigTIFF; by default where the file is too large for others.
    metadata : mapping, optional
        ``axes``, ``scale`` and ``unit``, as the `metadata` of a source.
    overwrite : bool
        Whether a file of that name may be replaced.
    """

    location: str
    compression: str | None = None
    ome: bool = False
    bigtiff: bool | None = None
    metadata: Mapping[str, Any] | None = None
    overwrite: bool = False

    def __init__(
        self,
        location: str | os.PathLike[str],
        compression: str | None = None,
        ome: bool = False,
        bigtiff: bool | None = None,
        metadata: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        path = final_path(location)
        named = os.path.basename(path).lower()
        given = {
            "location": path,
            "compression": compression or None,
            "ome": ome or named.endswith((".ome.tif", ".ome.tiff", ".ome.btf")),
            "bigtiff": True if bigtiff is None and named.endswith(".btf") else bigtiff,
            "metadata": metadata,
            "overwrite": overwrite,
        }
        for key, value in given.items():
            object.__setattr__(self, key, value)

    def arrangement(self, names: Sequence[str]) -> tuple[int, ...] | None:
        """Return in which order axes are as the format has them; None if they are, or have none."""
        # Colours side by side stay where they are.
        coloured = tuple(names[-3:]) == ("y", "x", "c")
        return None if coloured else arrangement(names, "tczyx" if self.ome else "tzcyx")

    @property
    def has_fixed_axes(self) -> bool:
        """Whether axes have these names, whatever they are called."""
        return self.ome

    def check(self) -> None:
        """Raise `SinkError` if the file cannot be created. Creates nothing."""
        library = _tifffile("writing", SinkError)
        if self.compression is not None:
            _check_compression(library, self.compression)
        if has_placeholder(self.location):
            check_planes(self.location, overwrite=self.overwrite)
            return
        if is_pattern(self.location):
            raise SinkError(
                f"cannot create {self.location}: number files by a placeholder such as <Z,4>"
            )
        check_target(self.location, overwrite=self.overwrite)

    def units(self, shape: tuple[int, ...], dtype: DType) -> list[tuple[int, ...]]:
        """Return ones, since voxels stand alone; or whole planes, where each is a file."""
        count = self._numbered(len(shape))
        return [(1,) * count + tuple(shape[count:]) if count else (1,) * len(shape)]

    def encoding_bytes(self, unit: tuple[int, ...], itemsize: int) -> int:
        """Return what a writer takes: a plane before it is encoded, and after."""
        return 2 * prod(unit) * itemsize if has_placeholder(self.location) else 0

    def create(
        self,
        shape: tuple[int, ...],
        dtype: DType,
        order: Order,
        unit: tuple[int, ...] | None = None,
    ) -> MappedSource | PackedSink | PlanesSink:
        """Create the file or the folder, under a partial name. Its voxels are in C order.

        Raises
        ------
        SinkError
            If it cannot be created, there is no room for it, another run is writing it, or TIFF
            cannot hold such an array.
        PlanError
            If `metadata` are not of so many axes.
        """
        self.check()
        shape = tuple(shape)
        dtype = np.dtype(np.uint8) if dtype == np.bool_ else np.dtype(dtype)
        if dtype.kind not in "iufc" or dtype.itemsize // (1 + (dtype.kind == "c")) > 8:
            raise SinkError(
                f"cannot create {self.location}: TIFF has no voxels of type {dtype}; "
                "use another dtype="
            )
        known = dtype.newbyteorder("=").str[1:] in _OME_TYPES
        if self.ome and (not known or 0 in shape):
            raise SinkError(
                f"cannot create {self.location}: OME-TIFF has no voxels of type {dtype}, and no "
                "empty images; use another dtype=, or a name without '.ome'"
            )
        count = self._numbered(len(shape))
        style = self._style(shape, dtype, count)
        if self.compression is not None:
            _check_style(self.location, shape, dtype, style)
        if count:
            return PlanesSink(
                self.location,
                shape,
                dtype,
                save=partial(_save, style=style),
                open_file=_member,
                name=SERIES,
                overwrite=self.overwrite,
                compressed=self.compression is not None,
            )
        if self.compression is None:
            return _create(self.location, shape, dtype, style, overwrite=self.overwrite)
        return PackedSink(
            self.location,
            shape,
            dtype,
            "C",
            pack=partial(_save, style=style, threads=machine.cpu_count()),
            name=NAME,
            overwrite=self.overwrite,
        )

    def _numbered(self, ndim: int) -> int:
        """Return how many axes are counted by the names of files."""
        names = Numbering(self.location).names
        if names and len(names) >= ndim:
            raise SinkError(
                f"{self.location} numbers files along {len(names)} axes, and there are {ndim}; "
                "leave one at least for what is in a file"
            )
        return len(names)

    def _style(self, shape: tuple[int, ...], dtype: DType, count: int) -> Style:
        """Return how an array is written, or what is left of it behind its first axes."""
        metadata = self.metadata or {}
        if count:
            part = (0,) * count + (slice(None),) * (len(shape) - count)
            metadata = of_part(metadata, part, len(shape))
        return style_of(
            self.location,
            shape[count:],
            dtype,
            metadata,
            compression=self.compression,
            ome=self.ome,
            bigtiff=self.bigtiff,
        )


def _open(
    location: str, series: int, level: int, *, writable: bool = False
) -> MappedSource | PagedSource:
    path, status = find_file(location, "a TIFF file", writable=writable)
    file = (status.st_dev, status.st_ino)
    found = _look(location, path, file, series, level)
    if writable and found.pages is not None:
        raise SinkError(
            f"{location} is compressed, or its planes do not lie one after the other, so that it "
            "cannot be written in place; give a new file, or io.tiff.Sink(path, overwrite=True)"
        )
    return _as_source(found, path, file, (series, level, False), writable=writable)


def _member(path: str, series: int = 0, level: int = 0) -> MappedSource | PagedSource:
    """Return the source of one file of a series, which may not be complete without the others."""
    path, status = find_file(path, "a TIFF file", writable=False)
    file = (status.st_dev, status.st_ino)
    try:
        own, found = False, _look(path, path, file, series, level)
    except SourceError:
        own, found = True, _look(path, path, file, series, level, own=True)
    return _as_source(found, path, file, (series, level, own))


def _as_source(
    found: Stack,
    path: str,
    file: tuple[int, int],
    choice: tuple[int, int, bool],
    *,
    writable: bool = False,
) -> MappedSource | PagedSource:
    if found.pages is None:
        address = Address(path, file, found.offset, found.shape, found.dtype, "C", writable)
        return MappedSource(address, NAME, metadata=found.metadata)
    paged = PagedAddress(path, file, choice, found.shape, found.dtype, found.unit)
    return PagedSource(paged, _load, NAME, found.metadata, found.pages)


def _load(address: PagedAddress) -> Pages:
    """Look through a file in another process than that which opened it."""
    series, level, own = address.choice
    found = _look(address.path, address.path, address.file, series, level, own=own)
    if (found.shape, found.dtype) != (address.shape, address.dtype) or found.pages is None:
        raise SourceError(f"{address.path} was changed since it was opened; start again")
    return found.pages


def _look(
    location: str,
    path: str,
    file: tuple[int, int],
    series: int,
    level: int,
    *,
    own: bool = False,
) -> Stack:
    """Look through a file, without reading voxels.

    Parameters
    ----------
    file : (int, int)
        Device and inode that it must have.
    own : bool
        Whether to take its pages only, whatever it says of others.
    """
    library = _tifffile("reading", SourceError)
    try:
        with open(path, "rb") as raw, _quiet():
            status = os.fstat(raw.fileno())
            if (status.st_dev, status.st_ino) != file:
                raise SourceError(f"{path} was replaced by another file; start again")
            pages = count_pages(raw, status.st_size)
            raw.seek(0)
            flags = _OWN_PAGES if own else {}
            with library.TiffFile(raw, _multifile=False, **flags) as tif:
                found = find_stack(
                    tif,
                    location,
                    series=series,
                    level=level,
                    pages=pages,
                    nbytes=status.st_size,
                )
        if found.pages is not None and found.pages.decode is not None:
            _check_codecs("reading", SourceError)
        return found
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(error.errno, f"cannot read {location}: {error.strerror}") from error
    except Exception as error:  # Damaged files raise whatever tifffile comes upon.
        reason = line_of(error)
        raise SourceError(f"{location} is no usable TIFF file: {reason}") from error


def _create(
    location: str, shape: tuple[int, ...], dtype: DType, style: Style, *, overwrite: bool
) -> MappedSource:
    """Create a file under its partial name, with all but its voxels, and room for them."""
    nbytes = prod(shape) * dtype.itemsize
    check_room(location, nbytes)
    under_way = create_partial(location, 0, b"", overwrite=overwrite)
    try:
        with open(under_way.path, "r+b") as file:
            with _writer(file, style, nbytes) as tif:
                place = tif.write(shape=shape, dtype=dtype, returnoffset=True, **style.options)
            file.flush()
            preallocate(file.fileno(), os.fstat(file.fileno()).st_size)
    except BaseException as error:
        under_way.remove()
        if not isinstance(error, Exception):
            raise
        raise SinkError(f"cannot create {location}: {error}") from error
    offset = place[0] if nbytes else 0
    address = Address(under_way.path, under_way.file, offset, shape, dtype, "C", writable=True)
    return MappedSource(address, NAME, partial=under_way)


def _save(array: Array, path: str, style: Style, threads: int = 1) -> None:
    """Write an array to a new file, and make sure that it is what can be read of it."""
    with _writer(path, style, array.size) as tif:
        tif.write(array, maxworkers=threads, **style.options)
    again = _member(path)
    longer = [[n for n in shape if n > 1] for shape in (again.shape, array.shape)]
    types = [dtype.newbyteorder("=") for dtype in (again.dtype, array.dtype)]
    if array.size and (longer[0] != longer[1] or types[0] != types[1]):
        raise SinkError(f"{again!r} was read again of {array.shape} {array.dtype}")


def _check_style(location: str, shape: tuple[int, ...], dtype: DType, style: Style) -> None:
    """Raise `SinkError` if a compression does not take such voxels, by a small image of them."""
    small = np.zeros((16, 16, *shape[-1:][: "planarconfig" in style.options]), dtype)
    kept = ("photometric", "planarconfig", "compression")
    options = {key: style.options[key] for key in kept if key in style.options}
    try:
        with _writer(BytesIO(), Style({"ome": False}, {}), small.size) as tif:
            tif.write(small, **options)
    except Exception as error:
        raise SinkError(
            f"cannot create {location}: compression={options['compression']!r} takes no {dtype} "
            f"({error}); use 'zlib' or 'zstd'"
        ) from error


def _check_compression(library: Any, name: str) -> None:
    _check_codecs("writing", SinkError)
    if name.upper() != "ZLIB" and name.upper() not in library.COMPRESSION.__members__:
        raise SinkError(f"compression {name!r} is not known; use 'zlib', 'zstd' or 'lzw'")


def _tifffile(action: str, kind: type[OSError]) -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise kind(f"{action} .tif needs tifffile: pip install 'gpublocks[tiff]'") from error
    return tifffile


def _check_codecs(action: str, kind: type[OSError]) -> None:
    # Without it tifffile unpacks some formats by itself, and does not limit what comes of them.
    try:
        import imagecodecs  # noqa: F401
    except ImportError as error:
        raise kind(
            f"{action} compressed .tif needs imagecodecs: pip install 'gpublocks[tiff]'"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what tifffile logs from the terminal; who has set up logging still gets it."""
    logger, handler = logging.getLogger("tifffile"), logging.NullHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def _writer(file: Any, style: Style, size: int) -> Iterator[Any]:
    """Open a new file with tifffile, for an array of so many voxels."""
    with _quiet(), warnings.catch_warnings() if not size else nullcontext():
        if not size:
            warnings.filterwarnings("ignore", "(?s).*zero-size array")
        with _tifffile("writing", SinkError).TiffWriter(file, **style.opened) as tif:
            yield tif
