"""Voxels as HDF5 compresses them: bytes of equal weight together, then deflated. Pure."""

import zlib
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["DEFLATE", "SHUFFLE", "deflated", "inflated", "is_known"]

Array: TypeAlias = npt.NDArray[Any]

DEFLATE, SHUFFLE = 1, 2
"""Numbers of these filters in HDF5 files."""

_LEVEL = 4
"""As h5py has it."""


def is_known(filters: tuple[int, ...]) -> bool:
    """Tell whether `inflated` undoes a row of filters, as HDF5 numbers them."""
    return filters in ((DEFLATE,), (SHUFFLE, DEFLATE))


def inflated(
    data: bytes | memoryview, filters: tuple[int, ...], skipped: int, nbytes: int, itemsize: int
) -> bytes | memoryview | Array:
    """Return the bytes of voxels that were compressed.

    Parameters
    ----------
    data : bytes
        As they are stored.
    filters : tuple of int
        In the order in which they were applied; a row that `is_known`.
    skipped : int
        Bit ``n`` is set if filter ``n`` was not applied.
    nbytes : int
        How many there must be. No memory is taken for more.
    itemsize : int
        Bytes of a voxel.

    Raises
    ------
    ValueError
        If they are damaged.
    """
    applied = [number for place, number in enumerate(filters) if not skipped >> place & 1]
    if DEFLATE in applied:
        data = _inflated(data, nbytes)
    if len(data) != nbytes:
        raise ValueError(f"it holds {len(data)} bytes instead of {nbytes}")
    return _unshuffled(data, itemsize) if SHUFFLE in applied else data


def deflated(voxels: Array, shape: tuple[int, ...]) -> bytes:
    """Return voxels shuffled, deflated, and with zeros behind them where `shape` is larger."""
    if voxels.shape != shape:
        whole = np.zeros(shape, voxels.dtype)
        whole[tuple(map(slice, voxels.shape))] = voxels
        voxels = whole
    rows = np.ascontiguousarray(voxels).reshape(-1).view(np.uint8)
    weights = rows.reshape(prod(shape), voxels.itemsize).T
    return zlib.compress(np.ascontiguousarray(weights).data, _LEVEL)


def _inflated(data: bytes | memoryview, nbytes: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        found = stream.decompress(data, nbytes + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(found) > nbytes:
        raise ValueError(f"it unpacks to more than the {nbytes} bytes that a chunk has")
    if not stream.eof:
        raise ValueError(f"it ends after {len(found)} of {nbytes} bytes")
    return found


def _unshuffled(data: bytes | memoryview, itemsize: int) -> Array:
    weights = np.frombuffer(data, np.uint8).reshape(itemsize, -1)
    rows = np.empty(weights.shape[::-1], np.uint8)
    # One weight after the other: transposing in one go is five times slower.
    for weight, row in enumerate(weights):
        rows[:, weight] = row
    return rows.reshape(-1)
