"""The frozen cases: what is measured, compared with what, and what it may be. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

__all__ = ["Case", "Figure", "Way", "make_cases"]


@dataclass(frozen=True, slots=True)
class Figure:
    """A number by which a case is judged.

    Parameters
    ----------
    label, unit : str
    bound : float or None
        The most that its median may be; None for one that is only told.
    way, quantity : str
        Which measurements it is made of.
    compare : {'value', 'ratio', 'difference'}
        Whether they are taken as they are, or with those of another way of the same round.
    against : tuple of str
        The other ways; of several, the one with the smallest median counts.
    against_quantity : str
    scale : float
        Is multiplied with everything: from seconds to `unit`.
    """

    label: str
    unit: str
    bound: float | None
    way: str
    quantity: str = "seconds"
    compare: Literal["value", "ratio", "difference"] = "value"
    against: tuple[str, ...] = ()
    against_quantity: str = "seconds"
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Way:
    """One way of doing a work.

    Parameters
    ----------
    name : str
    program : str
        ``'module:name'`` of a class whose objects can be prepared, done and checked.
    options : mapping
        Its arguments; plain values.
    rival : str or None
        Kind of rivals of which only the best count.
    fresh : bool
        Whether each measurement needs a new process, whose memory is sampled.
    """

    name: str
    program: str
    options: Mapping[str, Any]
    rival: str | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    """Something that is measured.

    Parameters
    ----------
    name : str
    measures : str
        What, in words.
    parameters : mapping
        Sizes, for people to read.
    reference : str
        How that with which it is compared is computed.
    ways : tuple of Way
    figures : tuple of Figure
    rounds : int
        How often each way is measured, after a warm-up.
    setup : Way or None
        Is done once before.
    """

    name: str
    measures: str
    parameters: Mapping[str, Any]
    reference: str
    ways: tuple[Way, ...]
    figures: tuple[Figure, ...]
    rounds: int
    setup: Way | None = None


@dataclass(frozen=True, slots=True)
class _Work:
    """A function over a volume."""

    name: str
    function: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    halo: tuple[int, ...] = (0, 0, 0)
    dtype: str = "float32"


_WORKERS = 2
_PROCESS = "gpublocks.block_processing:process"
_PLAN = "gpublocks.block_processing:plan"
_SPLIT = "gpublocks.block_processing:split_into_blocks"
_VOLUME_WORK = "gpublocks.bench.programs:VolumeWork"
_LOOP = "gpublocks.bench.loops:threaded_loop"
_MIB = 1 / 2**20

_GAUSSIAN = _Work("gaussian", "scipy.ndimage:gaussian_filter", {"sigma": 2}, (8, 8, 8))
_MEDIAN = _Work("median", "scipy.ndimage:median_filter", {"size": 3}, (1, 1, 1))
_TOPHAT = _Work("tophat", "scipy.ndimage:white_tophat", {"size": [5, 15, 15]}, (4, 14, 14))
_DOG = _Work("dog", "gpublocks.bench.loops:difference_of_gaussians", {}, (8, 8, 8))
_TIMES_TWO = _Work("times-two", "gpublocks.bench.loops:times_two", dtype="uint16")
_NEGATIVE = _Work("negative", "numpy:negative")

_FILES_PROCESSES = "files, processes"
_FILES_THREADS = "files, threads"
_MEMORY_THREADS = "memory, threads"
_MEMORY_PROCESSES = "memory, processes"
_EXECUTORS = {
    _FILES_PROCESSES: ("processes", False),
    _FILES_THREADS: ("threads", False),
    _MEMORY_THREADS: ("threads", True),
    _MEMORY_PROCESSES: ("processes", True),
}
_SEVERAL_BLOCKS = {"axes": [0], "size_max": 4, "overlap": 0}
_WARM: Mapping[str, Mapping[str, Any] | None] = {
    "serial": None,
    "threads": {"executor": "threads", "processes": _WORKERS, **_SEVERAL_BLOCKS},
    "processes": {"executor": "processes", "processes": _WORKERS, **_SEVERAL_BLOCKS},
}
_USUAL = (_FILES_PROCESSES, _FILES_THREADS, _MEMORY_THREADS)


def make_cases(*, quick: bool) -> tuple[Case, ...]:
    """Return all cases, with small volumes, few rounds and no bounds if `quick`."""
    shape = (64, 64, 64) if quick else (512, 512, 256)
    cube = (64, 64, 64) if quick else (512, 512, 512)
    growing = (64, 96, 96) if quick else (128, 256, 256)
    cases = (
        _import(3 if quick else 15),
        _planning(10_000 if quick else 1_000_000, 10 if quick else 100, 3 if quick else 7),
        _tiny_call(3 if quick else 50),
        _first_call(2 if quick else 11),
        _tiny_cells(4 if quick else 16, 3 if quick else 9),
        _against_serial(_GAUSSIAN, shape, 3 if quick else 7),
        _against_loops(_MEDIAN, shape, quick, 3),
        _against_loops(_TOPHAT, shape, quick, 3 if quick else 5),
        _against_loops(_DOG, shape, quick, 3 if quick else 5),
        _times_two(cube, quick, 3 if quick else 9),
        _memory(shape, cube, 1 if quick else 2),
        _memory_growth(growing, 1 if quick else 3),
    )
    return tuple(_unbound(case) for case in cases) if quick else cases


def _unbound(case: Case) -> Case:
    """Return a case without bounds: they hold for full volumes."""
    return replace(case, figures=tuple(replace(figure, bound=None) for figure in case.figures))


def _against_serial(work: _Work, shape: tuple[int, ...], rounds: int) -> Case:
    serial = _way("whole array", work, shape, subject="gpublocks.bench.loops:whole", returns=True)
    figures = tuple(
        Figure(
            name, "x", 0.87, name, compare="ratio", against=(serial.name,), scale=float(_WORKERS)
        )
        for name in _USUAL
    )
    return Case(
        work.name,
        "sizes chosen automatically, warm; in units of the ideal time on 2 cores",
        {"shape": shape, "dtype": work.dtype, "halo": work.halo, **work.kwargs},
        "half the time of the same function called on the whole array in memory, in one thread",
        (serial, *[_ours(name, work, shape) for name in _USUAL]),
        figures,
        rounds,
        _setup([(work, shape)]),
    )


def _against_loops(work: _Work, shape: tuple[int, ...], quick: bool, rounds: int) -> Case:
    blocks = [(16, 64, 64), (32, 32, 64)] if quick else [
        (64, 64, 128), (128, 128, 128), (128, 256, 256), (32, 0, 0), (256, 0, 0)
    ]  # fmt: skip
    loops = [_loop(work, shape, block) for block in blocks]
    names = tuple(loop.name for loop in loops)
    return Case(
        work.name,
        "sizes chosen automatically, warm; in units of the best hand-written loop",
        {"shape": shape, "dtype": work.dtype, "halo": work.halo, **work.kwargs},
        "best of several loops in two threads over blocks of memory maps",
        (*loops, *[_ours(name, work, shape) for name in _USUAL]),
        tuple(Figure(name, "x", 1.0, name, compare="ratio", against=names) for name in _USUAL),
        rounds,
        _setup([(work, shape)]),
    )


def _times_two(shape: tuple[int, ...], quick: bool, rounds: int) -> Case:
    work = _TIMES_TWO
    loops: dict[bool, list[Way]] = {}
    direct: dict[bool, list[Way]] = {}
    for in_memory in (False, True):
        where = "memory" if in_memory else "files"
        slabs = (4, 16) if quick else (1, 4, 16, 64)
        loops[in_memory] = [_loop(work, shape, (slab, 0, 0), in_memory) for slab in slabs]
        direct[in_memory] = [
            _way(
                f"loop out= {where} {slab}",
                work,
                shape,
                subject="gpublocks.bench.loops:times_two_loop",
                options={"slab": slab, "threads": _WORKERS},
                in_memory=in_memory,
                rival=f"out= {where}",
            )
            for slab in slabs
        ]
    figures = []
    for name, in_memory in ((_FILES_PROCESSES, False), (_MEMORY_THREADS, True)):
        against = tuple(loop.name for loop in loops[in_memory])
        figures.append(Figure(name, "x", 1.2, name, compare="ratio", against=against))
        against = tuple(loop.name for loop in direct[in_memory])
        label = f"{name} (to out=)"
        figures.append(Figure(label, "x", None, name, compare="ratio", against=against))
    ours = [_ours(name, work, shape) for name in (_FILES_PROCESSES, _MEMORY_THREADS)]
    rivals = [way for ways in (*loops.values(), *direct.values()) for way in ways]
    return Case(
        work.name,
        "the cheapest function: what moving blocks costs",
        {"shape": shape, "dtype": work.dtype},
        "best of loops in two threads over slabs: sink[a:b] = source[a:b] * 2; told beside it: "
        "numpy.multiply(source[a:b], 2, out=sink[a:b])",
        (*rivals, *ours),
        tuple(figures),
        rounds,
        _setup([(work, shape)]),
    )


def _tiny_cells(side: int, rounds: int) -> Case:
    shape, cells = (8 * side,) * 3, side**3
    sizes = {"axes": "all", "size_max": 8, "overlap": 0}
    ways = [
        _way(
            name,
            _NEGATIVE,
            shape,
            options={"executor": name, "processes": workers, **sizes},
            warm=_WARM[name],
        )
        for name, workers in (("serial", 1), ("processes", _WORKERS))
    ]
    return Case(
        "tiny-cells",
        f"{cells} blocks of 8 x 8 x 8 from file to file: what a block costs",
        {"shape": shape, "dtype": _NEGATIVE.dtype, "cells": cells},
        "none",
        tuple(ways),
        tuple(
            Figure(way.name, "µs/block", bound, way.name, scale=1e6 / cells)
            for way, bound in zip(ways, (60.0, 100.0), strict=True)
        ),
        rounds,
        _setup([(_NEGATIVE, shape)]),
    )


_TINY_SIZES = {"axes": [0], "size_max": 16, "overlap": 0}


def _tiny_call(rounds: int) -> Case:
    shape = (64, 64)
    options = {"executor": "processes", "processes": _WORKERS, **_TINY_SIZES}
    ways = [
        _way(name, _NEGATIVE, shape, options=options, warm=_WARM["processes"], in_memory=in_memory)
        for name, in_memory in ((_FILES_PROCESSES, False), (_MEMORY_PROCESSES, True))
    ]
    return Case(
        "tiny-call",
        "a call for 4 tiny blocks with a warm pool of 2 processes",
        {"shape": shape, "dtype": _NEGATIVE.dtype},
        "none",
        tuple(ways),
        tuple(Figure(way.name, "ms", 10.0, way.name, scale=1e3) for way in ways),
        rounds,
        _setup([(_NEGATIVE, shape)]),
    )


_FIRST_CALL = f"""\
import time
import numpy as np
import gpublocks.block_processing as bp
source = np.zeros((64, 64), np.float32)
sink = np.ones_like(source)
begun = time.perf_counter()
bp.process(np.negative, source, sink, processes={_WORKERS}, **{_TINY_SIZES!r})
print(time.perf_counter() - begun)
assert not sink.any()
"""
_WORKER_IMPORTS = """\
import subprocess, sys, time
code = "import gpublocks.executors._worker; print('.', flush=True)"
begun = time.perf_counter()
worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
worker.stdout.read(1)
seconds = time.perf_counter() - begun
worker.communicate()
print(seconds)
"""


def _first_call(rounds: int) -> Case:
    ways = (
        _interpreter("first call", _FIRST_CALL),
        _interpreter("interpreter and imports", _WORKER_IMPORTS),
    )
    return Case(
        "first-call",
        "the first call of a program for 4 tiny blocks with 2 processes, which must be started",
        {},
        "time until one interpreter, started alone, has imported what a worker imports",
        ways,
        (
            Figure("beyond its imports", "ms", 100.0, ways[0].name, compare="difference",
                   against=(ways[1].name,), scale=1e3),
            Figure("in all", "ms", None, ways[0].name, scale=1e3),
        ),
        rounds,
    )  # fmt: skip


_IMPORT = """\
import time
import numpy
begun = time.perf_counter()
import {}
print(time.perf_counter() - begun)
"""


def _import(rounds: int) -> Case:
    names = ("gpublocks", "gpublocks.block_processing")
    ways = tuple(_interpreter(name, _IMPORT.format(name)) for name in names)
    return Case(
        "import",
        "imports beyond NumPy's own, in fresh interpreters; names are loaded when used",
        {},
        "none",
        ways,
        (
            Figure("gpublocks", "ms", 100.0, names[0], scale=1e3),
            Figure("with the front door", "ms", None, names[1], scale=1e3),
        ),
        rounds,
    )


def _planning(on_one_axis: int, on_each_of_three: int, rounds: int) -> Case:
    ways, figures = [], []
    for axes, blocks in (([0], on_one_axis), ([0, 1, 2], on_each_of_three)):
        shape = (2 * blocks + 1,) * len(axes)
        options = {"axes": axes, "size_max": 3, "overlap": 1, "processes": _WORKERS}
        where = "1 axis" if len(axes) == 1 else f"{len(axes)} axes"
        for name, subject, arguments, sequence, taken in (
            ("split", _SPLIT, ["source"], None, "slicing"),
            ("plan", _PLAN, ["numpy:negative", "source"], "grid", "read"),
        ):
            way = Way(
                f"{name}, {where}",
                "gpublocks.bench.programs:Planning",
                {
                    "subject": subject,
                    "arguments": arguments,
                    "shape": shape,
                    "options": options,
                    "blocks": blocks ** len(axes),
                    "sequence": sequence,
                    "taken": taken,
                },
            )
            per_block = 1e6 / blocks ** len(axes)
            ways.append(way)
            figures += [
                Figure(f"{way.name}: time", "ms", 20.0, way.name, scale=1e3),
                Figure(f"{way.name}: memory", "MB", 10.0, way.name, "peak_bytes", scale=1e-6),
                Figure(f"{way.name}: walk", "µs/block", 15.0, way.name, "walk_seconds",
                       scale=per_block),
            ]  # fmt: skip
    return Case(
        "planning",
        "splitting one axis, and three; memory as traced; a walk asking each block where it lies",
        {"blocks": (on_one_axis, on_each_of_three**3)},
        "none",
        tuple(ways),
        tuple(figures),
        rounds,
    )


def _memory(shape: tuple[int, ...], cube: tuple[int, ...], rounds: int) -> Case:
    works = [(_GAUSSIAN, shape), (_MEDIAN, shape), (_TOPHAT, shape), (_DOG, shape)]
    measured = [(work, size, name) for work, size in works for name in _USUAL]
    measured += [(_TIMES_TWO, cube, name) for name in (_FILES_PROCESSES, _MEMORY_THREADS)]
    ways = tuple(
        _ours(name, work, size, label=f"{work.name}: {name}", fresh=True)
        for work, size, name in measured
    )
    return Case(
        "memory",
        "Pss_Anon + Pss_Shmem of all processes over the warm pool, sampled every 10 ms",
        {"shape": shape, "times-two": cube},
        "none",
        ways,
        tuple(
            Figure(way.name, "MiB", 100.0, way.name, "peak_bytes", scale=_MIB) for way in ways
        ),
        rounds,
        _setup([*works, (_TIMES_TWO, cube)]),
    )  # fmt: skip


def _memory_growth(shape: tuple[int, ...], rounds: int) -> Case:
    volumes = {
        factor: (shape[0] * factor // side, shape[1] * side, shape[2])
        for factor, side in ((1, 1), (4, 2), (16, 4))
    }
    blocks = {"axes": "all", "size_max": min(shape) // 2 + 16, "optimization": False}
    ways: list[Way] = []
    figures: list[Figure] = []
    for name in (_FILES_PROCESSES, _FILES_THREADS, _MEMORY_PROCESSES):
        grown = {
            factor: _ours(
                name, _GAUSSIAN, size, label=f"{name}, {factor}x", fresh=True, sizes=blocks
            )
            for factor, size in volumes.items()
        }
        ways += grown.values()
        for way in grown.values():
            figures += [
                Figure(f"{way.name}: peak", "MiB", None, way.name, "peak_bytes", scale=_MIB),
                Figure(f"{way.name}: peak to plan", "x", 1.0, way.name, "peak_bytes", "ratio",
                       (way.name,), "predicted_bytes"),
            ]  # fmt: skip
        figures.append(
            Figure(f"{name}: 16x to 1x", "x", 1.1, grown[16].name, "peak_bytes", "ratio",
                   (grown[1].name,), "peak_bytes")
        )  # fmt: skip
    return Case(
        "memory-growth",
        "gaussian over 1, 4 and 16 times a volume: memory as above, and what the plan predicted",
        {"shapes": list(volumes.values()), **blocks},
        "the plan's peak_bytes, which is what the run takes beyond its idle workers",
        tuple(ways),
        tuple(figures),
        rounds,
        _setup([(_GAUSSIAN, size) for size in volumes.values()]),
    )


def _ours(
    name: str,
    work: _Work,
    shape: tuple[int, ...],
    *,
    label: str | None = None,
    fresh: bool = False,
    sizes: Mapping[str, Any] = MappingProxyType({}),
) -> Way:
    """Return the way of an executor, with sizes chosen automatically unless given."""
    executor, in_memory = _EXECUTORS[name]
    return _way(
        label or name,
        work,
        shape,
        options={"executor": executor, "processes": _WORKERS, "halo": work.halo, **sizes},
        warm=_WARM[executor],
        in_memory=in_memory,
        fresh=fresh,
        predict=_PLAN if fresh else None,
    )


def _loop(
    work: _Work, shape: tuple[int, ...], block: tuple[int, ...], in_memory: bool = False
) -> Way:
    where = "memory" if in_memory else "files"
    sides = "x".join(str(side or length) for side, length in zip(block, shape, strict=True))
    return _way(
        f"loop {where} {sides}",
        work,
        shape,
        subject=_LOOP,
        options={"block": block, "halo": work.halo, "threads": _WORKERS},
        in_memory=in_memory,
        rival=where,
    )


def _way(
    name: str,
    work: _Work,
    shape: tuple[int, ...],
    *,
    subject: str = _PROCESS,
    options: Mapping[str, Any] | None = None,
    warm: Mapping[str, Any] | None = None,
    in_memory: bool = False,
    returns: bool = False,
    rival: str | None = None,
    fresh: bool = False,
    predict: str | None = None,
) -> Way:
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


def _interpreter(name: str, code: str) -> Way:
    return Way(name, "gpublocks.bench.programs:Interpreter", {"code": code})


def _setup(works: Sequence[tuple[_Work, tuple[int, ...]]]) -> Way:
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


def _result(work: _Work, shape: tuple[int, ...]) -> str:
    return f"{work.name}-{_volume(work.dtype, shape)}"
