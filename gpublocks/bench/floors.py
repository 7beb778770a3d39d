"""What this machine can do at best: copy memory, write and read a disk. Touches one file."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

__all__ = ["Floors"]

_PIECE = 8 << 20
_TURNS = 3
"""So often memory is copied; the best counts: what else the machine does can only slow it."""


class Floors:
    """Rates that bound any run.

    Parameters
    ----------
    folder : Path
        On the disk that is measured.
    nbytes : int
        How much is moved; more than the caches hold.
    threads : int
        Copy memory at once.
    """

    def __init__(self, folder: Path, *, nbytes: int, threads: int) -> None:
        self._path = folder / "floors.bin"
        self._pieces = max(1, nbytes // _PIECE)
        self._threads = threads

    def prepare(self) -> None:
        """Do nothing."""

    def check(self) -> None:
        """Do nothing."""

    def act(self) -> dict[str, float]:
        """Measure.

        Returns
        -------
        dict
            ``copied_per_second``: bytes that are copied from memory to memory, each read once and
            written once. ``written_per_second``: bytes written to the disk and synced;
            ``read_per_second``: bytes read from it, if the system can be told to forget a file.
        """
        found = {"copied_per_second": self._copy()}
        voxels = np.random.default_rng(0).bytes(_PIECE)
        begun = time.perf_counter()
        with self._path.open("wb", buffering=0) as file:
            for _ in range(self._pieces):
                file.write(voxels)
            os.fsync(file.fileno())
        found["written_per_second"] = self._rate(begun)
        if hasattr(os, "posix_fadvise"):
            with self._path.open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                begun = time.perf_counter()
                while file.read(_PIECE):
                    pass
            found["read_per_second"] = self._rate(begun)
        self._path.unlink()
        return found

    def _rate(self, begun: float) -> float:
        return self._pieces * _PIECE / (time.perf_counter() - begun)

    def _copy(self) -> float:
        parts = np.zeros((2, self._threads, self._pieces * _PIECE // self._threads), np.uint8)
        # Pages that were never written are not there.
        parts[...] = 1
        rates: list[float] = []
        with ThreadPoolExecutor(self._threads) as threads:
            for _ in range(_TURNS):
                begun = time.perf_counter()
                list(threads.map(np.copyto, parts[1], parts[0]))
                rates.append(parts[0].nbytes / (time.perf_counter() - begun))
        return max(rates)
