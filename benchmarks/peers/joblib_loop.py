"""A loop over blocks in joblib's processes. Touches files, processes."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from joblib import Parallel, delayed

from gpublocks.bench.loops import do_block
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
    Parallel(workers)(delayed(do_block)(function, image, result, block, halo, c) for c in corners)
