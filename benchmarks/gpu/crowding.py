"""A run while another process holds much of the GPU. Touches the GPU and processes."""

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from benchmarks.gpu.comparing import counted, prepared, run_ours
from benchmarks.gpu.functions import WORKS
from benchmarks.gpu.lab import Lab
from benchmarks.gpu.peers import whole
from benchmarks.gpu.volumes import count_unequal, fill

__all__ = ["crowded", "hold"]

_START_SECONDS = 30.0
_CHUNK_BYTES = 1 << 30


def crowded(
    lab: Lab, *, work: str, shape: Sequence[int], folder: str | None, shares: Sequence[float]
) -> None:
    """Note whether a run is complete and exact beside another process that holds memory.

    Parameters
    ----------
    shares : sequence of float
        Of all memory of the GPU.
    """
    done, volume = WORKS[work], prepared(lab, shape, folder)
    lab.kept.pop("result", None)
    expected = whole(lab.cuda, done.function, volume.source)
    for share in shares:

        def measure(share: float = share) -> None:
            fill(volume.sink)
            lab.cuda.trim()
            with _other_process(share) as held:
                free, total = lab.cuda.memory_info()
                path = f"{100 * share:.0f} % held"
                lab.note(path, {"held_bytes": held, "free_bytes": free, "total_bytes": total})
                events, seconds = run_ours(done, volume)
            lab.note(
                path, {"seconds": [seconds], "wrong_voxels": count_unequal(volume.sink, expected)}
            )
            lab.note(f"{path}/events", counted(events))

        lab.attempt(f"{100 * share:.0f} % held", measure, estimate=5)


@contextmanager
def _other_process(share: float) -> Iterator[int]:
    """Let a process hold memory for a while; gives the bytes that it got."""
    code = f"from benchmarks.gpu import hold; hold({share})"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        late = threading.Timer(_START_SECONDS, process.kill)
        late.start()
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            late.cancel()
            if not said:
                raise RuntimeError(f"the other process ended with status {process.wait()}")
            yield int(said)
        finally:
            late.cancel()
            with suppress(OSError):
                process.communicate()


def hold(share: float) -> None:
    """Take this part of the GPU's memory, say how much it is, and keep it while anyone listens."""
    import cupy

    left = int(share * cupy.cuda.runtime.memGetInfo()[1])
    taken, chunks = 0, []
    with suppress(cupy.cuda.runtime.CUDARuntimeError):
        while left > 0:
            size = min(left, _CHUNK_BYTES)
            chunks.append(cupy.cuda.Memory(size))
            taken, left = taken + size, left - size
    print(taken, flush=True)
    sys.stdin.read()
