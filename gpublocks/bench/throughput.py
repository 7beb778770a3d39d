"""Cases of how fast functions run over volumes, against loops written by hand. Pure."""

from gpublocks.bench.case import Case, Figure, Way
from gpublocks.bench.works import (
    FILES_PROCESSES,
    MEMORY_THREADS,
    TIMES_TWO,
    USUAL,
    WORKERS,
    Work,
    building,
    loop_way,
    our_way,
    volume_way,
)

__all__ = ["against_loops", "against_serial", "times_two"]


def against_serial(work: Work, shape: tuple[int, ...], rounds: int) -> Case:
    """Return the case of a work against half the time of the whole array in one thread."""
    serial = volume_way(
        "whole array", work, shape, subject="gpublocks.bench.loops:whole", returns=True
    )
    figures = tuple(
        Figure(name, "x", 0.87, name, compare="ratio", against=(serial.name,), scale=float(WORKERS))
        for name in USUAL
    )
    return Case(
        work.name,
        "sizes chosen automatically, warm; in units of the ideal time on 2 cores",
        {"shape": shape, "dtype": work.dtype, "halo": work.halo, **work.kwargs},
        "half the time of the same function called on the whole array in memory, in one thread",
        (serial, *[our_way(name, work, shape) for name in USUAL]),
        figures,
        rounds,
        building([(work, shape)]),
    )


def against_loops(work: Work, shape: tuple[int, ...], quick: bool, rounds: int) -> Case:
    """Return the case of a work against the best of loops written by hand."""
    blocks = [(16, 64, 64), (32, 32, 64)] if quick else [
        (64, 64, 128), (128, 128, 128), (128, 256, 256), (32, 0, 0), (256, 0, 0)
    ]  # fmt: skip
    loops = [loop_way(work, shape, block) for block in blocks]
    names = tuple(loop.name for loop in loops)
    return Case(
        work.name,
        "sizes chosen automatically, warm; in units of the best hand-written loop",
        {"shape": shape, "dtype": work.dtype, "halo": work.halo, **work.kwargs},
        "best of several loops in two threads over blocks of memory maps",
        (*loops, *[our_way(name, work, shape) for name in USUAL]),
        tuple(Figure(name, "x", 1.0, name, compare="ratio", against=names) for name in USUAL),
        rounds,
        building([(work, shape)]),
    )


def times_two(shape: tuple[int, ...], quick: bool, rounds: int) -> Case:
    """Return the case of the cheapest function."""
    work = TIMES_TWO
    loops: dict[bool, list[Way]] = {}
    direct: dict[bool, list[Way]] = {}
    for in_memory in (False, True):
        where = "memory" if in_memory else "files"
        slabs = (4, 16) if quick else (1, 4, 16, 64)
        loops[in_memory] = [loop_way(work, shape, (slab, 0, 0), in_memory) for slab in slabs]
        direct[in_memory] = [
            volume_way(
                f"loop out= {where} {slab}",
                work,
                shape,
                subject="gpublocks.bench.loops:times_two_loop",
                options={"slab": slab, "threads": WORKERS},
                in_memory=in_memory,
                rival=f"out= {where}",
            )
            for slab in slabs
        ]
    figures = []
    for name, in_memory in ((FILES_PROCESSES, False), (MEMORY_THREADS, True)):
        against = tuple(loop.name for loop in loops[in_memory])
        figures.append(Figure(name, "x", 1.2, name, compare="ratio", against=against))
        against = tuple(loop.name for loop in direct[in_memory])
        label = f"{name} (to out=)"
        figures.append(Figure(label, "x", None, name, compare="ratio", against=against))
    ours = [our_way(name, work, shape) for name in (FILES_PROCESSES, MEMORY_THREADS)]
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
        building([(work, shape)]),
    )
