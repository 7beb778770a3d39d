"""Compressed bytes, read and written in pieces of bounded memory. Touches the files it is given."""

import bz2
import gzip
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Literal

import numpy as np

from gpublocks.contracts import Array
from gpublocks.errors import SinkError, SourceError

__all__ = ["Codec", "pieces", "write_gzip"]

Codec = Literal["gzip", "bz2", "zlib"]
"""How a stream is compressed; with 'zlib' it may be gzip's as well, as in MetaImage files."""

PIECE_BYTES = 1 << 20
LEVEL = 1
"""Of gzip, as nibabel writes: volumes of noise hardly get smaller above it, but slower."""


def pieces(file: BinaryIO, codec: Codec) -> Iterator[bytes]:
    """Yield what a file holds from here on, unpacked, at most a megabyte at a time.

    Raises
    ------
    SourceError
        If it is damaged or truncated.
    """
    try:
        if codec == "zlib":
            yield from _inflated(file)
        else:
            stream = gzip.GzipFile(fileobj=file) if codec == "gzip" else bz2.BZ2File(file)
            with stream:
                while piece := stream.read(PIECE_BYTES):
                    yield piece
    except (EOFError, OSError, zlib.error) as error:
        raise SourceError(f"{file.name} cannot be unpacked ({error}); it is damaged") from error


def write_gzip(path: str, array: Array, *, plain: bytes = b"", header: bytes = b"") -> None:
    """Write an array to a new file, compressed, in its memory order, and read the file back.

    Parameters
    ----------
    plain : bytes
        What the file begins with, as it is.
    header : bytes
        What is compressed along, before the voxels.

    Raises
    ------
    SinkError
        If what the file then holds is not that.
    """
    voxels = array.reshape(-1, order="A").view(np.uint8).data
    with open(path, "wb") as file:
        file.write(plain)
        with gzip.GzipFile("", "wb", LEVEL, file, mtime=0) as stream:
            stream.write(header)
            for start in range(0, len(voxels), PIECE_BYTES):
                stream.write(voxels[start : start + PIECE_BYTES])
    with open(path, "rb") as file:
        file.seek(len(plain))
        # The stream ends with a checksum of what went in, which reading it to its end checks.
        length = sum(map(len, pieces(file, "gzip")))
    if length != len(header) + len(voxels):
        raise SinkError(f"{path} holds {length} bytes of {len(header) + len(voxels)}")


def _inflated(file: BinaryIO) -> Iterator[bytes]:
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32)
    while not stream.eof:
        data = stream.unconsumed_tail or file.read(PIECE_BYTES)
        piece = stream.decompress(data, PIECE_BYTES)
        if not data and not piece and not stream.eof:
            raise EOFError("it ends in the middle")
        yield piece
