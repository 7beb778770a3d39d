"""Boxes of voxels in local folders, each of them a file. Touches local files.

They are read and written without the library of the format: in the thread that asks for it, with no
more memory than a box takes, and with errors that name the box.
"""

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from gpublocks import machine
from gpublocks.budget import format_bytes
from gpublocks.contracts import Array, DType, Order
from gpublocks.errors import SinkError, SourceError, line_of
from gpublocks.formats.files.confined import Confined, exactly
from gpublocks.formats.zarr.coding import MISSING, Coding, Sharding, coding_of
from gpublocks.geometry import Region, parts

__all__ = ["Store"]

_LARGE = 256 << 20
"""Boxes of so many bytes are decoded only where there is memory for one."""

Index = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Store:
    """Where and how the voxels of an array are stored.

    Parameters
    ----------
    path : str
        Folder, absolute and without symbolic links.
    shape : tuple of int
    dtype : dtype
        Of the voxels in memory.
    order : {'C', 'F'}
        Of the voxels in memory and in boxes.
    unit : tuple of int
        Voxels that are stored as one file, per axis.
    read_unit : tuple of int
        Voxels that are decoded as one piece: less than `unit` where files hold several pieces.
    fill : bytes
        The voxel that is meant where there is no file.
    key : (str, str)
        What names of files begin with, and what stands between their numbers.
    codecs : str
        See `gpublocks.formats.zarr.coding.coding_of`.
    """

    path: str
    shape: tuple[int, ...]
    dtype: DType
    order: Order
    unit: tuple[int, ...]
    read_unit: tuple[int, ...]
    fill: bytes
    key: tuple[str, str]
    codecs: str
    _folder: Confined = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_folder", Confined(self.path))

    def __reduce__(self) -> Any:
        state = (self.path, self.shape, self.dtype.str, self.order, self.unit, self.read_unit)
        return _received, (*state, self.fill, self.key, self.codecs)

    @property
    def coding(self) -> Coding | Sharding | None:
        """How a file is coded; None if only the library of the format knows that."""
        return coding_of(self.codecs, self.unit, self.dtype.str)

    def folders(self, most: int) -> list[str]:
        """Return the folders that files lie in, or that those lie in, so many at most."""
        first, between = self.key
        found = [os.path.join(self.path, first.rstrip("/"))] if between == "/" else [self.path]
        level = found if between == "/" else []
        for length, unit in list(zip(self.shape, self.unit, strict=True))[:-1]:
            count = -(-length // unit)
            if not level or len(found) + len(level) * count > most:
                break
            level = [os.path.join(above, str(n)) for above in level for n in range(count)]
            found += level
        return found

    def read(self, region: Region, out: Array) -> None:
        """Read a region into an array of its shape; each box is decoded once.

        Raises
        ------
        SourceError
            If a box is damaged, takes more memory than there is, or lies outside of the folder.
        """
        coding = self.coding
        assert coding is not None
        inner = coding.inner if isinstance(coding, Sharding) else coding
        memory = np.empty(self._room(inner.nbytes), np.uint8)
        for index, part in parts(region, self.unit):
            for start, data in self._stored(index, part, coding):
                box, place = _common(region, start, self.read_unit)
                if data is None:
                    out[place] = self._filling
                    continue
                try:
                    voxels = inner.decode(data, memory)
                except Exception as error:
                    raise self._damaged(start, index, error) from error
                np.copyto(out[place], voxels[box], casting="unsafe")

    def write(self, region: Region, array: Array) -> None:
        """Write an array to a region of its shape. Boxes that are not covered are read before.

        A file is complete or not there: it gets its name when it is written. Boxes that hold the
        filling voxel only are not stored.

        Raises
        ------
        SinkError
            If a file cannot be written.
        SourceError
            If a box that is covered in part is damaged.
        """
        coding = self.coding
        assert coding is not None
        for index, part in parts(region, self.unit):
            whole = self._box(index)
            voxels = array[part.within(region).slices].astype(self.dtype, copy=False)
            if part != whole:
                merged = np.empty(whole.shape, self.dtype, self.order)
                self.read(whole, merged)
                merged[part.within(whole).slices] = voxels
                voxels = merged
            self._put(index, self._encoded(voxels, coding))

    def _put(self, index: Index, encoded: list[Any]) -> None:
        try:
            self._folder.put(self._file(index), encoded)
        except SinkError as error:
            kind = "chunk" if self.unit == self.read_unit else "shard"
            told = f"{kind} {index}, {format_bytes(sum(memoryview(p).nbytes for p in encoded))}"
            if error.errno == errno.ENOSPC:
                told += f"; {format_bytes(shutil.disk_usage(self.path).free)} are free"
            raise SinkError(error.errno, f"{error.strerror or error} ({told})") from error

    def _encoded(self, voxels: Array, coding: Coding | Sharding) -> list[Any]:
        """Return the parts of a file that holds a box, or as much of it as lies in the array."""
        inner = coding.inner if isinstance(coding, Sharding) else coding
        boxes: list[Any] = []
        for start in product(*map(range, [0] * len(self.unit), self.unit, self.read_unit)):
            box = voxels[tuple(map(slice, start, map(int.__add__, start, self.read_unit)))]
            boxes.append(None if self._is_filling(box) else inner.encode(self._padded(box)))
        if all(box is None for box in boxes):
            return []
        return coding.join(boxes) if isinstance(coding, Sharding) else boxes

    def _padded(self, box: Array) -> Array:
        if box.shape == self.read_unit:
            return box
        full = np.full(self.read_unit, self._filling, self.dtype, self.order)
        full[tuple(map(slice, box.shape))] = box
        return full

    @property
    def _filling(self) -> Any:
        return np.frombuffer(self.fill, self.dtype)[0]

    def _is_filling(self, box: Array) -> bool:
        """Tell whether all voxels are the filling one, bit by bit: -0.0 is not 0.0."""
        if not box.size or self.dtype.kind == "c":
            return not box.size
        bits = f"u{self.dtype.itemsize}"
        filling = np.frombuffer(self.fill, bits)[0]
        first = box[(0,) * box.ndim]
        return bool(first.view(bits) == filling and (box.view(bits) == filling).all())

    def _box(self, index: tuple[int, ...]) -> Region:
        start = tuple(map(int.__mul__, index, self.unit))
        return Region(start, tuple(map(min, map(int.__add__, start, self.unit), self.shape)))

    def _file(self, index: tuple[int, ...]) -> str:
        first, between = self.key
        return os.path.join(self.path, first + between.join(map(str, index)))

    def _room(self, nbytes: int) -> int:
        if nbytes >= _LARGE and nbytes > machine.memory_available().bytes:
            raise SourceError(
                f"{self.path} is stored in chunks of {self.read_unit} voxels, each of "
                f"{format_bytes(nbytes)} of memory, and there is not as much; store it anew"
            )
        return nbytes

    def _stored(
        self, index: tuple[int, ...], part: Region, coding: Coding | Sharding
    ) -> Iterator[tuple[tuple[int, ...], Any]]:
        """Return where the pieces of a file start that a region touches, and their bytes."""
        path = self._file(index)
        origin = tuple(map(int.__mul__, index, self.unit))
        fd = self._folder.open(path)
        if fd is None:
            yield from ((_times(i, self.read_unit), None) for i, _ in parts(part, self.read_unit))
            return
        try:
            size = os.fstat(fd).st_size
            if isinstance(coding, Coding):
                yield origin, self._take(fd, (0, size), coding.most, origin, index)
                return
            table = self._index(fd, size, coding, index)
            for number, _ in parts(part, self.read_unit):
                start = _times(number, self.read_unit)
                within = map(int.__mod__, number, coding.counts)
                offset, length = map(int, table[tuple(within)])
                if offset == length == MISSING:
                    yield start, None
                elif offset + length > size:
                    raise self._damaged(start, index, ValueError("its shard is too short"))
                else:
                    yield start, self._take(fd, (offset, length), coding.inner.most, start, index)
        except SourceError:
            raise
        except OSError as error:
            raise SourceError(error.errno, f"cannot read {path}: {error.strerror}") from error
        finally:
            os.close(fd)

    def _index(self, fd: int, size: int, coding: Sharding, index: tuple[int, ...]) -> Array:
        nbytes = coding.index_bytes
        try:
            if size < nbytes:
                raise ValueError(f"it holds {size} bytes, its index alone takes {nbytes}")
            return coding.index(exactly(fd, 0 if coding.first else size - nbytes, nbytes))
        except ValueError as error:
            raise self._damaged(_times(index, self.unit), index, error) from error

    def _take(
        self, fd: int, place: tuple[int, int], most: int, start: Index, index: Index
    ) -> bytes:
        offset, length = place
        try:
            if length > most:
                raise ValueError(f"{length} bytes are stored, where at most {most} can be")
            return exactly(fd, offset, length)
        except ValueError as error:
            raise self._damaged(start, index, error) from error

    def _damaged(
        self, start: tuple[int, ...], index: tuple[int, ...], error: Exception
    ) -> SourceError:
        number = tuple([s // n for s, n in zip(start, self.read_unit, strict=True)])
        reason = line_of(error)
        return SourceError(
            f"chunk {number} of {self.path} is damaged: {reason} (file {self._file(index)})"
        )


def _common(
    region: Region, start: Sequence[int], unit: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return what a box and a region have in common, counted from either's start."""
    lows = list(map(max, region.start, start))
    highs = [min(hi, s + n) for hi, s, n in zip(region.stop, start, unit, strict=True)]
    box = [slice(lo - s, hi - s) for lo, hi, s in zip(lows, highs, start, strict=True)]
    place = [slice(lo - s, hi - s) for lo, hi, s in zip(lows, highs, region.start, strict=True)]
    return tuple(box), tuple(place)


def _times(index: Sequence[int], unit: Sequence[int]) -> tuple[int, ...]:
    return tuple([i * n for i, n in zip(index, unit, strict=True)])


def _received(*state: Any) -> Store:
    path, shape, dtype, *rest = state
    return Store(path, shape, np.dtype(dtype), *rest)
