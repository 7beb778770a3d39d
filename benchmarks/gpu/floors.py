"""Each stage of a run measured alone, and all copies together without computing. Touches the GPU.

Nothing that moves the same blocks with the same means can be faster than these.
"""

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.gpu.lab import Lab
from benchmarks.gpu.pieces import Piece
from benchmarks.gpu.staging import Copiers, bytes_as, copiers, thread_counts
from gpublocks.budget import SLOTS
from gpublocks.contracts import Array

__all__ = ["Volumes", "measure_floors"]

_WAIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Volumes:
    """What is moved, and where.

    Parameters
    ----------
    source, sink : ndarray
        Of the same shape and type.
    pieces : sequence of Piece
    """

    source: Array
    sink: Array
    pieces: Sequence[Piece]

    @property
    def itemsize(self) -> int:
        """Bytes per voxel."""
        return self.source.dtype.itemsize

    @property
    def read_bytes(self) -> int:
        """Bytes of all blocks that are read."""
        return sum(piece.read_size for piece in self.pieces) * self.itemsize

    @property
    def written_bytes(self) -> int:
        """Bytes of all blocks that are written."""
        return sum(piece.valid_size for piece in self.pieces) * self.itemsize


class _Slots:
    """Page-locked and device memory for some blocks, and streams."""

    def __init__(self, cuda: Any, volumes: Volumes) -> None:
        read = max(piece.read_size for piece in volumes.pieces) * volumes.itemsize
        valid = max(piece.valid_size for piece in volumes.pieces) * volumes.itemsize
        self.pinned_in = [cuda.pinned(read) for _ in range(SLOTS)]
        self.pinned_out = [cuda.pinned(valid) for _ in range(SLOTS)]
        self.device_in = cuda.memory(read)
        self.device_out = cuda.memory(valid)
        self.stream_in, self.stream_out = cuda.stream(), cuda.stream()
        self.compute = cuda.stream()
        for memory in (*self.pinned_in, *self.pinned_out):
            memory.fill(1)


def measure_floors(lab: Lab, volumes: Volumes, function: Callable[[Any], Any], rounds: int) -> None:
    """Note under ``floors`` the seconds of each stage over all blocks, and of all copies together.

    The copies are tried with several numbers of threads, 4 at least where there are as many CPUs;
    gathering and scattering alone with that which moved everything soonest.
    """
    lab.note("floors", {"read_bytes": volumes.read_bytes, "written_bytes": volumes.written_bytes})
    slots: list[_Slots] = []
    seconds = lab.times(lambda: slots.append(_Slots(lab.cuda, volumes)), 1)
    lab.note("floors/allocate", {"seconds": seconds})
    compute = partial(_compute, lab, volumes, slots[0], function, rounds)
    lab.attempt("floors/compute", compute, estimate=1)
    moved: dict[int, float] = {}
    counts = [count for count in thread_counts() if 4 <= count <= 12] or thread_counts()[-1:]
    for count in counts:
        path = f"floors/movement/{count} threads"
        move = partial(_movement, lab, path, volumes, slots[0], count, rounds)
        found = lab.attempt(path, move, estimate=1)
        if found is not None:
            moved[count] = found
    copies = partial(_copies, lab, volumes, slots[0], rounds)
    lab.attempt("floors/copies", copies, estimate=0.5)
    best = min(moved, key=lambda count: moved[count], default=counts[-1])
    staging = partial(_staging, lab, volumes, slots[0], best, rounds)
    lab.attempt("floors/staging", staging, estimate=1)


def _compute(
    lab: Lab,
    volumes: Volumes,
    slots: _Slots,
    function: Callable[[Any], Any],
    rounds: int,
) -> None:
    """Note what the GPU takes to compute and crop all blocks, which are there already."""
    cuda = lab.cuda
    dtype = volumes.source.dtype
    with copiers(thread_counts()[-1]) as threads:
        piece = max(volumes.pieces, key=lambda piece: piece.read_size)
        block = bytes_as(slots.pinned_in[0], piece.read_shape, dtype)
        threads.copy(block, volumes.source[piece.read])
    cuda.upload(slots.device_in, block.reshape(-1).view("u1"), slots.compute)
    cuda.synchronize()
    seconds: list[float] = []

    def step() -> None:
        first, last = cuda.event(timing=True), cuda.event(timing=True)
        first.record(slots.compute)
        for piece in volumes.pieces:
            result = function(cuda.array(slots.device_in, piece.read_shape, dtype))
            out = cuda.array(slots.device_out, piece.valid_shape, result.dtype)
            out[...] = result[piece.crop]
        last.record(slots.compute)
        last.synchronize()
        seconds.append(cuda.elapsed(first, last))

    with cuda.pool(), slots.compute:
        first_wall = lab.times(step, 1)
        first_seconds = seconds.copy()
        seconds.clear()
        walls = lab.times(step, rounds)
    lab.note(
        "floors/compute",
        {
            "first_seconds": first_seconds,
            "first_wall_seconds": first_wall,
            "seconds": seconds,
            "wall_seconds": walls,
        },
    )


def _copies(lab: Lab, volumes: Volumes, slots: _Slots, rounds: int) -> None:
    """Note how long all blocks take to the GPU, from it, and both at once."""
    cuda = lab.cuda
    up = [piece.read_size * volumes.itemsize for piece in volumes.pieces]
    down = [piece.valid_size * volumes.itemsize for piece in volumes.pieces]

    def move(*, there: bool, back: bool) -> None:
        for read, valid in zip(up, down, strict=True):
            if there:
                cuda.upload(slots.device_in, slots.pinned_in[0][:read], slots.stream_in)
            if back:
                cuda.download(slots.pinned_out[0][:valid], slots.device_out, slots.stream_out)
        cuda.synchronize()

    for name, there, back in (("h2d", True, False), ("d2h", False, True), ("both", True, True)):
        seconds = lab.times(partial(move, there=there, back=back), rounds)
        nbytes = volumes.read_bytes * there + volumes.written_bytes * back
        lab.note(f"floors/{name}", {"seconds": seconds, "bytes": nbytes})


def _staging(lab: Lab, volumes: Volumes, slots: _Slots, count: int, rounds: int) -> None:
    """Note how long so many threads take to gather all blocks, and to scatter them."""
    with copiers(count) as threads:

        def gather() -> None:
            for piece in volumes.pieces:
                _gather(volumes, piece, slots.pinned_in[0], threads)

        def scatter() -> None:
            for piece in volumes.pieces:
                _scatter(volumes, piece, slots.pinned_out[0], threads)

        for name, step, nbytes in (
            ("gather", gather, volumes.read_bytes),
            ("scatter", scatter, volumes.written_bytes),
        ):
            seconds = lab.times(step, rounds)
            lab.note(f"floors/{name}/{count} threads", {"seconds": seconds, "bytes": nbytes})


def _movement(
    lab: Lab, path: str, volumes: Volumes, slots: _Slots, count: int, rounds: int
) -> float:
    """Note how long all blocks take through all four copies at once, in as many threads each."""
    with copiers(count) as gathering, copiers(count) as scattering:
        move = partial(_move_all, lab.cuda, volumes, slots, gathering, scattering)
        seconds = lab.times(move, rounds)
    nbytes = volumes.read_bytes + volumes.written_bytes
    lab.note(path, {"seconds": seconds, "bytes": nbytes})
    return min(seconds)


def _move_all(
    cuda: Any, volumes: Volumes, slots: _Slots, gathering: Copiers, scattering: Copiers
) -> None:
    """Take all blocks to the GPU and as many from it, through all slots.

    What comes back was on the GPU already, but is asked for when its block has arrived. Each
    stage has its thread; a slot returns when whoever has it is done with it.
    """
    in_slots, arrived, out_slots, returned = (queue.Queue[Any]() for _ in range(4))
    for memory in slots.pinned_in:
        in_slots.put((memory, None))
    for memory in slots.pinned_out:
        out_slots.put(memory)

    def load() -> None:
        for piece in volumes.pieces:
            memory, copied = in_slots.get(timeout=_WAIT_SECONDS)
            if copied is not None:
                copied.synchronize()
            block = _gather(volumes, piece, memory, gathering)
            cuda.upload(slots.device_in, block, slots.stream_in)
            copied = cuda.event()
            copied.record(slots.stream_in)
            in_slots.put((memory, copied))
            arrived.put((piece, copied))

    def fetch() -> None:
        for _ in volumes.pieces:
            piece, copied = arrived.get(timeout=_WAIT_SECONDS)
            memory = out_slots.get(timeout=_WAIT_SECONDS)
            slots.stream_out.wait_event(copied)
            size = piece.valid_size * volumes.itemsize
            cuda.download(memory[:size], slots.device_out, slots.stream_out)
            copied = cuda.event()
            copied.record(slots.stream_out)
            returned.put((piece, memory, copied))

    def store() -> None:
        for _ in volumes.pieces:
            piece, memory, copied = returned.get(timeout=_WAIT_SECONDS)
            copied.synchronize()
            _scatter(volumes, piece, memory, scattering)
            out_slots.put(memory)

    with ThreadPoolExecutor(3) as pool:
        for stage in [pool.submit(step) for step in (load, fetch, store)]:
            stage.result()


def _gather(volumes: Volumes, piece: Piece, memory: Array, threads: Copiers) -> Array:
    """Copy a block out of the source and return its bytes."""
    block = bytes_as(memory, piece.read_shape, volumes.source.dtype)
    threads.copy(block, volumes.source[piece.read])
    found: Array = memory[: block.nbytes]
    return found


def _scatter(volumes: Volumes, piece: Piece, memory: Array, threads: Copiers) -> None:
    """Copy a block into the sink."""
    block = bytes_as(memory, piece.valid_shape, volumes.sink.dtype)
    threads.copy(volumes.sink[piece.valid], block)
