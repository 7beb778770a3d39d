"""How fast the GPU and host memory reach each other, and what page-locking costs. Touches the GPU.

Parts (a), (b), (d), (e) and (i) of the list in `benchmarks.gpu.catalogue`.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.boxcopy import box_to_device
from benchmarks.gpu.lab import Lab
from benchmarks.gpu.volumes import fill
from gpublocks.contracts import Array

__all__ = ["boxes", "latency", "pinning", "rates", "waiting"]

_MIB = 1 << 20
_READ_ONLY = 8
"""``cudaHostRegisterReadOnly``."""


def rates(lab: Lab, *, buffer_bytes: int, pieces_mib: Sequence[int], rounds: int) -> None:
    """Note the rates of copies in pieces, one way and both ways at once."""
    cuda = lab.cuda
    pinned = [cuda.pinned(buffer_bytes) for _ in range(2)]
    memory = [cuda.memory(buffer_bytes) for _ in range(2)]
    for buffer in pinned:
        buffer.fill(1)
    streams = [cuda.stream() for _ in range(2)]
    ways: dict[str, list[Callable[[int], None]]] = {
        "h2d": [partial(cuda.upload, memory[0], pinned[0], streams[0])],
        "d2h": [partial(cuda.download, pinned[1], memory[1], streams[1])],
    }
    ways["both"] = [*ways["h2d"], *ways["d2h"]]
    for mib in pieces_mib:
        for way, copies in ways.items():
            used = {"h2d": streams[:1], "d2h": streams[1:]}.get(way, streams)
            measure = partial(_rate, lab, copies, used, min(mib * _MIB, buffer_bytes), rounds)
            path = f"{way}/{mib} MiB"
            found = lab.attempt(path, measure, estimate=0.5)
            if found:
                lab.note(path, {**found, "bytes": buffer_bytes * len(copies)})


def _rate(
    lab: Lab,
    copies: Sequence[Callable[[int], None]],
    streams: Sequence[Any],
    piece: int,
    count: int,
) -> dict[str, Any]:
    """Return seconds until all copies were done, and of each direction by itself."""
    cuda = lab.cuda
    each: list[list[float]] = [[] for _ in copies]

    def step() -> None:
        marks = []
        for copy, stream in zip(copies, streams, strict=True):
            first, last = cuda.event(timing=True), cuda.event(timing=True)
            first.record(stream)
            copy(piece)
            last.record(stream)
            marks.append((first, last))
        for seconds, (first, last) in zip(each, marks, strict=True):
            last.synchronize()
            seconds.append(cuda.elapsed(first, last))

    step()
    for seconds in each:
        seconds.clear()
    found: dict[str, Any] = {"seconds": lab.times(step, count)}
    return {**found, "each_seconds": each}


def latency(lab: Lab, *, big_bytes: int, rounds: int) -> None:
    """Note how long 1 KB takes to the GPU: alone, and behind a large copy whole and in pieces."""
    cuda = lab.cuda
    big, small = cuda.pinned(big_bytes), cuda.pinned(1024)
    big_memory, small_memory = cuda.memory(big_bytes), cuda.memory(1024)
    one, other = cuda.stream(), cuda.stream()
    event = cuda.event(block=False)

    def step(piece: int) -> float:
        if piece:
            cuda.upload(big_memory, big, one, piece)
        begun = time.perf_counter()
        cuda.upload(small_memory, small, other)
        event.record(other)
        event.synchronize()
        seconds = time.perf_counter() - begun
        cuda.synchronize()
        return seconds

    ways = {"alone": 0, "behind one copy": big_bytes, "behind pieces of 16 MiB": 16 * _MIB}
    for name, piece in ways.items():
        step(piece)
        lab.note(name, {"seconds": [step(piece) for _ in range(rounds)], "big_bytes": big_bytes})


def boxes(lab: Lab, *, shape: Sequence[int], rows_kib: Sequence[float], rounds: int) -> None:
    """Note the rate of copies of boxes out of a registered volume, and what the host waits.

    Parameters
    ----------
    shape : sequence of int
        Of a volume of bytes.
    rows_kib : sequence of float
        How much of each row is copied.
    """
    cuda = lab.cuda
    volume = np.empty(tuple(shape), np.uint8)
    fill(volume, 1)
    begun = time.perf_counter()
    cuda.register(volume)
    lab.note("register", {"seconds": [time.perf_counter() - begun], "bytes": volume.nbytes})
    stream = cuda.stream()
    try:
        for kib in rows_kib:
            measure = partial(_box_rate, lab, volume, int(kib * 1024), stream, rounds)
            path = f"rows of {kib:g} KiB"
            found = lab.attempt(path, measure, estimate=1)
            if found:
                lab.note(path, found)
    finally:
        cuda.synchronize()
        cuda.unregister(volume)


def _box_rate(lab: Lab, volume: Array, width: int, stream: Any, count: int) -> dict[str, Any]:
    cuda = lab.cuda
    height = volume.shape[1] // 2
    depth = min(volume.shape[0] // 2, max(1, 256 * _MIB // (width * height)))
    box = (depth, height, width)
    memory = cuda.memory(depth * height * width)
    start = [(length - side) // 2 for length, side in zip(volume.shape, box, strict=True)]
    parms = box_to_device(volume.ctypes.data, volume.shape, start, box, memory.ptr)
    calls: list[float] = []

    def step() -> None:
        begun = time.perf_counter()
        cuda.copy_box(parms, stream)
        calls.append(time.perf_counter() - begun)
        cuda.synchronize()

    step()
    calls.clear()
    seconds = lab.times(step, count)
    nbytes = depth * height * width
    return {"seconds": seconds, "call_seconds": calls, "bytes": nbytes, "box": list(box)}


def pinning(lab: Lab, *, nbytes: int, file_bytes: int, rounds: int, folder: str | None) -> None:
    """Note what page-locking costs, and whether mapped files can be."""
    cuda = lab.cuda

    def allocate() -> None:
        # Freed with the last reference to it.
        cuda.pinned(nbytes)

    def touch() -> Array:
        memory = np.empty((64, nbytes // 64), np.uint8)
        fill(memory, 1)
        return memory

    def register(memory: Array, flags: int = 1) -> None:
        cuda.register(memory, flags)
        cuda.unregister(memory)

    lab.note("allocate and free", {"seconds": lab.times(allocate, rounds), "bytes": nbytes})
    lab.note("touch by all threads", {"seconds": lab.times(touch, rounds), "bytes": nbytes})
    memory = touch()
    seconds = lab.times(lambda: register(memory), rounds)
    lab.note("register touched and unregister", {"seconds": seconds, "bytes": nbytes})
    fresh = [np.empty(nbytes, np.uint8) for _ in range(rounds)]
    seconds = lab.times(lambda: register(fresh.pop()), rounds)
    lab.note("register untouched and unregister", {"seconds": seconds, "bytes": nbytes})
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "mapped"
        np.ones(file_bytes, np.uint8).tofile(path)
        modes: list[tuple[Any, int]] = [("r", 1), ("r", _READ_ONLY), ("r+", 1)]
        for mode, flags in modes:
            mapped = np.memmap(path, np.uint8, mode)
            name = f"register memmap {mode}, flags {flags}"
            # A refusal is a finding, not a failure of the measurement.
            try:
                seconds = lab.times(partial(register, mapped, flags), 1)
                lab.note(name, {"seconds": seconds, "bytes": file_bytes})
            except Exception as error:
                lab.note(name, {"refused": f"{type(error).__name__}: {error}"})


def waiting(lab: Lab, *, nbytes: int, copies: int, rounds: int) -> None:
    """Note the processor time of a thread that waits for an event, blocking or not."""
    cuda = lab.cuda
    pinned, memory, stream = cuda.pinned(nbytes), cuda.memory(nbytes), cuda.stream()
    for block in (True, False):
        event = cuda.event(block=block)
        walls, busy = [], []
        for _ in range(rounds):
            for _ in range(copies):
                cuda.upload(memory, pinned, stream)
            event.record(stream)
            wall, processor = time.perf_counter(), time.thread_time()
            event.synchronize()
            walls.append(time.perf_counter() - wall)
            busy.append(time.thread_time() - processor)
        lab.note(f"block={block}", {"seconds": walls, "processor_seconds": busy})
