"""Files of voxels without any header. Touches local files."""

import operator
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpublocks.contracts import DType, Order
from gpublocks.errors import ArgumentTypeError, PlanError, SourceError
from gpublocks.formats.files.mapping import Address, MappedSource, new_file
from gpublocks.formats.files.partial import check_target
from gpublocks.formats.files.paths import check_length, final_path, find_file
from gpublocks.formats.headed.headers import array_shape
from gpublocks.voxels import single_units

__all__ = ["Sink", "Source"]

NAME = "Raw-Source"


def Source(  # noqa: N802
    location: str | os.PathLike[str],
    shape: int | Sequence[int] | None = None,
    dtype: npt.DTypeLike | None = None,
    order: Order = "C",
    offset: int = 0,
    *,
    writable: bool = False,
) -> MappedSource:
    """Return the array in a file without a header, mapped into memory.

    Parameters
    ----------
    location : path
    shape : int or sequence of int
        Voxels per axis.
    dtype : dtype
        Type of a voxel, its byte order included: ``'>u2'`` for big-endian 16 bit.
    order : {'C', 'F'}
        Memory order: 'F' if the first axis varies fastest, else 'C'.
    offset : int
        Bytes of the file before the voxels.
    writable : bool
        Whether the file is opened for writing.

    Raises
    ------
    SourceError
        If the file is missing or too short, or shape or dtype are not given.
    SinkError
        If it must not be written.
    PlanError, ArgumentTypeError
        If the other arguments describe no array.
    """
    location = os.fspath(location)
    path, status = find_file(location, "a file of voxels", writable=writable)
    if shape is None or dtype is None:
        raise SourceError(
            f"{location} has no header that tells its shape; "
            "use io.raw.Source(path, shape, dtype, order='C', offset=0), or --shape and --dtype "
            "on the command line"
        )
    lengths, kind = _lengths(shape), _dtype(dtype)
    if order not in ("C", "F"):
        raise PlanError(f"the order is {order!r}; give 'C' or 'F'")
    if operator.index(offset) < 0:
        raise PlanError(f"the offset is {offset}; give the bytes before the voxels, 0 or more")
    lengths = array_shape(location, lengths, kind)
    found = (status.st_dev, status.st_ino)
    address = Address(path, found, offset, lengths, kind, order, writable)
    check_length(location, status.st_size, offset, address.nbytes)
    return MappedSource(address, NAME)


@dataclass(frozen=True, slots=True)
class Sink:
    """A file of voxels, and nothing else, that will be created when shape and type are known.

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
        return new_file(
            self.location,
            b"",
            tuple(shape),
            _dtype(dtype),
            order,
            overwrite=self.overwrite,
            name=NAME,
        )


def _lengths(shape: int | Sequence[int]) -> tuple[int, ...]:
    try:
        lengths = [shape] if isinstance(shape, int | np.integer) else list(shape)
        return tuple([operator.index(n) for n in lengths])
    except TypeError as error:
        raise ArgumentTypeError(
            f"the shape is {shape!r}; give the number of voxels along each axis as integers"
        ) from error


def _dtype(given: npt.DTypeLike) -> DType:
    try:
        dtype = np.dtype(given)
    except TypeError as error:
        raise ArgumentTypeError(f"{given!r} is no type of NumPy's ({error}); try 'u2'") from error
    if dtype.hasobject or not dtype.itemsize:
        raise ArgumentTypeError(f"dtype {dtype} cannot lie in a file of voxels; use numbers")
    return dtype
