"""Cases of what gpublocks costs beside the function: imports, planning, calls, blocks. Pure."""

from gpublocks.bench.case import Case, Figure, Way
from gpublocks.bench.works import (
    FILES_PROCESSES,
    MEMORY_PROCESSES,
    NEGATIVE,
    PLAN,
    SPLIT,
    WARM,
    WORKERS,
    building,
    volume_way,
)

__all__ = ["first_call", "import_case", "planning", "recorded", "tiny_call", "tiny_cells"]


def recorded(cells: int, rounds: int) -> Case:
    """Return the case of what recording costs."""
    ways, figures = [], []
    for executor, workers in (("serial", 1), ("processes", WORKERS)):
        plain, told = [
            Way(
                f"{executor}{text}",
                "gpublocks.bench.cells:HollowRun",
                {
                    "cells": cells,
                    "executor": executor,
                    "workers": workers,
                    "function": "gpublocks.bench.cells:busy",
                    "recorded": bool(text),
                },
            )
            for text in ("", ", recorded")
        ]
        ways += [plain, told]
        figures += [
            Figure(
                f"{executor}: processors",
                "x",
                1.02,
                told.name,
                "cpu_seconds",
                "ratio",
                (plain.name,),
                "cpu_seconds",
            ),
            Figure(f"{executor}: time", "x", None, told.name, "seconds", "ratio", (plain.name,)),
        ]
    return Case(
        "recording",
        f"{cells} blocks that compute for 1 ms each: recorded, against not recorded",
        {"cells": cells},
        "the same run, not recorded",
        tuple(ways),
        tuple(figures),
        rounds,
    )


_IMPORT = """\
import time
import numpy
begun = time.perf_counter()
import {}
print(time.perf_counter() - begun)
"""


def import_case(rounds: int) -> Case:
    """Return the case of what importing takes."""
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


def planning(on_one_axis: int, on_each_of_three: int, rounds: int) -> Case:
    """Return the case of planning many blocks."""
    ways, figures = [], []
    for axes, blocks in (([0], on_one_axis), ([0, 1, 2], on_each_of_three)):
        shape = (2 * blocks + 1,) * len(axes)
        options = {"axes": axes, "size_max": 3, "overlap": 1, "processes": WORKERS}
        where = "1 axis" if len(axes) == 1 else f"{len(axes)} axes"
        for name, subject, arguments, sequence, taken in (
            ("split", SPLIT, ["source"], None, "slicing"),
            ("plan", PLAN, ["numpy:negative", "source"], "grid", "read"),
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


_TINY_SIZES = {"axes": [0], "size_max": 16, "overlap": 0}


def tiny_call(rounds: int) -> Case:
    """Return the case of a call for a few blocks."""
    shape = (64, 64)
    options = {"executor": "processes", "processes": WORKERS, **_TINY_SIZES}
    ways = [
        volume_way(
            name, NEGATIVE, shape, options=options, warm=WARM["processes"], in_memory=in_memory
        )
        for name, in_memory in ((FILES_PROCESSES, False), (MEMORY_PROCESSES, True))
    ]
    return Case(
        "tiny-call",
        "a call for 4 tiny blocks with a warm pool of 2 processes",
        {"shape": shape, "dtype": NEGATIVE.dtype},
        "none",
        tuple(ways),
        tuple(Figure(way.name, "ms", 10.0, way.name, scale=1e3) for way in ways),
        rounds,
        building([(NEGATIVE, shape)]),
    )


_FIRST_CALL = f"""\
import time
import numpy as np
import gpublocks.block_processing as bp
source = np.zeros((64, 64), np.float32)
sink = np.ones_like(source)
begun = time.perf_counter()
bp.process(np.negative, source, sink, processes={WORKERS}, **{_TINY_SIZES!r})
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


def first_call(rounds: int) -> Case:
    """Return the case of the first call of a program."""
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


def tiny_cells(side: int, rounds: int) -> Case:
    """Return the case of many tiny blocks."""
    shape, cells = (8 * side,) * 3, side**3
    sizes = {"axes": "all", "size_max": 8, "overlap": 0}
    ways = [
        volume_way(
            name,
            NEGATIVE,
            shape,
            options={"executor": name, "processes": workers, **sizes},
            warm=WARM[name],
        )
        for name, workers in (("serial", 1), ("processes", WORKERS))
    ]
    return Case(
        "tiny-cells",
        f"{cells} blocks of 8 x 8 x 8 from file to file: what a block costs",
        {"shape": shape, "dtype": NEGATIVE.dtype, "cells": cells},
        "none",
        tuple(ways),
        tuple(
            Figure(way.name, "µs/block", bound, way.name, scale=1e6 / cells)
            for way, bound in zip(ways, (60.0, 100.0), strict=True)
        ),
        rounds,
        building([(NEGATIVE, shape)]),
    )


def _interpreter(name: str, code: str) -> Way:
    return Way(name, "gpublocks.bench.programs:Interpreter", {"code": code})
