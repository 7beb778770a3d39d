"""What functions of ndimage take on the GPU: time, memory in and beside pools, exactness.

Touches the GPU. Parts (f), (g) and (j) of the list in `benchmarks.gpu.catalogue`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np

from benchmarks.gpu.lab import Lab
from gpublocks.arrays import ndimage
from gpublocks.contracts import Array

__all__ = ["SUBJECTS", "constants", "memory", "pools"]

_SMALL = 48


@dataclass(frozen=True, slots=True)
class Subject:
    """A function whose memory is measured.

    Parameters
    ----------
    call : callable
    dtype : str
        Of its input.
    extra_bytes : float
        What it should take for each voxel beyond its input, as read in its source; for 'edt' per
        voxel of a cube of the longest axis.
    side_divisor : int
        Slow ones get cubes with sides that much shorter.
    """

    call: Callable[[Any], Any]
    dtype: str
    extra_bytes: float
    side_divisor: int = 1


def _median(size: int) -> Callable[[Any], Any]:
    return lambda image: ndimage(image).median_filter(image, size=size)


SUBJECTS: Mapping[str, Subject] = {
    "gaussian": Subject(lambda x: ndimage(x).gaussian_filter(x, 2), "float32", 8),
    "gaussian uint16": Subject(lambda x: ndimage(x).gaussian_filter(x, 2), "uint16", 4),
    "tophat 5": Subject(lambda x: ndimage(x).white_tophat(x, size=(5, 5, 5)), "float32", 12),
    "median 3": Subject(_median(3), "float32", 4),
    "median 5": Subject(_median(5), "float32", 4),
    "label": Subject(lambda x: ndimage(x).label(x)[0], "bool", 4),
    "edt": Subject(lambda x: ndimage(x).distance_transform_edt(x), "bool", 17),
    "median 7": Subject(_median(7), "float32", 4, 2),
    "median 11": Subject(_median(11), "float32", 4, 4),
}
"""Extra memory per voxel: an output of the input's type and as many temporaries as CuPy's source
has (a Gaussian one, a top-hat two); int32 for labels; for distances a padded copy of the input,
two arrays of int32, and float64."""


def memory(lab: Lab, *, side: int, rounds: int) -> None:
    """Note time and memory of each function on a cube."""
    for name, subject in SUBJECTS.items():
        lab.attempt(name, partial(_measure, lab, name, subject, side, rounds), estimate=1.5)
        lab.cuda.trim()


def _measure(lab: Lab, name: str, subject: Subject, side: int, rounds: int) -> None:
    cuda = lab.cuda
    shape = (max(_SMALL, side // subject.side_divisor),) * 3
    cuda.trim()
    first_free, _ = cuda.memory_info()
    small = cuda.asarray(_image((_SMALL,) * 3, subject.dtype))
    compiling = lab.times(partial(_finished, cuda, subject.call, small), 1)
    del small
    image = cuda.asarray(_image(shape, subject.dtype))
    cuda.synchronize()
    free, _ = cuda.memory_info()
    with cuda.pool() as pool:
        with cuda.meter() as meter:
            cold = lab.times(partial(_finished, cuda, subject.call, image), 1)
        taken, total = free - cuda.memory_info()[0], pool.total_bytes()
        seconds = lab.times(partial(_finished, cuda, subject.call, image), rounds)
        pool.free_all_blocks()
    del image
    cuda.trim()
    lab.note(
        name,
        {
            "shape": list(shape),
            "dtype": subject.dtype,
            "compile_seconds": compiling,
            "first_seconds": cold,
            "seconds": seconds,
            "predicted_bytes": int(subject.extra_bytes * prod(shape)),
            "peak_bytes": meter.peak_bytes,
            "pool_bytes": total,
            "taken_bytes": taken,
            "outside_bytes": taken - total,
            "kept_bytes": first_free - cuda.memory_info()[0],
        },
    )


def _finished(cuda: Any, call: Callable[[Any], Any], image: Any) -> None:
    """Call a function, wait for the GPU, and drop the result."""
    call(image)
    cuda.synchronize()


def _image(shape: Sequence[int], dtype: str) -> Array:
    """Return noise; of bools, one voxel in three is background."""
    rng = np.random.default_rng(3)
    if dtype == "bool":
        return np.asarray(rng.integers(0, 3, tuple(shape), np.uint8) > 0)
    if dtype == "float32":
        return rng.random(tuple(shape), np.float32)
    return rng.integers(0, 30000, tuple(shape), np.dtype(dtype))


def pools(lab: Lab, *, side: int, calls: int, rounds: int) -> None:
    """Note time and memory of many calls on several shapes, in each kind of memory pool."""
    cuda = lab.cuda
    sides = (side, side * 3 // 4, side - 8)
    images = [cuda.asarray(_image((length,) * 3, "float32")) for length in sides]

    def step() -> None:
        for n in range(calls):
            image = images[n % len(images)]
            ndimage(image).gaussian_filter(image, 2)
        cuda.synchronize()

    for kind in ("pool", "async"):

        def measure(kind: str = kind) -> None:
            with cuda.pool(kind) as pool:
                first = lab.times(step, 1)
                seconds = lab.times(step, rounds)
                total = pool.total_bytes()
                pool.free_all_blocks()
            found = {"first_seconds": first, "seconds": seconds, "pool_bytes": total}
            lab.note(kind, {**found, "calls": calls})

        lab.attempt(kind, measure, estimate=1)


def constants(lab: Lab, *, values: Sequence[int]) -> None:
    """Note by how much filters change a constant image, on the GPU and on the CPU.

    Averages in float32 that are cut off to integers may lose a grey level for each axis.
    """
    cuda = lab.cuda
    calls: dict[str, Callable[[Any], Any]] = {
        "gaussian sigma 1": lambda image: ndimage(image).gaussian_filter(image, 1),
        "gaussian sigma 2": lambda image: ndimage(image).gaussian_filter(image, 2),
        "uniform 3": lambda image: ndimage(image).uniform_filter(image, 3),
        "uniform 5": lambda image: ndimage(image).uniform_filter(image, 5),
    }
    for name, call in calls.items():

        def measure(name: str = name, call: Callable[[Any], Any] = call) -> None:
            for value in values:
                image = np.full((24, 24, 24), value, np.uint16)
                there = cuda.get(call(cuda.asarray(image)))
                lab.note(f"{name}/{value}", {"gpu": _range(there), "cpu": _range(call(image))})

        lab.attempt(name, measure, estimate=1)


def _range(image: Array) -> list[int]:
    return [int(image.min()), int(image.max())]
