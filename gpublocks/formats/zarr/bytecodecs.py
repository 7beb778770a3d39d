"""Codecs of bytes, which take no more memory than they are told. Pure.

They are those of Zarr, by the names and parameters of its third format.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from gpublocks.contracts import Array

__all__ = ["Bytes", "Checksum", "Step", "step_of"]

Bytes = Any
"""Anything that shows its bytes as a buffer."""


class Step(Protocol):
    """One codec of bytes."""

    def length(self, count: int | None) -> int | None:
        """Return how many bytes so many become; None where that is not known."""

    def encode(self, data: Bytes) -> Bytes:
        """Return the bytes as they are stored."""

    def decode(self, data: Bytes, length: int | None, memory: Array | None) -> Bytes:
        """Return what was encoded.

        Parameters
        ----------
        length : int or None
            How many bytes that must be, where it is known. No memory is taken for more.
        memory : ndarray of uint8, optional
            So many bytes, to be used for what is returned.

        Raises
        ------
        Exception
            If it is damaged, or has another length.
        """


def step_of(name: str, given: dict[str, Any]) -> Step | None:
    """Return a codec with its parameters; None if it is not known here."""
    make = _MAKERS.get(name)
    return make(given) if make is not None else None


@dataclass(frozen=True, slots=True)
class _Numcodec:
    """A codec of numcodecs, which writes into memory of a known size.

    Parameters
    ----------
    codec : object
    stated : callable
        Returns the length of what was encoded, as its header says; None if it does not.
    itemsize : int
        Bytes of the items that it is given.
    """

    codec: Any
    stated: Callable[[memoryview], int | None]
    itemsize: int = 1

    def length(self, count: int | None) -> None:
        """Return None."""

    def encode(self, data: Bytes) -> Bytes:
        """Return the bytes as they are stored."""
        whole = memoryview(data).nbytes % self.itemsize == 0
        return self.codec.encode(np.frombuffer(data, f"V{self.itemsize if whole else 1}"))

    def decode(self, data: Bytes, length: int | None, memory: Array | None) -> Bytes:
        """Return what was encoded."""
        assert length is not None
        stated = self.stated(memoryview(data))
        if stated not in (None, length):
            raise ValueError(f"it holds {stated} bytes, not {length}")
        out = np.empty(length, np.uint8) if memory is None else memory
        self.codec.decode(data, out)
        return out


@dataclass(frozen=True, slots=True)
class _Deflate:
    """The codecs gzip and zlib. Those of numcodecs know no limit."""

    level: int
    window: int

    def length(self, count: int | None) -> None:
        """Return None."""

    def encode(self, data: Bytes) -> Bytes:
        """Return the bytes as they are stored."""
        engine = zlib.compressobj(self.level, zlib.DEFLATED, self.window)
        return engine.compress(data) + engine.flush()

    def decode(self, data: Bytes, length: int | None, memory: Array | None) -> Bytes:
        """Return what was encoded."""
        assert length is not None
        return _streams(partial(zlib.decompressobj, self.window), data, length)


@dataclass(frozen=True, slots=True)
class _Stream:
    """The codecs bz2 and lzma. Those of numcodecs know no limit.

    Parameters
    ----------
    codec : object
        Of numcodecs, which encodes.
    engine : callable
        Returns a decompressor of Python's.
    """

    codec: Any
    engine: Callable[[], Any]

    def length(self, count: int | None) -> None:
        """Return None."""

    def encode(self, data: Bytes) -> Bytes:
        """Return the bytes as they are stored."""
        return self.codec.encode(data)

    def decode(self, data: Bytes, length: int | None, memory: Array | None) -> Bytes:
        """Return what was encoded."""
        assert length is not None
        return _streams(self.engine, data, length)


def _streams(engine: Callable[[], Any], data: Bytes, length: int) -> bytes:
    """Return what one stream holds, or several that follow each other, as some programs write them.

    Parameters
    ----------
    engine : callable
        Returns a decompressor of Python's.
    """
    parts: list[bytes] = []
    left, rest = length, bytes(data)
    while rest:
        stream = engine()
        try:
            # A byte more than there may be shows that there are more.
            parts.append(stream.decompress(rest, left + 1))
        except (OSError, lzma.LZMAError, zlib.error):
            if not parts:
                raise
            # What is behind the last stream is none.
            break
        left -= len(parts[-1])
        if left < 0 or not stream.eof:
            break
        rest = stream.unused_data
    if left or not stream.eof:
        raise ValueError(f"it does not hold {length} bytes")
    return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Checksum:
    """The codec crc32c, or another checksum of numcodecs.

    Parameters
    ----------
    codec : object, optional
        That of numcodecs.
    """

    codec: Any = None

    def length(self, count: int | None) -> int | None:
        """Return four more."""
        return None if count is None else count + 4

    def encode(self, data: Bytes) -> Bytes:
        """Return the bytes as they are stored."""
        if self.codec is not None:
            return self.codec.encode(np.frombuffer(data, np.uint8))
        import google_crc32c

        plain = bytes(data)
        return plain + google_crc32c.value(plain).to_bytes(4, "little")

    def decode(self, data: Bytes, length: int | None, memory: Array | None) -> Bytes:
        """Return what was encoded: a view."""
        if self.codec is not None:
            return self.codec.decode(np.frombuffer(data, np.uint8))
        import google_crc32c

        plain, check = memoryview(data)[:-4], memoryview(data)[-4:]
        if google_crc32c.value(bytes(plain)) != int.from_bytes(check, "little"):
            raise ValueError("its checksum is wrong")
        return plain


def _zstd(given: dict[str, Any]) -> Step:
    from numcodecs.zstd import Zstd

    return _Numcodec(Zstd(given.get("level", 0), bool(given.get("checksum"))), _zstd_length)


def _blosc(given: dict[str, Any]) -> Step:
    from numcodecs.blosc import Blosc

    shuffle = given.get("shuffle", "shuffle")
    if isinstance(shuffle, str):
        shuffle = ["noshuffle", "shuffle", "bitshuffle"].index(shuffle)
    codec = Blosc(
        given.get("cname", "lz4"), given.get("clevel", 5), shuffle, given.get("blocksize", 0)
    )
    return _Numcodec(codec, _blosc_length, given.get("typesize") or 1)


def _lz4(given: dict[str, Any]) -> Step:
    from numcodecs.lz4 import LZ4

    return _Numcodec(LZ4(given.get("acceleration", 1)), _lz4_length)


def _bz2(given: dict[str, Any]) -> Step:
    from numcodecs.bz2 import BZ2

    return _Stream(BZ2(**given), bz2.BZ2Decompressor)


def _lzma(given: dict[str, Any]) -> Step | None:
    from numcodecs.lzma import LZMA

    codec = LZMA(**given)
    if codec.format not in (lzma.FORMAT_XZ, lzma.FORMAT_ALONE):
        return None
    return _Stream(codec, partial(lzma.LZMADecompressor, codec.format, memlimit=_LZMA_BYTES))


def _checksum(name: str, given: dict[str, Any]) -> Step | None:
    from numcodecs.registry import codec_registry

    make = codec_registry.get(name)
    return None if make is None else Checksum(make(**given))


def _zstd_length(data: memoryview) -> int | None:
    """Return the length in the headers of all frames (RFC 8878, 3.1.1); None if one tells none."""
    total, place = 0, 0
    while place < len(data):
        magic = bytes(data[place : place + 4])
        if magic[1:] == b"\x2a\x4d\x18" and magic[0] >> 4 == 5:
            place += 8 + int.from_bytes(data[place + 4 : place + 8], "little")
            continue
        if len(data) < place + 6 or magic != b"\x28\xb5\x2f\xfd":
            raise ValueError("it is no Zstandard frame")
        descriptor = data[place + 4]
        single = descriptor >> 5 & 1
        size = [single, 2, 4, 8][descriptor >> 6]
        start = place + 6 - single + [0, 1, 2, 4][descriptor & 3]
        if not size:
            return None
        length = int.from_bytes(data[start : start + size], "little") + (256 if size == 2 else 0)
        total += length
        place = _end_of_blocks(data, start + size) + (4 if descriptor & 4 else 0)
    return total


def _end_of_blocks(data: memoryview, place: int) -> int:
    """Return where the blocks of a frame end (RFC 8878, 3.1.1.2)."""
    last = False
    while not last and place + 3 <= len(data):
        header = int.from_bytes(data[place : place + 3], "little")
        last = bool(header & 1)
        repeated = header >> 1 & 3 == 1
        place += 3 + (1 if repeated else header >> 3)
    return place


def _blosc_length(data: memoryview) -> int:
    """Return the length in the header. One that is too long would be read beyond its end."""
    if len(data) < 16 or int.from_bytes(data[12:16], "little") != len(data):
        raise ValueError("it is no Blosc buffer of its length")
    return int.from_bytes(data[4:8], "little")


def _lz4_length(data: memoryview) -> int:
    return int.from_bytes(data[:4], "little")


_LZMA_BYTES = 128 << 20
"""Memory of an engine of LZMA: a stream says how long its dictionary is, as a rule up to 64 MB."""

_CHECKSUMS = ("adler32", "crc32", "fletcher32", "jenkins_lookup3")

_MAKERS: dict[str, Callable[[dict[str, Any]], Step | None]] = {
    **{name: partial(_checksum, name) for name in _CHECKSUMS},
    "blosc": _blosc,
    "bz2": _bz2,
    "crc32c": lambda given: Checksum() if given.get("location", "end") == "end" else None,
    "gzip": lambda given: _Deflate(given.get("level", 1), 31),
    "lz4": _lz4,
    "lzma": _lzma,
    "zlib": lambda given: _Deflate(given.get("level", 1), 15),
    "zstd": _zstd,
}
