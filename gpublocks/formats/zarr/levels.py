"""New images of several levels: made level by level, complete under their name. Touches folders."""

from itertools import pairwise
from typing import Any

from gpublocks import machine
from gpublocks.concurrency import Threads
from gpublocks.crew import Crew
from gpublocks.errors import SinkError
from gpublocks.formats.files.folder import PartialFolder, sync_files
from gpublocks.formats.zarr.pyramid import Method, coarser_tasks, factors_of, task_bytes

__all__ = ["Pyramid"]

_MEMORY_PART = 4
"""Coarser levels are made in so many threads that they take at most this part of free memory."""


class Pyramid:
    """A new folder that holds an array, and coarser levels of it that are still to be made.

    Parameters
    ----------
    folder : PartialFolder
    levels : tuple of Sink
        From the finest on, all of them created.
    axes : tuple of int
        Along which a level has half as many voxels as the one before.
    method : {'mean', 'nearest'}
    """

    __slots__ = ("_axes", "_folder", "_levels", "_method", "final")

    def __init__(
        self,
        folder: PartialFolder,
        levels: tuple[Any, ...],
        axes: tuple[int, ...],
        method: Method,
    ) -> None:
        self.final = folder.final
        self._folder = folder
        self._levels = levels
        self._axes = axes
        self._method = method

    def moved(self, path: str) -> str:
        """Return where something in the folder is when it has its final name."""
        return self.final + path.removeprefix(self._folder.path)

    def complete(self) -> None:
        """Make the coarser levels, and give the folder its name."""
        try:
            for finer, coarser in pairwise(self._levels):
                _fill(finer, coarser, factors_of(finer.shape, self._axes), self._method)
                coarser.sync()
            sync_files(self._folder.path, deep=False)
        except (OSError, MemoryError) as error:
            raise SinkError(
                getattr(error, "errno", None),
                f"cannot create {self.final}: {error}; the result is kept in {self._folder.path}",
            ) from error
        self._folder.rename()

    def drop(self) -> None:
        """Remove the folder."""
        self._folder.remove()


def _fill(finer: Any, coarser: Any, factors: tuple[int, ...], method: Method) -> None:
    """Make a level from the one below it, in several threads."""
    free = machine.memory_available().bytes // _MEMORY_PART
    threads = min(machine.cpu_count(), free // task_bytes(finer, coarser))
    crew = Crew(max(1, threads), Threads())
    try:
        for tasks in coarser_tasks(finer, coarser, factors, method):
            crew.do(tasks)
    finally:
        crew.close()
