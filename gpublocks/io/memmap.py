"""NPY files, and arrays that NumPy mapped from files. Touches local files."""

import mmap
import os
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

import numpy as np

from gpublocks.contracts import Array, DType, Extent, Order
from gpublocks.errors import ArgumentTypeError, SourceError, line_of
from gpublocks.formats.files.mapping import Address, MappedSource, new_file
from gpublocks.formats.files.partial import check_target
from gpublocks.formats.files.paths import check_length, final_path, find_file
from gpublocks.voxels import byte_range, memory_order, single_units

__all__ = ["Mapped", "Sink", "Source", "find"]


@dataclass(frozen=True, slots=True)
class Mapped:
    """What is known of an array in memory that is mapped from a file.

    Parameters
    ----------
    extent : Extent
        The bytes of the file that it shows.
    address : Address or None
        For other processes to map it; None where they would not see the same voxels.
    """

    extent: Extent
    address: Address | None


def find(array: Array) -> Mapped | None:
    """Return which bytes of which file an array shows: a `numpy.memmap` or any view of one.

    None if it shows no file, or one that has no name any more.
    """
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    path = getattr(root, "filename", None)
    if not isinstance(root, np.memmap) or not isinstance(root.base, mmap.mmap) or path is None:
        return None
    path = os.path.realpath(path)
    start, stop = byte_range(array)
    if not os.path.isfile(path) or _is_deleted(root.__array_interface__["data"][0]):
        return None
    status = os.stat(path)
    file = (status.st_dev, status.st_ino)
    shift = root.offset - root.__array_interface__["data"][0] if array.size else 0
    extent = Extent(("file", *file), start + shift, stop + shift)
    if root.mode == "c" or not array.flags.forc:
        return Mapped(extent, None)
    order = memory_order(array)
    return Mapped(extent, Address(path, file, extent.start, array.shape, array.dtype, order))


def Source(location: str | os.PathLike[str], writable: bool = False) -> MappedSource:  # noqa: N802
    """Return the array in an NPY file, mapped into memory.

    Parameters
    ----------
    location : path
    writable : bool
        Whether the file is opened for writing.

    Raises
    ------
    SourceError
        If the file is missing, damaged, or not a plain NPY file.
    SinkError
        If it must not be written.
    """
    return MappedSource(_read_address(os.fspath(location), writable))


@dataclass(frozen=True, slots=True)
class Sink:
    """An NPY file that will be created when its shape and type are known.

    Until it is finished the file is called ``<name>.partial``.

    Parameters
    ----------
    location : path
    overwrite : bool
        Whether a file of that name may be replaced.
    """

    location: str
    overwrite: bool = False

    def __init__(self, location: str | os.PathLike[str], overwrite: bool = False) -> None:
        object.__setattr__(self, "location", final_path(location))
        object.__setattr__(self, "overwrite", overwrite)

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
    ) -> MappedSource:
        """Create the file, preallocated, under its partial name.

        Raises
        ------
        SinkError
            If it cannot be created, there is no room for it, or another run is writing it.
        ArgumentTypeError
            If `dtype` holds objects.
        """
        self.check()
        dtype = np.dtype(dtype)
        header = _header(shape, dtype, order)
        return new_file(self.location, header, tuple(shape), dtype, order, overwrite=self.overwrite)


def _read_address(location: str, writable: bool) -> Address:
    """Return where the voxels of an NPY file are."""
    path, status = find_file(location, "an NPY file", writable=writable)
    try:
        with open(path, "rb") as file:
            shape, order, dtype = _read_header(file, location)
            offset = file.tell()
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(error.errno, f"cannot read {location}: {error.strerror}") from error
    found = (status.st_dev, status.st_ino)
    address = Address(path, found, offset, shape, dtype, order, writable)
    check_length(location, status.st_size, offset, address.nbytes)
    return address


def _read_header(file: BinaryIO, location: str) -> tuple[tuple[int, ...], Order, DType]:
    start = file.read(8)
    file.seek(0)
    if start.startswith(b"PK\x03\x04"):
        raise SourceError(f"{location} is an archive; extract it and give one of its NPY files")
    if not start.startswith(b"\x93NUMPY"):
        what = f"starts with {start!r}" if start else "is empty"
        raise SourceError(f"{location} is not an NPY file ({what})")
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"version {version[0]}.{version[1]} is not supported; save it anew")
        if min(shape, default=0) < 0:
            raise ValueError(f"the shape is {shape}")
    except Exception as error:  # Damaged headers raise what the tokenizer and the parser do, too.
        reason = line_of(error)
        raise SourceError(f"{location} has no usable NPY header: {reason}") from error
    if dtype.hasobject:
        raise SourceError(f"{location} holds Python objects; object arrays are refused for safety")
    if not shape:
        raise SourceError(f"{location} holds a scalar (0 axes); give an array")
    return shape, "F" if fortran else "C", dtype


def _header(shape: tuple[int, ...], dtype: DType, order: Order) -> bytes:
    if dtype.hasobject:
        raise ArgumentTypeError(f"dtype {dtype} cannot be stored in an NPY file; use numbers")
    described = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": order == "F",
        "shape": tuple(shape),
    }
    file = BytesIO()
    np.lib.format.write_array_header_2_0(file, described)
    return file.getvalue()


def _is_deleted(address: int) -> bool:
    """Tell whether the file that is mapped at an address has lost its name (Linux)."""
    try:
        with open("/proc/self/maps") as maps:
            for line in maps:
                start, stop = line.split(" ", 1)[0].split("-")
                if int(start, 16) <= address < int(stop, 16):
                    return line.endswith(" (deleted)\n")
    except OSError:
        pass
    return False
