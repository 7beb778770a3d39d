"""Builds synthetic volumes, and the results of functions over them. Touches files of one folder."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from gpublocks.bench.loading import load
from gpublocks.bench.opening import create_array, open_array
from gpublocks.contracts import Array

__all__ = ["KINDS", "Built", "blobs", "camera", "counts"]

_SEED = 7
_BLOB_SIDE = 13
_VOXELS_PER_BLOB = 8000
_COUNTS, _BACKGROUND = 1000.0, 100.0


class Built:
    """Builds what a case needs, unless it is there already.

    Parameters
    ----------
    folder : Path
    volumes : mapping of str to (shape, kind)
        Files to build, by name: ``<name>.npy``; a kind is one of `KINDS`.
    expected : sequence of mappings
        Results to compute: ``name`` of the file, ``source``, ``function`` and its ``kwargs``.
    stored : mapping of str to int
        Files that are also stored as ``<name>.zarr``, with the side of their chunks.
    """

    def __init__(
        self,
        folder: Path,
        *,
        volumes: Mapping[str, tuple[Sequence[int], str]],
        expected: Sequence[Mapping[str, Any]] = (),
        stored: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._folder = folder
        self._volumes = volumes
        self._expected = expected
        self._stored = stored

    def prepare(self) -> None:
        """Do nothing."""

    def check(self) -> None:
        """Do nothing."""

    def act(self) -> dict[str, float]:
        """Build what is missing."""
        for name, (shape, kind) in self._volumes.items():
            path = self._folder / f"{name}.npy"
            if not path.exists():
                _save(path, KINDS[kind](shape))
        for wanted in self._expected:
            path = self._folder / f"{wanted['name']}.npy"
            if not path.exists():
                function = partial(load(wanted["function"]), **wanted["kwargs"])
                _save(path, function(np.load(self._folder / f"{wanted['source']}.npy")))
        for name, chunk in self._stored.items():
            path = self._folder / f"{name}.zarr"
            if not path.exists():
                voxels = open_array(self._folder / f"{name}.npy")
                create_array(path, voxels.shape, voxels.dtype, chunk=chunk)[...] = voxels
        return {}


def _save(path: Path, voxels: Array) -> None:
    """Write a file to the disk: what is written out later would slow a measurement."""
    with path.open("wb") as file:
        np.save(file, voxels)
        file.flush()
        os.fsync(file.fileno())


def blobs(shape: Sequence[int]) -> Array:
    """Return Gaussian blobs of random brightness over noise, float32, seeded."""
    rng = np.random.default_rng(_SEED)
    image: Array = rng.random(tuple(shape), np.float32)
    image *= 0.1
    count = max(1, prod(shape) // _VOXELS_PER_BLOB)
    sides = [min(_BLOB_SIDE, length) for length in shape]
    profiles = [np.exp(-(((np.arange(side) - side // 2) / 2.5) ** 2)) for side in sides]
    stamp = np.asarray(profiles[0], np.float32)
    for profile in profiles[1:]:
        stamp = np.multiply.outer(stamp, profile.astype(np.float32))
    corners = [rng.integers(0, n - side + 1, count) for n, side in zip(shape, sides, strict=True)]
    bright = rng.random(count, np.float32)
    for n in range(count):
        place = tuple(slice(int(c[n]), int(c[n]) + s) for c, s in zip(corners, sides, strict=True))
        image[place] += bright[n] * stamp
    return image


def counts(shape: Sequence[int]) -> Array:
    """Return random counts that may be doubled, uint16, seeded."""
    rng = np.random.default_rng(_SEED)
    return rng.integers(0, np.iinfo(np.uint16).max // 2, tuple(shape), np.uint16)


def camera(shape: Sequence[int]) -> Array:
    """Return blobs as a camera counts them, uint16, which compress as images do and may be doubled.

    Some hundred counts of background with noise, some thousand in the blobs.
    """
    image = blobs(shape)
    image *= _COUNTS
    image += _BACKGROUND
    return image.astype(np.uint16)


KINDS: Mapping[str, Callable[[Sequence[int]], Array]] = {
    "float32": blobs,
    "uint16": counts,
    "camera": camera,
}
"""What volumes hold."""
