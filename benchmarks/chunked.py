"""``python -m benchmarks chunked``: a Gaussian from Zarr to Zarr. Touches files, processes.

The whole job with two processes against its parts done alone by two threads: decoding with zarr,
filtering in memory, encoding with zarr until it is on the disk. A source that counts tells what the
job decodes.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, cast

import numpy as np

from gpublocks import io, plan, process
from gpublocks.bench import missing
from gpublocks.bench.opening import create_array, open_array
from gpublocks.errors import PlanError
from gpublocks.formats.files.folder import sync_files
from gpublocks.formats.zarr.boxed import BoxedSource
from gpublocks.geometry import Region, parts
from gpublocks.memory import Peak

__all__ = ["as_text", "measure"]

_SIDE = 64
_TILE = 128
"""Side of the pattern that is repeated over a plane."""
_WORKERS = 2
_SIGMA, _HALO = 2.0, 8
_FILTERED = 128
"""Planes that one thread filters at once, where filtering is measured alone."""
_PLANES = _WORKERS * _FILTERED


class _Counting(BoxedSource):
    """Notes in a file how many voxels of chunks each read decodes, in whatever process."""

    __slots__ = ("_counts",)

    def __init__(self, source: BoxedSource, counts: str) -> None:
        super().__init__(source.store, source.name)
        self._counts = counts

    def read(self, region: Region, out: Any = None) -> Any:
        unit = self.read_unit
        voxels = 0
        for index, _ in parts(region, unit):
            sides = zip(index, unit, self.shape, strict=True)
            voxels += prod(min(n, size - i * n) for i, n, size in sides)
        descriptor = os.open(self._counts, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, np.int64(voxels).tobytes())
        finally:
            os.close(descriptor)
        return super().read(region, out)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Counting, (BoxedSource(self.store, self.name), self._counts)


def measure(
    planes: int, folder: Path | None = None, *, plane: int = 1024, rounds: int = 3
) -> dict[str, Any]:
    """Return times in seconds, ratios and bytes, after a comparison of all voxels.

    Parameters
    ----------
    planes : int
        Length of the volume of (planes, plane, plane) uint16 in chunks of 64^3; a multiple of 256.
    folder : Path, optional
        Where temporary volumes go, some five bytes a voxel.
    plane : int
        A multiple of 128.
    rounds : int
        The job and its parts are measured so often, by turns.

    Raises
    ------
    PlanError
        If zarr is not installed, or the shape is no such multiple.
    RuntimeError
        If a voxel is wrong.
    """
    if lacking := missing(["zarr"]):
        raise PlanError(f"{lacking} is not installed: pip install 'gpublocks[zarr]'")
    if planes % _PLANES or plane % _TILE:
        raise PlanError(
            f"{planes} planes of {plane} x {plane} voxels: give a multiple of {_PLANES} planes, of "
            f"sides that are a multiple of {_TILE}"
        )
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        return _measure(place, _volume(str(place / "source.zarr"), planes, plane), rounds)
    finally:
        shutil.rmtree(place)


def _measure(place: Path, array: Any, rounds: int) -> dict[str, Any]:
    job = _Job(place)
    tasks = {"ours": job.run, **_parts(place, array)}
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds):
        for name in tasks if number % 2 == 0 else reversed(tasks):
            seconds[name].append(tasks[name]())
        if number == 0:
            _compare(array, job.sink)
    whole = zip(*[seconds[name] for name in tasks if name != "ours"], strict=True)
    return {
        "shape": list(array.shape),
        "seconds": seconds,
        "ours_to_parts": [
            ours / sum(alone) for ours, alone in zip(seconds["ours"], whole, strict=True)
        ],
        "decoded_to_array": job.decoded / array.size,
        "planned_decoded_to_array": job.plan.to_dict()["decoded"],
        "peak_bytes": job.peak_bytes,
        "planned_peak_bytes": job.plan.peak_bytes,
    }


class _Job:
    """The whole job: what it takes, and what it decodes."""

    def __init__(self, place: Path) -> None:
        from scipy.ndimage import gaussian_filter

        self._function = gaussian_filter
        self.sink = str(place / "sink.zarr")
        self._counts = place / "counts"
        boxed = cast(BoxedSource, io.zarr.Source(str(place / "source.zarr")))
        self._source = _Counting(boxed, str(self._counts))
        self._options: dict[str, Any] = {"sigma": _SIGMA, "halo": _HALO, "processes": _WORKERS}
        self.plan = plan(self._function, self._source, self.sink, **self._options)
        self.peak_bytes = 0

    def run(self) -> float:
        """Do it, which ends when the sink is on the disk, and return the seconds."""
        shutil.rmtree(self.sink, ignore_errors=True)
        self._counts.unlink(missing_ok=True)
        with Peak(os.getpid()) as peak:
            seconds = _seconds(
                lambda: process(self._function, self._source, self.sink, **self._options)
            )
        self.peak_bytes = max(self.peak_bytes, peak.bytes)
        return seconds

    @property
    def decoded(self) -> int:
        """Voxels that it decoded the last time."""
        return int(np.fromfile(self._counts, np.int64).sum())


def _parts(place: Path, array: Any) -> dict[str, Callable[[], float]]:
    """Return what measures each part alone: decoding all, the others on some planes, scaled."""
    slabs = range(0, array.shape[0], _SIDE)
    voxels = array[:_PLANES]
    result = _gaussian(voxels, _SIGMA)
    scale = array.shape[0] / len(voxels)
    filtering = range(0, _PLANES, _FILTERED)
    return {
        "decode": lambda: _seconds(lambda: _all(lambda k: array[k : k + _SIDE], slabs)),
        "filter": lambda: (
            scale
            * _seconds(
                lambda: _all(lambda k: _gaussian(voxels[k : k + _FILTERED], _SIGMA), filtering)
            )
        ),
        "encode": lambda: scale * _encode(str(place / "alone.zarr"), result),
    }


def _compare(array: Any, sink: str) -> None:
    """Compare all voxels with those of the filter over slabs with their context."""
    result = open_array(sink)
    wrong = 0
    for k in range(0, array.shape[0], _SIDE):
        lower = max(0, k - _HALO)
        expected = _gaussian(array[lower : k + _SIDE + _HALO], _SIGMA)[k - lower :][:_SIDE]
        wrong += int(np.count_nonzero(result[k : k + _SIDE] != expected))
    if wrong:
        raise RuntimeError(f"{wrong} of {array.size} voxels differ from those of the filter")


def _gaussian(image: Any, sigma: float) -> Any:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, sigma)


def _volume(path: str, planes: int, plane: int) -> Any:
    """Create an array of blurred noise with a little more of it, which compresses like an image."""
    array = create_array(path, (planes, plane, plane), "u2", chunk=_SIDE)
    random = np.random.default_rng(0)
    base = 500 + 3000 * _gaussian(random.normal(size=(_SIDE, _TILE, _TILE)), _SIGMA)
    tiles = (1, plane // _TILE, plane // _TILE)
    for k in range(0, planes, _SIDE):
        noise = random.normal(size=(_SIDE, plane, plane)) * 8
        array[k : k + _SIDE] = np.clip(np.tile(base, tiles) + noise, 0, 65535).astype("u2")
    return array


def _encode(path: str, voxels: Any) -> float:
    """Return the seconds until new chunks are on the disk, as the job has them at its end."""
    array = create_array(path, voxels.shape, "u2", chunk=_SIDE)

    def store(k: int) -> None:
        array[k : k + _SIDE] = voxels[k : k + _SIDE]

    def encode() -> None:
        _all(store, range(0, len(voxels), _SIDE))
        sync_files(path)

    return _seconds(encode)


def _all(task: Callable[[int], Any], starts: Iterable[int]) -> None:
    with ThreadPoolExecutor(_WORKERS) as threads:
        list(threads.map(task, starts))


def _seconds(task: Callable[[], Any]) -> float:
    start = perf_counter()
    task()
    return perf_counter() - start


def as_text(found: dict[str, Any]) -> str:
    """Return the figures as lines: medians with the least and the most."""
    seconds = found["seconds"]
    alone = ", ".join(
        f"{name} {_told(values, 1)} s" for name, values in seconds.items() if name != "ours"
    )
    return (
        f"gaussian over {found['shape']} uint16, Zarr to Zarr, all voxels right: "
        f"{_told(seconds['ours'], 1)} s; alone: {alone}\n"
        f"ratio to the sum of the parts {_told(found['ours_to_parts'], 2)} (bound 1.10), "
        f"decoded {found['decoded_to_array']:.2f} of the array (bound 1.15), "
        f"planned {found['planned_decoded_to_array']:.2f}\n"
        f"peak {found['peak_bytes'] / 1e6:.0f} MB, "
        f"planned {found['planned_peak_bytes'] / 1e6:.0f} MB"
    )


def _told(values: Sequence[float], digits: int) -> str:
    least, middle, most = (f"{f(values):.{digits}f}" for f in (min, median, max))
    return f"{middle} ({least} .. {most})"
