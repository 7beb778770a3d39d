"""Runs of many blocks over arrays that hold no voxels. Touches what an executor touches."""

import os
import sys
import time
from contextlib import nullcontext
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpublocks.bench.effort import tree_seconds
from gpublocks.bench.loading import load
from gpublocks.block_processing import process
from gpublocks.contracts import Array, CellDone, Event
from gpublocks.recorder import recording

__all__ = ["Computing", "Hollow", "HollowRun", "busy"]

BUSY_SECONDS = 1e-3

_VOXELS = 8
"""Of a block: as good as none."""
_WARM_CELLS = 64


class Hollow:
    """An array of zeros that takes no memory; what is written into it is gone.

    It says that it lies in a file, so that worker processes open it by themselves.

    Parameters
    ----------
    shape : tuple of int
    dtype : dtype
    location : str
        Path of something that exists, another one for each array.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, location: str) -> None:
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.ndim = len(shape)
        self.size = prod(shape)
        self.location = location

    def __getitem__(self, box: tuple[slice, ...]) -> npt.NDArray[Any]:
        lengths = [len(range(n)[part]) for part, n in zip(box, self.shape, strict=True)]
        return np.broadcast_to(np.zeros((), self.dtype), tuple(lengths))

    def __setitem__(self, box: Any, voxels: Any) -> None: ...


class HollowRun:
    """A run over so many blocks that do nothing.

    Parameters
    ----------
    folder : Path
    cells : int
        Number of blocks.
    executor : str
    workers : int
    function : str
        ``'module:name'`` of what is called for each block.
    recorded : bool
        Whether the run is recorded.
    """

    def __init__(
        self,
        folder: Path,
        *,
        cells: int,
        executor: str,
        workers: int,
        function: str = "numpy:positive",
        recorded: bool = False,
    ) -> None:
        self._folder = folder
        self._cells = cells
        self._options: dict[str, Any] = {"executor": executor, "processes": workers}
        self._function = load(function)
        self._recorded = recorded
        self._done = 0

    def prepare(self) -> None:
        """Start what an executor keeps."""
        self._run(_WARM_CELLS)

    def act(self) -> dict[str, float]:
        """Do it, timed."""
        self._done = 0
        watched = sys.platform == "linux"
        before = tree_seconds(os.getpid()) if watched else 0.0
        begun = time.perf_counter()
        self._run(self._cells)
        found = {"seconds": time.perf_counter() - begun}
        if watched:
            found["cpu_seconds"] = tree_seconds(os.getpid()) - before
        return found

    def check(self) -> None:
        """Compare the number of blocks that were done.

        Raises
        ------
        ValueError
            If it is another one.
        """
        if self._done != self._cells:
            raise ValueError(f"{self._done} blocks were done instead of {self._cells}")

    def _run(self, cells: int) -> None:
        source, sink = [
            Hollow((cells * _VOXELS,), np.uint8, place) for place in (os.devnull, str(self._folder))
        ]
        with recording() if self._recorded else nullcontext():
            process(
                self._function,
                source,
                sink,
                axes=[0],
                size_max=_VOXELS,
                overlap=0,
                progress=self._count,
                device="cpu",
                **self._options,
            )

    def _count(self, event: Event) -> None:
        self._done += isinstance(event, CellDone)


def busy(image: Array) -> Array:
    """Take a thousandth of a second of a processor, however many others want it."""
    end = time.thread_time() + BUSY_SECONDS
    while time.thread_time() < end:
        pass
    return image


class Computing:
    """A Gaussian over one block, in one thread: how fast a CPU computes.

    Parameters
    ----------
    folder : Path
    side : int
        Of the block, a cube of uint16.
    sigma : float
    """

    def __init__(self, folder: Path, *, side: int, sigma: float) -> None:
        random = np.random.default_rng(0)
        self._block = random.integers(0, 1000, (side,) * 3, np.uint16)
        self._sigma = sigma

    def prepare(self) -> None:
        """Import what it takes."""
        from scipy.ndimage import gaussian_filter

        gaussian_filter(self._block[:1], self._sigma)

    def act(self) -> dict[str, float]:
        """Do it, timed."""
        from scipy.ndimage import gaussian_filter

        begun = time.perf_counter()
        gaussian_filter(self._block, self._sigma)
        return {"seconds": time.perf_counter() - begun}

    def check(self) -> None:
        """Do nothing: other cases compare results."""
