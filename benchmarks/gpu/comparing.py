"""One function over one volume: by gpublocks, and by everything it is compared with.

Touches the GPU, processes, and files of one folder.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

import gpublocks
from benchmarks.gpu.floors import Volumes, measure_floors
from benchmarks.gpu.functions import WORKS, Work
from benchmarks.gpu.lab import Lab
from benchmarks.gpu.peers import has_dask, mapped_by_dask, pinned_loop, plain_loop, whole
from benchmarks.gpu.pieces import Piece, from_cells, slabs
from benchmarks.gpu.volumes import build, count_unequal, create, fill
from benchmarks.gpu.watching import Watch
from gpublocks import machine
from gpublocks.contracts import Array, CellDone

__all__ = ["Volume", "counted", "measure_ours", "measure_peers", "prepared", "run_ours"]

_BLOCK_BYTES = 256 << 20
_WHOLE_FACTOR = 9
"""A function and its result take at most so many times the volume (a difference of float32
Gaussians: an input of two bytes a voxel, four arrays of four)."""
_MOST_CELLS = 1000
_SIDE = 96
_CPU_SECONDS = 2.5
_CPU_BYTES = 2e9
"""What the CPUs are given to do: for so many seconds, and no more than this."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume, and the places for results.

    Parameters
    ----------
    source, sink, other : ndarray
        Arrays, or memory maps; `other` is for the peers.
    arguments : tuple
        Source and sink as they are given to gpublocks: arrays, or paths.
    """

    source: Array
    sink: Array
    other: Array
    arguments: tuple[Any, Any]

    def flush(self) -> None:
        """Write files out, lest one measurement pays for another."""
        for array in (self.source, self.sink, self.other):
            if isinstance(array, np.memmap) and array.flags.writeable:
                array.flush()


def prepared(lab: Lab, shape: Sequence[int], folder: str | None) -> Volume:
    """Return the volume of this shape: in memory, or in files of a folder.

    The last one is kept, and dropped for another.
    """
    key = (tuple(shape), folder)
    if lab.kept.get("key") != key:
        lab.kept.clear()
        begun = time.perf_counter()
        lab.kept["volume"] = _in_memory(shape) if folder is None else _in_files(shape, folder)
        lab.kept["key"] = key
        lab.note("build_seconds", time.perf_counter() - begun)
    volume: Volume = lab.kept["volume"]
    return volume


def _in_memory(shape: Sequence[int]) -> Volume:
    source, sink, other = (np.empty(tuple(shape), np.uint16) for _ in range(3))
    build(source)
    fill(sink)
    fill(other)
    return Volume(source, sink, other, (source, sink))


def _in_files(shape: Sequence[int], folder: str) -> Volume:
    place = Path(folder)
    name = "x".join(map(str, shape))
    paths = [place / f"{name}.{kind}.npy" for kind in ("source", "sink", "other")]
    built = paths[0].exists()
    source, sink, other = (create(path, shape) for path in paths)
    if not built:
        build(source)
    fill(sink)
    fill(other)
    volume = Volume(source, sink, other, (str(paths[0]), str(paths[1])))
    volume.flush()
    return volume


def measure_ours(
    lab: Lab, *, work: str, shape: Sequence[int], folder: str | None, rounds: int
) -> None:
    """Note how long gpublocks takes, what it says of it, and what it takes of the GPU."""
    done, volume = WORKS[work], prepared(lab, shape, folder)
    lab.kept.pop("result", None)
    fill(volume.sink)
    lab.note("shape", list(shape))
    lab.note("volume_bytes", volume.source.nbytes)
    lab.note("halo", done.halo)
    lab.cuda.trim()
    for name, trial in (("plan", False), ("trial", True)):
        plan = partial(_note_plan, lab, name, done, volume, trial)
        lab.attempt(name, plan)
    for name in ("first", "watched"):
        with Watch(lab.cuda.used_bytes) as watch:
            events, seconds = run_ours(done, volume)
        volume.flush()
        lab.note(
            f"ours/{name}",
            {"seconds": [seconds], "used_before": watch.before, "used_peak": watch.peak},
        )
        lab.note(f"ours/{name}/events", counted(events))
    found: list[float] = []
    while len(found) < rounds and (not found or lab.left > 2 * found[-1]):
        events, seconds = run_ours(done, volume)
        volume.flush()
        found.append(seconds)
        lab.note("ours", {"seconds": found})
    lab.note("ours/events", counted(events))
    pieces = _note_events(lab, events, shape)
    lab.kept["result"] = (work, pieces)


def run_ours(work: Work, volume: Volume) -> tuple[list[Any], float]:
    """Run gpublocks on the GPU and return its events and the seconds that it took."""
    events: list[Any] = []
    source, sink = volume.arguments
    begun = time.perf_counter()
    gpublocks.process(
        work.function, source, sink, halo=work.halo, device="cuda", progress=events.append
    )
    return events, time.perf_counter() - begun


def counted(events: Sequence[Any]) -> dict[str, int]:
    """Return how many events there are of each kind."""
    return dict(Counter(type(event).__name__ for event in events))


def _note_plan(lab: Lab, name: str, work: Work, volume: Volume, trial: bool) -> None:
    """Note what gpublocks foresees, in a trial after it has computed a block."""
    source, sink = volume.arguments
    begun = time.perf_counter()
    planned = gpublocks.plan(
        work.function, source, sink, halo=work.halo, device="cuda", trial=trial
    )
    lab.note(name, {**planned.to_dict(), "seconds": [time.perf_counter() - begun]})


def _note_events(lab: Lab, events: Sequence[Any], shape: Sequence[int]) -> list[Piece]:
    """Note what the events of a run tell, and return its blocks."""
    done = sorted((event for event in events if isinstance(event, CellDone)),
                  key=lambda event: event.started)  # fmt: skip
    pieces = from_cells((event.cell for event in done), shape)
    peaks = [event.peak_bytes for event in done if event.peak_bytes is not None]
    begun = min(event.started for event in done)
    told = done[:_MOST_CELLS]
    lab.note(
        "ours",
        {
            "cells": len(done),
            "block": list(max((piece.read_shape for piece in pieces), key=prod)),
            "workers": sorted({event.worker for event in done}),
            "read_bytes": sum(event.read_bytes for event in done),
            "written_bytes": sum(event.written_bytes for event in done),
            "peak_bytes": max(peaks, default=None),
            "started_seconds": [event.started - begun for event in told],
            "stage_seconds": [event.seconds for event in told],
            "idle_seconds": [event.idle_seconds for event in told],
        },
    )
    return pieces


def measure_peers(
    lab: Lab, *, work: str, shape: Sequence[int], folder: str | None, rounds: int
) -> None:
    """Note the floors over the blocks that gpublocks chose, all peers, and whether results agree.

    Where gpublocks has not run in this process, slabs take the place of its blocks and its
    result cannot be compared.
    """
    done, volume = WORKS[work], prepared(lab, shape, folder)
    name, pieces = lab.kept.get("result", (None, None))
    ours = volume.sink if name == work else None
    if ours is None:
        pieces = slabs(shape, done.halo, volume.source.itemsize, _BLOCK_BYTES)
    lab.note("own_blocks", ours is not None)
    lab.note("volume_bytes", volume.source.nbytes)
    lab.cuda.trim()
    moved = Volumes(volume.source, volume.other, pieces)
    floors = partial(measure_floors, lab, moved, done.function, rounds)
    plain = partial(plain_loop, lab.cuda, done.function)
    steps: list[tuple[str, Callable[[], None]]] = [
        ("floors", floors),
        ("peers/whole", partial(_whole, lab, done, volume, ours)),
        ("peers/plain", partial(_loop, lab, "peers/plain", plain, volume, pieces)),
        ("checks/scipy", partial(_scipy, lab, done, volume, ours)),
        ("peers/pinned", partial(_pinned, lab, done, volume, pieces)),
        ("peers/cpu", partial(_cpu, lab, done, volume)),
        ("peers/dask", partial(_dask, lab, done, volume, pieces)),
    ]
    for path, step in steps:
        lab.attempt(path, step, estimate=2)
        volume.flush()
        lab.cuda.trim()


def _whole(lab: Lab, work: Work, volume: Volume, ours: Array | None) -> None:
    """Note the time of the whole volume at once, and whether ours is the same."""
    free, _ = lab.cuda.memory_info()
    needed = _WHOLE_FACTOR * volume.source.nbytes
    if needed > free:
        lab.note("peers/whole", {"skipped": f"takes up to {needed} bytes, {free} are free"})
        return
    begun = time.perf_counter()
    expected = whole(lab.cuda, work.function, volume.source)
    first = time.perf_counter() - begun
    lab.note("peers/whole", {"first_seconds": [first]})
    if ours is not None:
        lab.note("checks", {"wrong_voxels": count_unequal(ours, expected), "of": expected.size})
    del expected
    if lab.left > 4 * first:
        seconds = lab.times(lambda: whole(lab.cuda, work.function, volume.source), 1)
        lab.note("peers/whole", {"seconds": seconds})


def _loop(
    lab: Lab,
    path: str,
    loop: Callable[[Array, Array, Sequence[Piece]], None],
    volume: Volume,
    pieces: Sequence[Piece],
) -> None:
    """Note the time of a loop over all blocks, after one over the first."""
    first = lab.times(lambda: loop(volume.source, volume.other, pieces[:1]), 1)
    seconds = lab.times(lambda: loop(volume.source, volume.other, pieces), 1)
    lab.note(path, {"first_block_seconds": first, "seconds": seconds})


def _pinned(lab: Lab, work: Work, volume: Volume, pieces: Sequence[Piece]) -> None:
    size = volume.source.itemsize
    buffers = (
        lab.cuda.pinned(size * max(piece.read_size for piece in pieces)),
        lab.cuda.pinned(size * max(piece.valid_size for piece in pieces)),
    )

    def loop(source: Array, sink: Array, some: Sequence[Piece]) -> None:
        pinned_loop(lab.cuda, work.function, source, sink, some, buffers)

    _loop(lab, "peers/pinned", loop, volume, pieces)


def _scipy(lab: Lab, work: Work, volume: Volume, ours: Array | None) -> None:
    """Note by how much a cube in the middle differs from what SciPy makes of it."""
    cube, inner, crop = [], [], []
    for length in volume.source.shape:
        side = min(length, _SIDE)
        start = (length - side) // 2
        # At the border of the cube, but not of the volume, SciPy sees other neighbours.
        lower, upper = work.halo * (start > 0), side - work.halo * (start + side < length)
        cube.append(slice(start, start + side))
        inner.append(slice(start + lower, start + upper))
        crop.append(slice(lower, upper))
    image = np.array(volume.source[tuple(cube)])
    work.function(image[:8, :8, :8])
    begun = time.perf_counter()
    expected = work.function(image)[tuple(crop)].astype(np.int64)
    seconds = time.perf_counter() - begun
    lab.kept["voxel_seconds"] = {work.name: seconds / image.size}
    lab.note("checks/scipy", {"one_cpu_seconds": seconds, "voxels": image.size})
    if ours is not None:
        difference = np.abs(ours[tuple(inner)].astype(np.int64) - expected)
        most, share = int(difference.max()), float((difference > 0).mean())
        lab.note("checks/scipy", {"largest_difference": most, "differing_share": share})


def _cpu(lab: Lab, work: Work, volume: Volume) -> None:
    """Note how long gpublocks takes on all CPUs, for as much of the volume as takes seconds."""
    per_voxel = lab.kept.get("voxel_seconds", {}).get(work.name, 1e-6)
    plane = volume.source[0].size
    cpus = machine.cpu_count()
    depth = int(min(_CPU_SECONDS * cpus / per_voxel, _CPU_BYTES / volume.source.itemsize) / plane)
    depth = min(len(volume.source), max(4 * work.halo + 16, depth))
    source, sink = np.array(volume.source[:depth]), np.empty_like(volume.source[:depth])
    on_cpus = partial(gpublocks.process, work.function, halo=work.halo, device="cpu")
    small = (slice(0, 4 * work.halo + 16), slice(0, 64), slice(0, 64))
    first = lab.times(lambda: on_cpus(source[small].copy(), sink[small].copy()), 1)
    seconds = lab.times(lambda: on_cpus(source, sink), 1)
    share = depth / len(volume.source)
    lab.note(
        "peers/cpu", {"first_seconds": first, "seconds": seconds, "share": share, "cpus": cpus}
    )


def _dask(lab: Lab, work: Work, volume: Volume, pieces: Sequence[Piece]) -> None:
    if not has_dask():
        lab.note("peers/dask", {"skipped": "dask is not installed"})
        return
    block = pieces[0].valid_shape

    def loop() -> None:
        mapped_by_dask(lab.cuda, work.function, volume.source, volume.other, block, work.halo)

    lab.note("peers/dask", {"seconds": lab.times(loop, 1)})
