"""Voxels to stored bytes and back, by the codecs that an array names, in known memory. Pure.

The codecs are those of Zarr, by the names and parameters of its third format. What a box of voxels
takes is known before it is decoded, and no codec is given more room than that.
"""

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, Protocol

import numpy as np

from gpublocks.contracts import Array, DType

__all__ = ["Coding", "Sharding", "coding_of"]

Bytes = Any
"""Anything that shows its bytes as a buffer."""

MISSING = 2**64 - 1
"""What the index of a shard says of a box that is not stored."""


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


@dataclass(frozen=True, slots=True)
class Coding:
    """How a box of voxels is stored as bytes.

    Parameters
    ----------
    shape : tuple of int
        Of the box.
    dtype : dtype
        As it is stored, with its byte order.
    axes : tuple of int
        The axes of the box, slowest first as they are stored.
    steps : tuple of Step
        What is done to the bytes, in the order of encoding.
    """

    shape: tuple[int, ...]
    dtype: DType
    axes: tuple[int, ...]
    steps: tuple[Step, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the voxels."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def most(self) -> int:
        """Bytes that a box may take where it is stored; all codecs make little of it worse."""
        return self.nbytes + self.nbytes // 32 + (64 << 10)

    def encode(self, voxels: Array) -> Bytes:
        """Return a box of voxels as it is stored."""
        stored = np.ascontiguousarray(voxels.transpose(self.axes), self.dtype)
        data: Bytes = stored.reshape(-1).view(np.uint8)
        for step in self.steps:
            data = step.encode(data)
        return data

    def decode(self, data: Bytes, memory: Array) -> Array:
        """Return the voxels of a stored box: a view of `memory` or of `data`.

        Parameters
        ----------
        memory : ndarray of uint8
            As long as `nbytes`.

        Raises
        ------
        Exception
            If it is damaged, or has another size.
        """
        lengths = self._lengths()
        for number in reversed(range(len(self.steps))):
            into = memory if number == 0 else None
            data = self.steps[number].decode(data, lengths[number], into)
        plain = np.frombuffer(data, np.uint8)
        if plain.nbytes != self.nbytes:
            raise ValueError(f"it holds {plain.nbytes} bytes, not {self.nbytes}")
        shape = [self.shape[axis] for axis in self.axes]
        back = np.argsort(self.axes)
        voxels: Array = plain.view(self.dtype).reshape(shape).transpose(back)
        return voxels

    @property
    def is_bounded(self) -> bool:
        """Whether it is known how much memory each step takes."""
        known = zip(self.steps, self._lengths(), strict=True)
        return all(length is not None for step, length in known if not isinstance(step, _Checksum))

    def _lengths(self) -> list[int | None]:
        """Return how many bytes each step is given, where that is known."""
        given: list[int | None] = [self.nbytes]
        for step in self.steps:
            given.append(step.length(given[-1]))
        return given[:-1]


@dataclass(frozen=True, slots=True)
class Sharding:
    """How many boxes of voxels are stored as one piece, with an index of where each of them is.

    Parameters
    ----------
    inner : Coding
        Of each box.
    counts : tuple of int
        Boxes along each axis.
    first : bool
        Whether the index comes first, not last.
    checked : bool
        Whether it ends with a checksum.
    """

    inner: Coding
    counts: tuple[int, ...]
    first: bool
    checked: bool

    @property
    def index_bytes(self) -> int:
        """Bytes of the index."""
        return 16 * prod(self.counts) + 4 * self.checked

    def index(self, data: Bytes) -> Array:
        """Return offset and length of each box, as an array of shape ``(*counts, 2)``.

        Raises
        ------
        ValueError
            If it is damaged.
        """
        plain = _Checksum().decode(data, None, None) if self.checked else data
        return np.frombuffer(plain, "<u8").reshape(*self.counts, 2)

    def join(self, boxes: Sequence[Bytes | None]) -> list[Bytes]:
        """Return the parts of a shard: its boxes and the index. None is a box that is not stored.

        Parameters
        ----------
        boxes : sequence of bytes or None
            In C order.
        """
        table = np.full((len(boxes), 2), MISSING, "<u8")
        offset = self.index_bytes if self.first else 0
        for number, box in enumerate(boxes):
            if box is not None:
                length = memoryview(box).nbytes
                table[number] = offset, length
                offset += length
        index: Bytes = table.reshape(-1).view(np.uint8)
        index = _Checksum().encode(index) if self.checked else index
        stored = [box for box in boxes if box is not None]
        return [index, *stored] if self.first else [*stored, index]


@lru_cache(maxsize=64)
def coding_of(codecs: str, shape: tuple[int, ...], dtype: str) -> Coding | Sharding | None:
    """Return how boxes of a shape are stored; None for codecs that are not known here.

    Parameters
    ----------
    codecs : str
        The codecs of an array of Zarr 3, as JSON.
    shape : tuple of int
        Of the piece that is stored as one: a shard, where there are any.
    dtype : str
        Of a voxel, of any byte order.

    Examples
    --------
    >>> coding_of('[{"name": "bytes"}, {"name": "gzip"}]', (64, 64), "u1").most
    69760
    """
    listed = [(codec["name"], codec.get("configuration") or {}) for codec in json.loads(codecs)]
    if [name for name, _ in listed] == ["sharding_indexed"]:
        return _sharding(listed[0][1], shape, dtype)
    return _coding(listed, shape, np.dtype(dtype))


def _sharding(given: dict[str, Any], shape: tuple[int, ...], dtype: str) -> Sharding | None:
    box = tuple(given["chunk_shape"])
    inner = coding_of(json.dumps(given["codecs"]), box, dtype)
    index = [codec["name"] for codec in given["index_codecs"]]
    endian = [codec.get("configuration", {}).get("endian") for codec in given["index_codecs"]][:1]
    known = index in (["bytes"], ["bytes", "crc32c"]) and endian == ["little"]
    if not isinstance(inner, Coding) or not known or any(map(int.__mod__, shape, box)):
        return None
    return Sharding(
        inner,
        counts=tuple(map(int.__floordiv__, shape, box)),
        first=given.get("index_location", "end") == "start",
        checked=len(index) > 1,
    )


def _coding(
    listed: list[tuple[str, dict[str, Any]]], shape: tuple[int, ...], dtype: DType
) -> Coding | None:
    axes = tuple(range(len(shape)))
    while listed and listed[0][0] == "transpose":
        axes = tuple([axes[axis] for axis in listed[0][1]["order"]])
        listed = listed[1:]
    if not listed or listed[0][0] != "bytes":
        return None
    dtype = dtype.newbyteorder(">" if listed[0][1].get("endian") == "big" else "<")
    makers = [_MAKERS.get(name.removeprefix("numcodecs.")) for name, _ in listed[1:]]
    steps = tuple(
        [make(given) for make, (_, given) in zip(makers, listed[1:], strict=True) if make]
    )
    coding = Coding(shape, dtype, axes, steps)
    return coding if len(steps) == len(makers) and coding.is_bounded else None


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
        return self.codec.encode(np.frombuffer(data, f"V{self.itemsize}"))

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
        engine = zlib.decompressobj(self.window)
        plain = engine.decompress(data, length)
        more = engine.decompress(engine.unconsumed_tail, 1)
        if more or len(plain) != length or not engine.eof:
            raise ValueError(f"it does not hold {length} bytes")
        return plain


@dataclass(frozen=True, slots=True)
class _Checksum:
    """The codec crc32c."""

    def length(self, count: int | None) -> int | None:
        """Return four more."""
        return None if count is None else count + 4

    def encode(self, data: Bytes) -> Bytes:
        """Return the bytes as they are stored."""
        import google_crc32c

        plain = bytes(data)
        return plain + google_crc32c.value(plain).to_bytes(4, "little")

    def decode(self, data: Bytes, length: int | None, memory: Array | None) -> Bytes:
        """Return what was encoded: a view."""
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
    codec = Blosc(given.get("cname", "lz4"), given.get("clevel", 5), shuffle, given["blocksize"])
    return _Numcodec(codec, _blosc_length, given.get("typesize") or 1)


def _lz4(given: dict[str, Any]) -> Step:
    from numcodecs.lz4 import LZ4

    return _Numcodec(LZ4(given.get("acceleration", 1)), _lz4_length)


_MAKERS: dict[str, Callable[[dict[str, Any]], Step]] = {
    "blosc": _blosc,
    "crc32c": lambda given: _Checksum(),
    "gzip": lambda given: _Deflate(given.get("level", 1), 31),
    "lz4": _lz4,
    "zlib": lambda given: _Deflate(given.get("level", 1), 15),
    "zstd": _zstd,
}


def _zstd_length(data: memoryview) -> int | None:
    """Return the length in the header of a frame (RFC 8878, 3.1.1.1)."""
    if len(data) < 6 or bytes(data[:4]) != b"\x28\xb5\x2f\xfd":
        raise ValueError("it is no Zstandard frame")
    descriptor = data[4]
    single = descriptor >> 5 & 1
    size = [single, 2, 4, 8][descriptor >> 6]
    start = 6 - single + [0, 1, 2, 4][descriptor & 3]
    if not size:
        return None
    return int.from_bytes(data[start : start + size], "little") + (256 if size == 2 else 0)


def _blosc_length(data: memoryview) -> int:
    """Return the length in the header. One that is too long would be read beyond its end."""
    if len(data) < 16 or int.from_bytes(data[12:16], "little") != len(data):
        raise ValueError("it is no Blosc buffer of its length")
    return int.from_bytes(data[4:8], "little")


def _lz4_length(data: memoryview) -> int:
    return int.from_bytes(data[:4], "little")
