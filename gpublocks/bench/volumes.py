"""Builds synthetic volumes, and the results of functions over them. Touches files of one folder."""

from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from gpublocks.contracts import Array

__all__ = ["Built", "blobs", "counts"]

_SEED = 7
_BLOB_SIDE = 13
_VOXELS_PER_BLOB = 8000


class Built:
    """Builds what a case needs, unless it is there already.

    Parameters
    ----------
    folder : Path
    volumes : mapping of str to (shape, dtype)
        Files to build, by name: ``<name>.npy``.
    expected : sequence of mappings
        Results to compute: ``name`` of the file, ``source``, ``function`` and its ``kwargs``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        volumes: Mapping[str, tuple[Sequence[int], str]],
        expected: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._folder = folder
        self._volumes = volumes
        self._expected = expected

    def prepare(self) -> None:
        """Do nothing."""

    def check(self) -> None:
        """Do nothing."""

    def act(self) -> dict[str, float]:
        """Build what is missing."""
        for name, (shape, dtype) in self._volumes.items():
            path = self._folder / f"{name}.npy"
            if not path.exists():
                kind = np.dtype(dtype)
                np.save(path, blobs(shape, kind) if kind.kind == "f" else counts(shape, kind))
        for wanted in self._expected:
            path = self._folder / f"{wanted['name']}.npy"
            if not path.exists():
                module, _, name = wanted["function"].partition(":")
                function = partial(getattr(import_module(module), name), **wanted["kwargs"])
                np.save(path, function(np.load(self._folder / f"{wanted['source']}.npy")))
        return {}


def blobs(shape: Sequence[int], dtype: "np.dtype[Any]") -> Array:
    """Return Gaussian blobs of random brightness over noise, seeded."""
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
    return image.astype(dtype, copy=False)


def counts(shape: Sequence[int], dtype: "np.dtype[Any]") -> Array:
    """Return random counts that may be doubled, seeded."""
    rng = np.random.default_rng(_SEED)
    return rng.integers(0, np.iinfo(dtype).max // 2, tuple(shape), dtype)
