"""Time and memory against the number of blocks and of workers: a case, and what follows. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from gpublocks.bench.case import Case, Way
from gpublocks.bench.works import PLAN

__all__ = [
    "COMPUTING",
    "EXECUTORS",
    "PLANNING",
    "SIDE",
    "SIGMA",
    "Line",
    "by_workers",
    "fit_line",
    "flatness",
    "growth",
    "run_name",
    "scaling_case",
]

EXECUTORS = ("serial", "threads", "processes")
PLANNING = "plan"
COMPUTING = "a CPU computes"
SIDE = 128
"""Of the cube over which it computes a Gaussian."""
SIGMA = 2.0
_SIZES = (1_000, 10_000, 100_000, 1_000_000)
_QUICK_SIZES = (1_000, 10_000, 50_000)
_CELLS_BY_WORKERS = 10_000
_SETTLED = 10_000
"""From so many blocks on the start of a run is a small part of it."""
_CORE = ("gpublocks.bench.cells", "gpublocks.block_processing", "gpublocks.executors.stream")


@dataclass(frozen=True, slots=True)
class Line:
    """Time against number of blocks: ``start + cells * cell``.

    Parameters
    ----------
    start, cell : float
        Seconds.
    error : float
        Largest part by which a measurement differs from the line.
    """

    start: float
    cell: float
    error: float

    def seconds(self, cells: int) -> float:
        """Return the time for so many blocks."""
        return self.start + cells * self.cell


def scaling_case(*, quick: bool, workers: int) -> Case:
    """Return the case: runs over arrays without voxels, and plans.

    Parameters
    ----------
    quick : bool
        Fewer blocks.
    workers : int
        Of the runs with many blocks; runs with 1 to twice as many workers are measured too.
    """
    sizes = _QUICK_SIZES if quick else _SIZES
    counts = sorted({1, 2, workers, 2 * workers})
    ways = [
        _run(executor, cells, 1 if executor == "serial" else workers)
        for cells in sizes
        for executor in EXECUTORS
    ]
    ways += [
        _run(executor, _CELLS_BY_WORKERS, count)
        for executor in EXECUTORS[1:]
        for count in counts
        if count != workers
    ]
    ways += [_plan(cells) for cells in sizes]
    ways.append(
        Way(
            COMPUTING,
            "gpublocks.bench.cells:Computing",
            {"side": SIDE, "sigma": SIGMA},
            fresh=True,
            imports=_CORE,
        )
    )
    return Case(
        "scaling",
        "runs over arrays without voxels: time and memory against blocks and workers",
        {"cells": sizes, "workers": workers, "cells_by_workers": _CELLS_BY_WORKERS},
        "none",
        tuple(ways),
        (),
        1 if quick else 2,
        group="scaling",
    )


def _run(executor: str, cells: int, workers: int) -> Way:
    return Way(
        run_name(executor, cells, workers),
        "gpublocks.bench.cells:HollowRun",
        {"cells": cells, "executor": executor, "workers": workers},
        fresh=True,
        imports=_CORE,
    )


def _plan(cells: int) -> Way:
    return Way(
        run_name(PLANNING, cells, 1),
        "gpublocks.bench.programs:Planning",
        {
            "subject": PLAN,
            "arguments": ["numpy:negative", "source"],
            "shape": (2 * cells + 1,),
            "options": {"axes": [0], "size_max": 3, "overlap": 1, "processes": 1},
            "blocks": cells,
            "sequence": "grid",
            "taken": "read",
        },
        fresh=True,
        imports=_CORE,
    )


def run_name(executor: str, cells: int, workers: int) -> str:
    """Return what a way is called."""
    return f"{executor}, {workers} workers, {cells} blocks"


def growth(result: Mapping[str, Any], executor: str, quantity: str = "seconds") -> dict[int, float]:
    """Return the median of a quantity by number of blocks, for the workers of the case."""
    workers = result["parameters"]["workers"] if executor in EXECUTORS[1:] else 1
    found = {}
    for cells in result["parameters"]["cells"]:
        values = result["raw"].get(run_name(executor, cells, workers), {}).get(quantity)
        if values:
            found[cells] = median(values)
    return found


def fit_line(seconds: Mapping[int, float]) -> Line:
    """Fit a line to times by number of blocks, such that relative errors are small.

    Least squares of ``(start + cells * cell) / seconds - 1``, neither of them below zero.
    """
    cells = np.array(list(seconds), np.float64)
    times = np.array(list(seconds.values()))
    scaled = np.stack([1 / times, cells / times], axis=1)
    start, cell = np.linalg.lstsq(scaled, np.ones_like(times), rcond=None)[0]
    if start < 0:
        start, cell = 0.0, float((scaled[:, 1]).sum() / (scaled[:, 1] ** 2).sum())
    fitted = start + cell * cells
    return Line(float(start), float(cell), float(np.abs(fitted / times - 1).max()))


def flatness(seconds: Mapping[int, float]) -> float:
    """Return the largest time for a block in units of the smallest, where runs are not short."""
    each = [time / cells for cells, time in seconds.items() if cells >= _SETTLED]
    return max(each) / min(each)


def by_workers(result: Mapping[str, Any], executor: str) -> dict[int, Sequence[float]]:
    """Return all times by number of workers, for a fixed number of blocks."""
    cells = result["parameters"]["cells_by_workers"]
    found = {}
    for name, measured in result["raw"].items():
        kind, *rest = name.split(", ")
        if kind == executor and rest[1] == f"{cells} blocks":
            found[int(rest[0].split()[0])] = measured["seconds"]
    return dict(sorted(found.items()))
