"""``python -m benchmarks chunked``: a Gaussian from Zarr to Zarr. Touches files, processes.

The whole job with two processes against its parts done alone by two threads: decoding with zarr,
filtering in memory, encoding with zarr. A source that counts tells what the job decodes.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np

from gpublocks import io, plan, process
from gpublocks.formats.zarr.boxed import BoxedSource
from gpublocks.geometry import Region, parts
from gpublocks.memory import Peak

__all__ = ["as_text", "measure"]

_SIDE = 64
_PLANE = 1024
_WORKERS = 2
_FILTERED = 128
"""Planes that one thread filters at once, where filtering is measured alone."""


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


def measure(planes: int, folder: Path | None = None) -> dict[str, Any]:
    """Return times in seconds, ratios and bytes.

    Parameters
    ----------
    planes : int
        Length of the volume of (planes, 1024, 1024) uint16 in chunks of 64^3; a multiple of 128.
    folder : Path, optional
        Where temporary volumes go, some five bytes a voxel.
    """
    from scipy.ndimage import gaussian_filter

    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        source, sink = str(place / "source.zarr"), str(place / "sink.zarr")
        array = _volume(source, planes)
        counts = str(place / "counts")
        counting = _Counting(cast(BoxedSource, io.zarr.Source(source)), counts)
        planned = plan(gaussian_filter, counting, sink, sigma=2, halo=8, processes=_WORKERS)
        with Peak(os.getpid()) as peak:
            ours = _seconds(
                lambda: process(
                    gaussian_filter, counting, sink, sigma=2, halo=8, processes=_WORKERS
                )
            )
        slabs = range(0, planes, _SIDE)
        decode = _seconds(lambda: _all(lambda k: array[k : k + _SIDE], slabs))
        voxels = array[: 2 * _FILTERED]
        filtered = _seconds(
            lambda: _all(lambda k: gaussian_filter(voxels[k : k + _FILTERED], 2), (0, _FILTERED))
        ) * (planes / len(voxels))
        encode = _encode(str(place / "alone.zarr"), gaussian_filter(voxels, 2)) * (
            planes / len(voxels)
        )
        parts = decode + filtered + encode
        return {
            "shape": [planes, _PLANE, _PLANE],
            "seconds": {"ours": ours, "decode": decode, "filter": filtered, "encode": encode},
            "ours_to_parts": ours / parts,
            "decoded_to_array": int(np.fromfile(counts, np.int64).sum()) / array.size,
            "planned_decoded_to_array": planned.to_dict()["decoded"],
            "peak_bytes": peak.bytes,
            "planned_peak_bytes": planned.peak_bytes,
        }
    finally:
        shutil.rmtree(place)


def _volume(path: str, planes: int) -> Any:
    """Create an array of blurred noise with a little more of it, which compresses like an image."""
    import zarr
    from scipy.ndimage import gaussian_filter
    from zarr.codecs import ZstdCodec

    array = zarr.create_array(
        path,
        shape=(planes, _PLANE, _PLANE),
        chunks=(_SIDE,) * 3,
        dtype="u2",
        compressors=ZstdCodec(level=1),
    )
    random = np.random.default_rng(0)
    base = 500 + 3000 * gaussian_filter(random.normal(size=(_SIDE, 128, 128)), 2)
    for k in range(0, planes, _SIDE):
        noise = random.normal(size=(_SIDE, _PLANE, _PLANE)) * 8
        array[k : k + _SIDE] = np.clip(np.tile(base, (1, 8, 8)) + noise, 0, 65535).astype("u2")
    return array


def _encode(path: str, voxels: Any) -> float:
    import zarr
    from zarr.codecs import ZstdCodec

    array = zarr.create_array(
        path,
        shape=voxels.shape,
        chunks=(_SIDE,) * 3,
        dtype="u2",
        compressors=ZstdCodec(level=1),
    )

    def store(k: int) -> None:
        array[k : k + _SIDE] = voxels[k : k + _SIDE]

    return _seconds(lambda: _all(store, range(0, len(voxels), _SIDE)))


def _all(task: Callable[[int], Any], starts: Iterable[int]) -> None:
    with ThreadPoolExecutor(_WORKERS) as threads:
        list(threads.map(task, starts))


def _seconds(task: Callable[[], Any]) -> float:
    start = perf_counter()
    task()
    return perf_counter() - start


def as_text(found: dict[str, Any]) -> str:
    """Return the figures as lines."""
    seconds = found["seconds"]
    alone = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items() if name != "ours")
    return (
        f"gaussian over {found['shape']} uint16, Zarr to Zarr: "
        f"{seconds['ours']:.1f} s; alone: {alone}\n"
        f"ratio to the sum of the parts {found['ours_to_parts']:.2f} (bound 1.10), "
        f"decoded {found['decoded_to_array']:.2f} of the array (bound 1.15), "
        f"planned {found['planned_decoded_to_array']:.2f}\n"
        f"peak {found['peak_bytes'] / 1e6:.0f} MB, "
        f"planned {found['planned_peak_bytes'] / 1e6:.0f} MB"
    )
