"""Functions over volumes, and the ways in which they are measured. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from gpublocks.bench.case import Way

__all__ = [
    "DOG",
    "FILES_PROCESSES",
    "FILES_THREADS",
    "GAUSSIAN",
    "MEDIAN",
    "MEMORY_PROCESSES",
    "MEMORY_THREADS",
    "NEGATIVE",
    "PLAN",
    "PROCESS",
    "SPLIT",
    "TIMES_TWO",
    "TOPHAT",
    "USUAL",
    "WARM",
    "WORKERS",
    "Work",
    "building",
    "loop_way",
    "our_way",
    "volume_way",
]


@dataclass(frozen=True, slots=True)
class Work:
    """A function over a volume."""

    name: str
    function: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    halo: tuple[int, ...] = (0, 0, 0)
    dtype: str = "float32"


WORKERS = 2
PROCESS = "gpublocks.block_processing:process"
PLAN = "gpublocks.block_processing:plan"
SPLIT = "gpublocks.block_processing:split_into_blocks"
_VOLUME_WORK = "gpublocks.bench.programs:VolumeWork"
_LOOP = "gpublocks.bench.loops:threaded_loop"

GAUSSIAN = Work("gaussian", "scipy.ndimage:gaussian_filter", {"sigma": 2}, (8, 8, 8))
MEDIAN = Work("median", "scipy.ndimage:median_filter", {"size": 3}, (1, 1, 1))
TOPHAT = Work("tophat", "scipy.ndimage:white_tophat", {"size": [5, 15, 15]}, (4, 14, 14))
DOG = Work("dog", "gpublocks.bench.loops:difference_of_gaussians", {}, (8, 8, 8))
TIMES_TWO = Work("times-two", "gpublocks.bench.loops:times_two", dtype="uint16")
NEGATIVE = Work("negative", "numpy:negative")

FILES_PROCESSES = "files, processes"
FILES_THREADS = "files, threads"
MEMORY_THREADS = "memory, threads"
MEMORY_PROCESSES = "memory, processes"
_EXECUTORS = {
    FILES_PROCESSES: ("processes", False),
    FILES_THREADS: ("threads", False),
    MEMORY_THREADS: ("threads", True),
    MEMORY_PROCESSES: ("processes", True),
}
_SEVERAL_BLOCKS = {"axes": [0], "size_max": 4, "overlap": 0}
WARM: Mapping[str, Mapping[str, Any] | None] = {
    "serial": None,
    "threads": {"executor": "threads", "processes": WORKERS, **_SEVERAL_BLOCKS},
    "processes": {"executor": "processes", "processes": WORKERS, **_SEVERAL_BLOCKS},
}
USUAL = (FILES_PROCESSES, FILES_THREADS, MEMORY_THREADS)


def our_way(
    name: str,
    work: Work,
    shape: tuple[int, ...],
    *,
    label: str | None = None,
    fresh: bool = False,
    sizes: Mapping[str, Any] = MappingProxyType({}),
) -> Way:
    """Return the way of an executor, with sizes chosen automatically unless given."""
    executor, in_memory = _EXECUTORS[name]
    return volume_way(
        label or name,
        work,
        shape,
        options={"executor": executor, "processes": WORKERS, "halo": work.halo, **sizes},
        warm=WARM[executor],
        in_memory=in_memory,
        fresh=fresh,
        predict=PLAN if fresh else None,
    )


def loop_way(
    work: Work, shape: tuple[int, ...], block: tuple[int, ...], in_memory: bool = False
) -> Way:
    """Return the way of a loop written by hand."""
    where = "memory" if in_memory else "files"
    sides = "x".join(str(side or length) for side, length in zip(block, shape, strict=True))
    return volume_way(
        f"loop {where} {sides}",
        work,
        shape,
        subject=_LOOP,
        options={"block": block, "halo": work.halo, "threads": WORKERS},
        in_memory=in_memory,
        rival=where,
    )


def volume_way(
    name: str,
    work: Work,
    shape: tuple[int, ...],
    *,
    subject: str = PROCESS,
    options: Mapping[str, Any] | None = None,
    warm: Mapping[str, Any] | None = None,
    in_memory: bool = False,
    returns: bool = False,
    rival: str | None = None,
    fresh: bool = False,
    predict: str | None = None,
) -> Way:
    """Return a way of doing a work."""
    return Way(
        name,
        _VOLUME_WORK,
        {
            "subject": subject,
            "function": work.function,
            "kwargs": work.kwargs,
            "source": _volume(work.dtype, shape),
            "expected": _result(work, shape),
            "options": options or {},
            "warm": warm,
            "in_memory": in_memory or returns,
            "returns": returns,
            "predict": predict,
        },
        rival,
        fresh,
    )


def building(works: Sequence[tuple[Work, tuple[int, ...]]]) -> Way:
    """Return the way that builds volumes and results."""
    return Way(
        "building volumes",
        "gpublocks.bench.volumes:Built",
        {
            "volumes": {_volume(work.dtype, shape): (shape, work.dtype) for work, shape in works},
            "expected": [
                {
                    "name": _result(work, shape),
                    "source": _volume(work.dtype, shape),
                    "function": work.function,
                    "kwargs": work.kwargs,
                }
                for work, shape in works
            ],
        },
    )


def _volume(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype}-{'x'.join(map(str, shape))}"


def _result(work: Work, shape: tuple[int, ...]) -> str:
    return f"{work.name}-{_volume(work.dtype, shape)}"
