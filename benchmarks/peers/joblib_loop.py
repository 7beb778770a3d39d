"""A loop over blocks in joblib's processes. Touches files, processes."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from joblib import Parallel, delayed

from gpublocks.bench.opening import open_array

__all__ = ["loop"]


def loop(
    function: Callable[[Any], Any],
    source: str,
    sink: str,
    *,
    block: Sequence[int],
    halo: Sequence[int],
    workers: int,
) -> None:
    """Do each block in a process: slice with halo, call, crop, assign."""
    # Both pickle to their paths.
    image, result = open_array(source), open_array(sink, write=True)
    corners = product(*[range(0, n, side) for n, side in zip(image.shape, block, strict=True)])
    Parallel(workers)(delayed(_do)(function, image, result, c, block, halo) for c in corners)


def _do(
    function: Callable[[Any], Any],
    image: Any,
    result: Any,
    corner: Sequence[int],
    block: Sequence[int],
    halo: Sequence[int],
) -> None:
    read, crop, valid = [], [], []
    for start, side, around, size in zip(corner, block, halo, image.shape, strict=True):
        lower, stop = max(0, start - around), min(start + side, size)
        read.append(slice(lower, min(size, stop + around)))
        crop.append(slice(start - lower, stop - lower))
        valid.append(slice(start, stop))
    result[tuple(valid)] = function(image[tuple(read)])[tuple(crop)]
