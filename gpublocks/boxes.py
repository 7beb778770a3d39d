"""Boxes of voxels in local folders, each of them a file. Touches local files.

They are read and written without the library of the format: in the thread that asks for it, with no
more memory than a box takes, and with errors that name the box.
"""

import errno
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, product
from typing import Any

import numpy as np

from gpublocks import machine
from gpublocks.budget import format_bytes
from gpublocks.coding import MISSING, Coding, Sharding, coding_of
from gpublocks.contracts import Array, DType, Order
from gpublocks.errors import SinkError, SourceError
from gpublocks.geometry import Region
from gpublocks.partial import partial_path

__all__ = ["Store", "parts"]

_LARGE = 256 << 20
"""Boxes of so many bytes are decoded only where there is memory for one."""

_number = count()

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
        See `gpublocks.coding.coding_of`.
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
    _safe: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __reduce__(self) -> Any:
        state = (self.path, self.shape, self.dtype.str, self.order, self.unit, self.read_unit)
        return _received, (*state, self.fill, self.key, self.codecs)

    @property
    def coding(self) -> Coding | Sharding | None:
        """How a file is coded; None if only the library of the format knows that."""
        return coding_of(self.codecs, self.unit, self.dtype.str)

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
            self._put(self._file(index), self._encoded(voxels, coding))

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
        fd = self._open(path)
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
            return coding.index(_exactly(fd, 0 if coding.first else size - nbytes, nbytes))
        except ValueError as error:
            raise self._damaged(_times(index, self.unit), index, error) from error

    def _take(
        self, fd: int, place: tuple[int, int], most: int, start: Index, index: Index
    ) -> bytes:
        offset, length = place
        try:
            if length > most:
                raise ValueError(f"{length} bytes are stored, where at most {most} can be")
            return _exactly(fd, offset, length)
        except ValueError as error:
            raise self._damaged(start, index, error) from error

    def _damaged(
        self, start: tuple[int, ...], index: tuple[int, ...], error: Exception
    ) -> SourceError:
        number = tuple([s // n for s, n in zip(start, self.read_unit, strict=True)])
        reason = str(error).partition("\n")[0] or type(error).__name__
        return SourceError(
            f"chunk {number} of {self.path} is damaged: {reason} (file {self._file(index)})"
        )

    def _open(self, path: str) -> int | None:
        """Open a file for reading, if there is one and it lies in the folder."""
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        # A pipe in place of a file would be waited for.
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        self._check_folder(path)
        try:
            try:
                fd = os.open(path, flags)
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.EMLINK):
                    raise
                fd = os.open(self._within(path), flags)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except SourceError:
            raise
        except OSError as error:
            raise SourceError(error.errno, f"cannot read {path}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise SourceError(f"{path} is a folder, device or pipe; files of chunks are plain ones")
        return fd

    def _check_folder(self, path: str) -> None:
        """Refuse a file in a folder to which a link leads out of the array."""
        folder = os.path.dirname(path)
        if folder not in self._safe:
            self._within(folder)
            self._safe.add(folder)

    def _within(self, path: str) -> str:
        found = os.path.realpath(path)
        if os.path.commonpath([found, self.path]) != self.path:
            raise SourceError(
                f"{path} is a link to {found}, outside of {self.path}; replace it by what it shows"
            )
        return found

    def _put(self, path: str, parts: Sequence[Any]) -> None:
        """Let a file hold these bytes; remove it if there are none."""
        partial = partial_path(f"{path}.{os.getpid()}-{threading.get_ident()}-{next(_number)}")
        try:
            self._check_folder(path)
            if not parts:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                return
            try:
                fd = os.open(partial, _NEW, 0o666)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                fd = os.open(partial, _NEW, 0o666)
            try:
                with open(fd, "wb", buffering=0) as file:
                    for part in parts:
                        _write(file, part)
                os.replace(partial, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(partial)
                raise
        except SourceError as error:
            raise SinkError(f"cannot write: {error}") from error
        except OSError as error:
            raise SinkError(error.errno, f"cannot write {path}: {error.strerror}") from error


_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
_NEW |= getattr(os, "O_CLOEXEC", 0)


def _write(file: Any, data: Any) -> None:
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[file.write(rest) :]


def _exactly(fd: int, offset: int, nbytes: int) -> bytes:
    os.lseek(fd, offset, os.SEEK_SET)
    data = os.read(fd, nbytes)
    # The system reads at most 2 GiB at a time.
    while len(data) < nbytes and (more := os.read(fd, nbytes - len(data))):
        data += more
    if len(data) < nbytes:
        raise ValueError("it became shorter while it was read")
    return data


def parts(region: Region, unit: Sequence[int]) -> Iterator[tuple[tuple[int, ...], Region]]:
    """Return the boxes of a lattice that a region touches: their numbers, and the common part."""
    if not region.size:
        return
    ranges = [
        [(n, (max(lo, n * u), min(hi, (n + 1) * u))) for n in range(lo // u, -(-hi // u))]
        for lo, hi, u in zip(region.start, region.stop, unit, strict=True)
    ]
    for axes in product(*ranges):
        start = tuple([lo for _, (lo, _) in axes])
        yield tuple([n for n, _ in axes]), Region(start, tuple([hi for _, (_, hi) in axes]))


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
