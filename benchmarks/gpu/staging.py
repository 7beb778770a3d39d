"""Copying blocks out of volumes and into them, by several threads at once. Touches threads."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from benchmarks.gpu.lab import Lab
from benchmarks.gpu.pieces import Piece
from benchmarks.gpu.volumes import fill
from gpublocks import machine
from gpublocks.contracts import Array

__all__ = ["Copiers", "bytes_as", "copiers", "measure_threads", "thread_counts"]


class Copiers:
    """Threads that share each copy.

    Parameters
    ----------
    count : int
        How many parts a copy is made in, and threads there are.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = ThreadPoolExecutor(count)

    def copy(self, target: Array, source: Array) -> None:
        """Copy one array into another of the same shape."""
        parts = list(_parts(target.shape, self._count))
        if len(parts) == 1:
            np.copyto(target, source)
            return
        for _ in self._pool.map(lambda part: np.copyto(target[part], source[part]), parts):
            pass

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


@contextmanager
def copiers(count: int) -> Iterator[Copiers]:
    """Have threads for a while."""
    opened = Copiers(count)
    try:
        yield opened
    finally:
        opened.close()


def bytes_as(memory: Array, shape: Sequence[int], dtype: Any) -> Array:
    """Return the first of some bytes as an array in C order."""
    return np.ndarray(tuple(shape), dtype, memory)


def thread_counts(most: int | None = None) -> list[int]:
    """Return how many threads are tried: up to the CPUs of this process."""
    most = machine.cpu_count() if most is None else most
    return [count for count in (1, 2, 4, 8, 12, 16) if count <= most] or [1]


def measure_threads(lab: Lab, *, shape: Sequence[int], rounds: int) -> None:
    """Note the rates of gathering and scattering blocks with several numbers of threads.

    Blocks are whole slabs, and cubes of a third of each axis.
    """
    volume = np.empty(tuple(shape), np.uint16)
    fill(volume, 1)
    slab = (max(1, shape[0] // 12), *shape[1:])
    lab.note("shape", list(shape))
    for kind, block in (("slabs", slab), ("cubes", tuple(max(1, n // 3) for n in shape))):
        pieces = list(_tiled(shape, block))[:12]
        for count in thread_counts():
            path = f"{kind}/{count} threads"
            measure = partial(_gather_and_scatter, lab, path, volume, pieces, count, rounds)
            lab.attempt(path, measure, estimate=0.5)


def _gather_and_scatter(
    lab: Lab,
    path: str,
    volume: Array,
    pieces: Sequence[Piece],
    count: int,
    rounds: int,
) -> None:
    nbytes = sum(piece.read_size for piece in pieces) * volume.itemsize
    staging = np.ones(nbytes // len(pieces), np.uint8)
    with copiers(count) as threads:

        def gather() -> None:
            for piece in pieces:
                block = bytes_as(staging, piece.read_shape, volume.dtype)
                threads.copy(block, volume[piece.read])

        def scatter() -> None:
            for piece in pieces:
                block = bytes_as(staging, piece.read_shape, volume.dtype)
                threads.copy(volume[piece.read], block)

        gather()
        for name, step in (("gather", gather), ("scatter", scatter)):
            lab.note(f"{path}/{name}", {"seconds": lab.times(step, rounds), "bytes": nbytes})


def _tiled(shape: Sequence[int], block: Sequence[int]) -> Iterator[Piece]:
    """Yield the whole blocks that fit side by side, without halos."""
    crop = tuple(slice(0, side) for side in block)
    for index in np.ndindex(*[length // side for length, side in zip(shape, block, strict=True)]):
        place = tuple(slice(n * side, (n + 1) * side) for n, side in zip(index, block, strict=True))
        yield Piece(place, place, crop)


def _parts(shape: Sequence[int], count: int) -> Iterator[tuple[slice, ...]]:
    """Cut an array along the slowest axis that is long enough, else along the longest."""
    long = [axis for axis, length in enumerate(shape) if length >= count]
    axis = long[0] if long else int(np.argmax(shape))
    length = shape[axis]
    count = max(1, min(count, length))
    for n in range(count):
        part = slice(length * n // count, length * (n + 1) // count)
        yield (slice(None),) * axis + (part,)
