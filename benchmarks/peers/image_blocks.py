"""`skimage.util.apply_parallel`. Touches files, threads."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from gpublocks.bench.opening import open_array

__all__ = ["apply_parallel"]


def apply_parallel(
    function: Callable[[Any], Any],
    source: str,
    sink: str,
    *,
    block: Sequence[int],
    halo: Sequence[int],
    workers: int,
) -> None:
    """Apply the function to chunks, and write the result, which it makes in memory."""
    dask, util = import_module("dask"), import_module("skimage.util")
    image, result = open_array(source), open_array(sink, write=True)
    # What SciPy calls 'reflect': an image that is continued so gives the same result.
    with dask.config.set(num_workers=workers):
        result[...] = util.apply_parallel(
            function,
            image,
            chunks=tuple(block),
            depth=tuple(halo),
            mode="symmetric",
            dtype=result.dtype,
            compute=True,
        )
