"""Builds volumes at the speed of memory and compares them. Touches threads and files."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gpublocks import machine
from gpublocks.contracts import Array

__all__ = ["build", "count_unequal", "create", "fill"]

_SEED = 7
_TILE = 64
_WRONG = 65535
"""No function that is measured has this result."""


def build(target: Array) -> None:
    """Fill a 3-D uint16 volume with waves and noise below 32768, the same for each shape."""
    depth, height, width = target.shape
    rows = np.sin(np.arange(height) / 37.0)[:, None]
    waves = (8192 * (1 + rows * np.cos(np.arange(width) / 53.0))).astype(np.uint16)

    def tile(n: int) -> Array:
        noise = np.random.default_rng((_SEED, n)).integers(0, 4096, (height, width), np.uint16)
        noise += waves
        return noise

    def do(n: int) -> None:
        plane = tile(n)
        for z in range(n, depth, _TILE):
            # Planes that repeat differ, lest a block in the wrong place goes unseen.
            np.add(plane, np.uint16(7 * (z // _TILE) % 4096), out=target[z])

    _each(do, min(_TILE, depth))


def fill(target: Array, value: int = _WRONG) -> None:
    """Give every voxel a value; by default a wrong one, so that none can be forgotten."""
    _each(lambda z: target[z].fill(value), len(target))


def count_unequal(one: Array, other: Array) -> int:
    """Return the number of voxels in which two arrays differ."""
    if one.shape != other.shape or one.dtype != other.dtype:
        raise ValueError(f"{one.shape} {one.dtype} is compared with {other.shape} {other.dtype}")
    return sum(_each(lambda z: int(np.count_nonzero(one[z] != other[z])), len(one)))


def create(path: Path, shape: Sequence[int]) -> Array:
    """Create a uint16 volume in an .npy file, or open it if it is there."""
    if path.exists():
        found: Array = np.load(path, mmap_mode="r+")
        if found.shape == tuple(shape):
            return found
    return np.lib.format.open_memmap(path, "w+", dtype=np.uint16, shape=tuple(shape))


def _each(do: Any, count: int) -> list[Any]:
    with ThreadPoolExecutor(machine.cpu_count()) as pool:
        return list(pool.map(do, range(count)))
