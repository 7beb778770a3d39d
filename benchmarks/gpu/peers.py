"""Other ways of doing the same work: as one writes it by hand, and with Dask. Touches the GPU."""

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.gpu.pieces import Piece
from benchmarks.gpu.staging import bytes_as
from gpublocks.contracts import Array

__all__ = ["has_dask", "mapped_by_dask", "pinned_loop", "plain_loop", "whole"]

Function = Callable[[Any], Any]


def whole(cuda: Any, function: Function, source: Array) -> Array:
    """Copy the volume to the GPU, call the function, copy the result back."""
    result = function(cuda.asarray(source))
    found: Array = cuda.get(result)
    return found


def plain_loop(
    cuda: Any, function: Function, source: Array, sink: Array, pieces: Sequence[Piece]
) -> None:
    """Do that with each block, one after the other."""
    for piece in pieces:
        result = function(cuda.asarray(source[piece.read]))
        sink[piece.valid] = cuda.get(result[piece.crop])


def pinned_loop(
    cuda: Any,
    function: Function,
    source: Array,
    sink: Array,
    pieces: Sequence[Piece],
    buffers: tuple[Array, Array],
) -> None:
    """Do that with each block through page-locked memory, one after the other.

    Parameters
    ----------
    buffers : tuple of ndarray
        Page-locked bytes for the largest block that is read, and that is written.
    """
    for piece in pieces:
        block = bytes_as(buffers[0], piece.read_shape, source.dtype)
        block[...] = source[piece.read]
        image = cuda.empty(piece.read_shape, source.dtype)
        cuda.put(image, block)
        result = cuda.contiguous(function(image)[piece.crop])
        valid = bytes_as(buffers[1], piece.valid_shape, sink.dtype)
        cuda.get(result, valid)
        sink[piece.valid] = valid


def has_dask() -> bool:
    """Tell whether Dask's arrays are installed."""
    return find_spec("dask") is not None


def mapped_by_dask(
    cuda: Any, function: Function, source: Array, sink: Array, block: Sequence[int], halo: int
) -> None:
    """Do it with `dask.array.map_overlap`, in Dask's threads.

    Parameters
    ----------
    block : sequence of int
        Shape of a block without its halo.
    """
    dask = import_module("dask.array")

    def on_gpu(image: Array) -> Array:
        return whole(cuda, function, image)

    # An axis that is not split needs no halo, and Dask would refuse one longer than a block.
    depth = {
        axis: halo if side < length else 0
        for axis, (side, length) in enumerate(zip(block, source.shape, strict=True))
    }
    image = dask.from_array(source, chunks=tuple(block))
    mapped = dask.map_overlap(
        on_gpu,
        image,
        depth=depth,
        boundary="none",
        meta=np.empty((0,) * source.ndim, sink.dtype),
    )
    dask.store(mapped, sink, lock=False, scheduler="threads")
