"""New images of several levels: coarser ones from blocks as they are written. Touches folders."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from gpublocks import machine
from gpublocks.concurrency import Threads
from gpublocks.contracts import Array, DType, Order
from gpublocks.crew import Crew
from gpublocks.dividing import pieces
from gpublocks.errors import SinkError
from gpublocks.formats.files.folder import PartialFolder, sync_files
from gpublocks.formats.files.mapping import MappedSource, new_file
from gpublocks.formats.files.metadata import coarser
from gpublocks.formats.zarr.pyramid import Method, coarser_tasks, factors_of, shrunk, task_bytes
from gpublocks.geometry import Region

__all__ = ["Halved", "NewLevel", "Pyramid", "averaging_bytes", "halve", "levels_of_new"]

_COMPLETING_BYTES = 64 << 20
"""Levels are completed in so many threads that these take no more together, if one takes less."""
_MEMORY_PART = 4
"""Nor more than this part of free memory."""
_PART_VOXELS = 1 << 16
"""Voxels of a block that are averaged at a time: their sums stay in the cache of a core."""


@dataclass(frozen=True, slots=True)
class NewLevel:
    """A level of an image that is to be made.

    Parameters
    ----------
    shape : tuple of int
    metadata : mapping
        Axes, spacing, units and translation.
    factors : tuple of int
        How many voxels of the level below become one along each axis: one or two.
    """

    shape: tuple[int, ...]
    metadata: Mapping[str, Any]
    factors: tuple[int, ...]


def levels_of_new(
    shape: tuple[int, ...],
    metadata: Mapping[str, Any],
    *,
    axes: Sequence[int],
    count: int,
    method: Method,
) -> list[NewLevel]:
    """Return the levels of a new image: so many, as long as there are voxels to be halved.

    Parameters
    ----------
    shape, metadata
        Of the finest one.
    axes : sequence of int
        Along which each level has half as many voxels as the one below it.
    """
    levels = [NewLevel(shape, metadata, (1,) * len(shape))]
    while len(levels) < count:
        below = levels[-1]
        factors = factors_of(below.shape, axes)
        if prod(factors) == 1:
            break
        halved = tuple([-(-n // f) for n, f in zip(below.shape, factors, strict=True)])
        told = coarser(below.metadata, factors, centred=method == "mean")
        levels.append(NewLevel(halved, told, factors))
    return levels


@dataclass(frozen=True, slots=True)
class Halved:
    """The second level of a new image, as plain voxels: made of blocks as they are written.

    Its chunks hold voxels of several blocks, and are made when these are all there. Voxels stand
    alone until then, so that many processes may write them. Pickles to its address.

    Parameters
    ----------
    voxels : MappedSource
        Those of the level.
    factors : tuple of int
        How many voxels of the finest level become one along each axis.
    method : {'mean', 'nearest'}
    """

    voxels: MappedSource
    factors: tuple[int, ...]
    method: Method

    def around(self, region: Region, shape: Sequence[int]) -> Region:
        """Return the voxels that are needed for all coarser ones that have a part in a region.

        That is the region itself where its borders are even.

        Parameters
        ----------
        shape : sequence of int
            Of the finest level.
        """
        starts = zip(region.start, self.factors, strict=True)
        stops = zip(region.stop, self.factors, shape, strict=True)
        return Region(
            tuple([lo // f * f for lo, f in starts]),
            tuple([min(-(-hi // f) * f, n) for hi, f, n in stops]),
        )

    def put(self, region: Region, array: Array) -> None:
        """Write the coarser voxels of a region which `around` has returned."""
        for part in pieces(region, _PART_VOXELS, self.voxels.order, self.factors):
            finer = array[part.within(region).slices].astype(self.voxels.dtype, copy=False)
            made = shrunk(finer, self.factors, self.method)
            start = tuple(map(int.__floordiv__, part.start, self.factors))
            self.voxels.write(Region(start, tuple(map(int.__add__, start, made.shape))), made)


def averaging_bytes(itemsize: int) -> int:
    """Return the most that `Halved.put` takes for voxels of so many bytes."""
    return 2 * _PART_VOXELS * (itemsize + 8)


def halve(
    folder: PartialFolder, level: NewLevel, dtype: DType, order: Order, method: Method
) -> Halved:
    """Create the plain voxels of the second level in the folder of an image.

    Raises
    ------
    SinkError
        If there is no room for them.
    """
    path = os.path.join(folder.path, "voxels")
    voxels = new_file(path, b"", level.shape, dtype, order, overwrite=True)
    return Halved(voxels, level.factors, method)


class Pyramid:
    """A new folder that holds an array, and coarser levels of it that are still to be made.

    Parameters
    ----------
    folder : PartialFolder
    coarser : sequence of (NewLevel, Sink)
        All levels but the finest one, the finer ones first.
    halved : Halved or None
        The voxels of the first of these, if there are any.
    """

    __slots__ = ("_coarser", "_folder", "_halved", "final")

    def __init__(
        self,
        folder: PartialFolder,
        coarser: Sequence[tuple[NewLevel, Any]] = (),
        halved: Halved | None = None,
    ) -> None:
        self.final = folder.final
        self._folder = folder
        self._coarser = coarser
        self._halved = halved

    def moved(self, path: str) -> str:
        """Return where something in the folder is when it has its final name."""
        return self.final + path.removeprefix(self._folder.path)

    def complete(self) -> None:
        """Make the coarser levels, and give the folder its name."""
        try:
            if self._halved is not None:
                self._make(self._halved)
                self._halved.voxels.abort()
            sync_files(self._folder.path, deep=False)
        except (OSError, MemoryError) as error:
            raise SinkError(
                getattr(error, "errno", None),
                f"cannot create {self.final}: {error}; the result is kept in {self._folder.path}",
            ) from error
        self._folder.rename()

    def _make(self, halved: Halved) -> None:
        """Make the second level of its voxels, the third one of these too, others of chunks."""
        finer: Any = halved.voxels
        for number, (level, sink) in enumerate(self._coarser):
            if number == 0:
                _fill(finer, sink, (1,) * len(level.shape), "nearest")
            else:
                _fill(finer, sink, level.factors, halved.method)
                finer = sink
            sink.sync()

    def drop(self) -> None:
        """Remove the folder."""
        if self._halved is not None:
            self._halved.voxels.abort()
        self._folder.remove()


def _fill(finer: Any, coarser: Any, factors: tuple[int, ...], method: Method) -> None:
    """Make a level from the one below it, in several threads."""
    free = machine.memory_available().bytes // _MEMORY_PART
    most = min(free, _COMPLETING_BYTES) // task_bytes(finer, coarser, factors)
    crew = Crew(max(1, min(machine.cpu_count(), most)), Threads())
    try:
        for tasks in coarser_tasks(finer, coarser, factors, method):
            crew.do(tasks)
    finally:
        crew.close()
