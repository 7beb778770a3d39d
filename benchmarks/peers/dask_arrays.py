"""`dask.array.map_overlap` in threads, in processes, on a cluster. Touches files, processes."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from gpublocks.bench.opening import open_array

# Dask is typed by half.
dask: Any = import_module("dask")
da: Any = import_module("dask.array")

__all__ = ["Address", "auto_block", "map_overlap", "map_overlap_on_cluster"]


class Address:
    """An array in a file that pickles to its path; a memory map pickles to its voxels.

    Parameters
    ----------
    path : str
    write : bool
        Whether it can be written.
    """

    def __init__(self, path: str, write: bool = False) -> None:
        self._path, self._write = path, write
        opened = open_array(path, write=write)
        self.shape: tuple[int, ...] = opened.shape
        self.dtype = opened.dtype
        self.ndim = len(self.shape)
        if hasattr(opened, "chunks"):
            self.chunks: tuple[int, ...] = opened.chunks

    def __getitem__(self, box: Any) -> Any:
        return _opened(self._path, self._write)[box]

    def __setitem__(self, box: Any, voxels: Any) -> None:
        _opened(self._path, self._write)[box] = voxels


@lru_cache(maxsize=8)
def _opened(path: str, write: bool) -> Any:
    return open_array(path, write=write)


def map_overlap(
    function: Callable[[Any], Any],
    source: str,
    sink: str,
    *,
    block: Sequence[int],
    halo: Sequence[int],
    workers: int,
    scheduler: str | None = None,
) -> None:
    """Map the function over overlapping chunks, and store them."""
    image = da.from_array(Address(source), chunks=tuple(block), asarray=True)
    result = Address(sink, write=True)
    # An axis that is not split needs no halo, and Dask would refuse one longer than a chunk.
    depth = {
        axis: around if side < size else 0
        for axis, (side, around, size) in enumerate(zip(block, halo, image.shape, strict=True))
    }
    meta = np.empty((0,) * image.ndim, result.dtype)
    mapped = da.map_overlap(function, image, depth=depth, boundary="none", meta=meta)
    computing = {"num_workers": workers, **({"scheduler": scheduler} if scheduler else {})}
    with dask.config.set(computing):
        da.store(mapped, result, lock=False)


def map_overlap_on_cluster(
    function: Callable[[Any], Any],
    source: str,
    sink: str,
    *,
    block: Sequence[int],
    halo: Sequence[int],
    workers: int,
) -> None:
    """Do it in the processes of a local cluster, which stays for further calls."""
    _client(workers)
    map_overlap(function, source, sink, block=block, halo=halo, workers=workers)


@lru_cache(maxsize=1)
def _client(workers: int) -> Any:
    # It becomes what Dask computes with where nothing else is said.
    return import_module("distributed").Client(
        n_workers=workers, threads_per_worker=1, dashboard_address=None
    )


def auto_block(
    function: Any, source: str, sink: str, *, halo: Sequence[int], **others: Any
) -> tuple[int, ...]:
    """Return the shape of the chunks that Dask chooses."""
    image = da.from_array(Address(source), chunks="auto")
    return tuple(map(max, image.chunks))
