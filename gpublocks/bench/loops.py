"""What gpublocks is compared with, and functions that are benchmarked. Pure but for their threads.

Every rival has the signature of `gpublocks.block_processing.process`. Those of files are given
paths, and touch them.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from gpublocks.bench.opening import open_array
from gpublocks.contracts import Array

__all__ = [
    "difference_of_gaussians",
    "do_block",
    "threaded_files",
    "threaded_loop",
    "times_two",
    "times_two_loop",
    "whole",
    "whole_file",
]


def times_two(image: Array) -> Array:
    """Return twice the image."""
    return image * 2


def difference_of_gaussians(
    image: Array, narrow: float = 1.0, wide: float = 2.0, threshold: float = 0.05
) -> Array:
    """Return where a narrow Gaussian exceeds a wide one by a threshold."""
    from scipy.ndimage import gaussian_filter

    difference = gaussian_filter(image, narrow)
    difference -= gaussian_filter(image, wide)
    return difference > threshold


def whole(function: Callable[[Array], Array], source: Array, sink: Array | None = None) -> Array:
    """Call the function on the whole array, in one thread."""
    return function(source)


def whole_file(function: Callable[[Array], Array], source: str, sink: str) -> None:
    """Read a whole file, call the function, write the result, in one thread."""
    open_array(sink, write=True)[...] = function(np.asarray(open_array(source)[...]))


def threaded_loop(
    function: Callable[[Array], Array],
    source: Array,
    sink: Array,
    *,
    block: Sequence[int],
    halo: Sequence[int] = (0, 0, 0),
    threads: int = 2,
) -> None:
    """Loop over blocks as one writes it by hand: slice with halo, call, crop, assign.

    Parameters
    ----------
    block : sequence of int
        Shape of a block without its halo; 0 means the whole axis.
    """
    sides = [length or size for length, size in zip(block, source.shape, strict=True)]
    corners = product(*[range(0, n, side) for n, side in zip(source.shape, sides, strict=True)])
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(partial(do_block, function, source, sink, sides, halo), corners):
            pass


def do_block(
    function: Callable[[Array], Array],
    source: Array,
    sink: Array,
    block: Sequence[int],
    halo: Sequence[int],
    corner: Sequence[int],
) -> None:
    """Do the block that begins at a corner: slice with halo, call, crop, assign."""
    read, crop, valid = [], [], []
    for start, length, around, size in zip(corner, block, halo, source.shape, strict=True):
        stop = min(start + length, size)
        lower = max(0, start - around)
        read.append(slice(lower, min(size, stop + around)))
        crop.append(slice(start - lower, stop - lower))
        valid.append(slice(start, stop))
    sink[tuple(valid)] = function(source[tuple(read)])[tuple(crop)]


def threaded_files(
    function: Callable[[Array], Array],
    source: str,
    sink: str,
    *,
    block: Sequence[int],
    halo: Sequence[int],
    workers: int,
) -> None:
    """Do `threaded_loop` from a file to a file."""
    arrays = open_array(source), open_array(sink, write=True)
    threaded_loop(function, *arrays, block=block, halo=halo, threads=workers)


def times_two_loop(
    function: Callable[..., Any], source: Array, sink: Array, *, slab: int, threads: int = 2
) -> None:
    """Double slabs of the array in two threads, written straight into the sink."""

    def do(start: int) -> None:
        part = slice(start, start + slab)
        np.multiply(source[part], source.dtype.type(2), out=sink[part])

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(do, range(0, len(source), slab)):
            pass
