"""What formats with a small header have in common: reading it, and finding the voxels it names.

Touches local files.
"""

import os
from collections.abc import Sequence
from math import prod

from gpublocks.contracts import DType
from gpublocks.errors import SourceError
from gpublocks.formats.files.paths import find_file

__all__ = ["array_shape", "data_file", "filler", "read_start", "skip_lines"]

ALIGNMENT = 64
"""At which bytes voxels of new files begin: NumPy and GPUs copy aligned numbers faster."""

_MOST_AXES = 32
"""As NumPy 1.26 has it."""

_LINE_BYTES = 1 << 16


def read_start(path: str, nbytes: int) -> bytes:
    """Return the first bytes of a file, or all of a shorter one.

    Raises
    ------
    SourceError
        If it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read(nbytes)
    except OSError as error:
        raise SourceError(error.errno, f"cannot read {path}: {error.strerror}") from error


def array_shape(location: str, lengths: Sequence[int], dtype: DType) -> tuple[int, ...]:
    """Return the shape of an array that is said to be in a file.

    Raises
    ------
    SourceError
        If there can be no such array.
    """
    shape = tuple([int(n) for n in lengths])
    if not 0 < len(shape) <= _MOST_AXES or min(shape) < 0:
        raise SourceError(f"{location} cannot hold an array of shape {shape[:8]}")
    if prod(max(n, 1) for n in shape) * dtype.itemsize >= 1 << 63:
        raise SourceError(f"{location} cannot hold an array of shape {shape}, which is too large")
    return shape


def data_file(header: str, name: str, *, writable: bool) -> tuple[str, os.stat_result]:
    """Return the path of the file that a header names, and its status.

    Parameters
    ----------
    header : str
        Path of the header, without symbolic links.
    name : str
        As it stands in the header.

    Raises
    ------
    SourceError
        If there is no such file, or it is not in the header's folder or one below it.
    SinkError
        If it must not be written.
    """
    folder = os.path.dirname(header)
    try:
        path = os.path.realpath(os.path.join(folder, name))
        inside = os.path.commonpath([folder, path]) == folder
    except ValueError:
        inside = False
    if not inside:
        raise SourceError(
            f"{header} names {name!r} as its voxels, which is not in its folder; move it there"
        )
    return find_file(path, "the file of voxels", writable=writable)


def skip_lines(path: str, offset: int, lines: int) -> int:
    """Return where in a file a number of lines end that begin at an offset.

    Raises
    ------
    SourceError
        If the file has fewer lines, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            for _ in range(lines):
                while not (part := file.readline(_LINE_BYTES)).endswith(b"\n"):
                    if not part:
                        raise SourceError(f"{path} has fewer than {lines} lines to skip")
            return file.tell()
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(error.errno, f"cannot read {path}: {error.strerror}") from error


def filler(length: int, smallest: int) -> int:
    """Return how many bytes, `smallest` or more, align what follows `length` bytes of a header."""
    return smallest + -(length + smallest) % ALIGNMENT
