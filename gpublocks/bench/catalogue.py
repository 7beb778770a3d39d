"""All frozen cases: what is measured, compared with what, and what it may be. Pure."""

from dataclasses import replace

from gpublocks.bench.case import Case
from gpublocks.bench.footprint import memory, memory_growth
from gpublocks.bench.overheads import (
    first_call,
    import_case,
    planning,
    recorded,
    tiny_call,
    tiny_cells,
)
from gpublocks.bench.throughput import against_loops, against_serial, times_two
from gpublocks.bench.works import DOG, GAUSSIAN, MEDIAN, TOPHAT

__all__ = ["make_cases"]


def make_cases(*, quick: bool) -> tuple[Case, ...]:
    """Return all cases, with small volumes, few rounds and no bounds if `quick`."""
    shape = (64, 64, 64) if quick else (512, 512, 256)
    cube = (64, 64, 64) if quick else (512, 512, 512)
    growing = (64, 96, 96) if quick else (128, 256, 256)
    cases = (
        import_case(3 if quick else 15),
        planning(10_000 if quick else 1_000_000, 10 if quick else 100, 3 if quick else 7),
        tiny_call(3 if quick else 50),
        first_call(2 if quick else 11),
        tiny_cells(4 if quick else 16, 3 if quick else 9),
        recorded(20 if quick else 2000, 3 if quick else 9),
        against_serial(GAUSSIAN, shape, 3 if quick else 7),
        against_loops(MEDIAN, shape, quick, 3),
        against_loops(TOPHAT, shape, quick, 3 if quick else 5),
        against_loops(DOG, shape, quick, 3 if quick else 5),
        times_two(cube, quick, 3 if quick else 9),
        memory(shape, cube, 1 if quick else 2),
        memory_growth(growing, 1 if quick else 3),
    )
    return tuple(_unbound(case) for case in cases) if quick else cases


def _unbound(case: Case) -> Case:
    """Return a case without bounds: they hold for full volumes."""
    return replace(case, figures=tuple(replace(figure, bound=None) for figure in case.figures))
