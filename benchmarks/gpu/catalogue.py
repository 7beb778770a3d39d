"""What is measured on a GPU, in the order of its worth, and how long it should take. Pure."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

from benchmarks.gpu.pieces import shape_within
from benchmarks.gpu.schedule import Part

__all__ = ["first_part", "make_parts"]

_ARRAYS = 6
"""Source, sink, sink of the peers, result of the whole array, and what CuPy locks for it, which is
a power of two."""
_ITEM = 2
_MIB = 1 << 20


def first_part(folder: str | None) -> Part:
    """Return what comes first: is there a GPU, what is it, what do first steps cost."""
    return Part(
        "start",
        "(h) context, first copy, first kernel; facts",
        "benchmarks.gpu.starting:start",
        {"folder": folder},
        15,
        fresh=True,
    )


def make_parts(
    *, quick: bool, host_bytes: int, gpu_bytes: int, disk_bytes: int, folder: str
) -> tuple[Part, ...]:
    """Return all other parts, with volumes that fit.

    Parameters
    ----------
    host_bytes, gpu_bytes, disk_bytes : int
        What may be taken of each.
    folder : str
        Where files go.
    """

    def fitting(shape: Sequence[int], *, files: bool = False) -> tuple[int, ...]:
        most = min(0.8 * host_bytes / _ARRAYS, 0.8 * disk_bytes / 3 if files else host_bytes)
        return shape_within(shape, _ITEM, most)

    sides = (256, 320, 320) if quick else (1000, 1500, 2000)
    small, middle, large = (fitting((side,) * 3) for side in sides)
    filed = fitting(small, files=True)
    # Where memory is short they are all the same.
    others = [] if quick else [shape for shape in (small, large) if shape != middle]
    short = {"rounds": 2 if quick else 3}
    side = 128 if quick else 512 if gpu_bytes > 16e9 else 256
    return (
        _copies(quick),
        *_case("times-two", middle, None, short),
        *_case("gaussian", middle, None, short),
        _threads(small, quick),
        _memory(side, quick),
        *_case("median-3", middle, None, short),
        *_case("tophat", middle, None, short),
        _crowded(small, quick),
        *_details(quick, folder),
        *_case("dog", middle, None, short),
        *_case("median-5", middle, None, short),
        *_case("times-two", filed, folder, short),
        *_case("gaussian", filed, folder, short),
        *[
            part
            for shape in others
            for work in ("times-two", "gaussian")
            for part in _case(work, shape, None, short)
        ],
    )


def _case(
    work: str, shape: tuple[int, ...], folder: str | None, options: dict[str, Any]
) -> Iterator[Part]:
    """Yield two parts, so that the second is done whatever becomes of the first."""
    gigabytes = prod(shape) * _ITEM / 1e9
    slower = 1 if folder is None else 3
    name = f"{work}, {gigabytes:.2g} GB {'in memory' if folder is None else 'in files'}"
    given = {"work": work, "shape": list(shape), "folder": folder, **options}
    yield Part(
        f"{name}: ours",
        "gpublocks on the GPU: time, events, memory; plan",
        "benchmarks.gpu.comparing:measure_ours",
        given,
        2 + 1.2 * slower * gigabytes,
        group="ours",
    )
    yield Part(
        f"{name}: peers",
        "floors of each stage, other ways, and whether results agree",
        "benchmarks.gpu.comparing:measure_peers",
        given,
        4 + 4 * slower * gigabytes,
        group="peers",
    )


def _copies(quick: bool) -> Part:
    return Part(
        "copies",
        "(a) pinned copies, one way and both, in pieces",
        "benchmarks.gpu.copies:rates",
        {
            "buffer_bytes": (64 if quick else 512) * _MIB,
            "pieces_mib": [1, 16, 64] if quick else [1, 4, 16, 64, 256],
            "rounds": 3 if quick else 7,
        },
        3 if quick else 6,
    )


def _threads(shape: tuple[int, ...], quick: bool) -> Part:
    options = {"shape": list(shape), "rounds": 2 if quick else 3}
    return Part(
        "threads",
        "(c) NumPy gathers and scatters blocks in several threads",
        "benchmarks.gpu.staging:measure_threads",
        options,
        2 if quick else 12,
    )


def _memory(side: int, quick: bool) -> Part:
    return Part(
        "functions",
        "(f) time and memory of functions of ndimage",
        "benchmarks.gpu.kernels:memory",
        {"side": side, "rounds": 2 if quick else 3},
        20 if quick else 35,
        fresh=True,
    )


def _crowded(shape: tuple[int, ...], quick: bool) -> Part:
    return Part(
        "crowded",
        "a run beside a process that holds 60 and 95 % of the GPU",
        "benchmarks.gpu.crowding:crowded",
        {
            "work": "gaussian",
            "shape": list(shape),
            "folder": None,
            "shares": [0.6] if quick else [0.6, 0.95],
        },
        8 if quick else 18,
    )


def _details(quick: bool, folder: str) -> Iterator[Part]:
    size = (64 if quick else 1024) * _MIB
    yield Part(
        "pinning",
        "(e) cost of page-locked memory; maps of files",
        "benchmarks.gpu.copies:pinning",
        {"nbytes": size, "file_bytes": 64 * _MIB, "rounds": 2, "folder": folder},
        2 if quick else 8,
    )
    yield Part(
        "latency",
        "(b) 1 KB to the GPU behind large copies",
        "benchmarks.gpu.copies:latency",
        {"big_bytes": 256 * _MIB, "rounds": 10 if quick else 30},
        2,
    )
    yield Part(
        "constants",
        "(j) filters of constant images",
        "benchmarks.gpu.kernels:constants",
        {"values": [1, 3, 10, 100, 1000, 10000, 65535]},
        5,
    )
    yield Part(
        "waiting",
        "(i) processor time of a thread that waits for an event",
        "benchmarks.gpu.copies:waiting",
        {"nbytes": 256 * _MIB, "copies": 4 if quick else 16, "rounds": 3},
        2,
    )
    yield Part(
        "boxes",
        "(d) copies of boxes out of a registered volume",
        "benchmarks.gpu.copies:boxes",
        {
            "shape": [128, 512, 8192] if quick else [512, 1024, 8192],
            "rows_kib": [0.5, 2, 8] if quick else [0.5, 1, 2, 4, 8],
            "rounds": 3,
        },
        2 if quick else 8,
    )
    yield Part(
        "pools",
        "(g) memory pools of CuPy and of the driver",
        "benchmarks.gpu.kernels:pools",
        {"side": 128 if quick else 256, "calls": 10 if quick else 30, "rounds": 3},
        2 if quick else 4,
    )
