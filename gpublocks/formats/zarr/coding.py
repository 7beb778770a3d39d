"""Voxels to stored bytes and back, by the codecs that an array names, in known memory. Pure.

The codecs are those of Zarr, by the names and parameters of its third format. What a box of voxels
takes is known before it is decoded.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from gpublocks.contracts import Array, DType
from gpublocks.formats.zarr.bytecodecs import Bytes, Checksum, Step, step_of
from gpublocks.formats.zarr.numberfilters import filter_of

__all__ = ["Coding", "Sharding", "coding_of"]

MISSING = 2**64 - 1
"""What the index of a shard says of a box that is not stored."""


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
        return all(length is not None for step, length in known if not isinstance(step, Checksum))

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
        plain = Checksum().decode(data, None, None) if self.checked else data
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
        index = Checksum().encode(index) if self.checked else index
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
    names = [name for name, _ in listed]
    if "bytes" not in names:
        return None
    first = names.index("bytes")
    dtype = dtype.newbyteorder(">" if listed[first][1].get("endian") == "big" else "<")
    if first and dtype.byteorder == ">":
        return None
    # What filters do to voxels in order they do to their bytes.
    listed = listed[:first] + listed[first + 1 :]
    found = [_step(name.removeprefix("numcodecs."), given, dtype) for name, given in listed]
    steps = tuple([step for step in found if step is not None])
    coding = Coding(shape, dtype, axes, steps)
    return coding if len(steps) == len(found) and coding.is_bounded else None


def _step(name: str, given: dict[str, Any], dtype: DType) -> Step | None:
    try:
        return step_of(name, given) or filter_of(name, given, dtype)
    except (KeyError, TypeError, ValueError):
        # Parameters that its library does not know either, as that will say.
        return None
