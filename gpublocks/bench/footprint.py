"""Cases of how much memory runs take. Pure."""

from gpublocks.bench.case import Case, Figure, Way
from gpublocks.bench.works import (
    DOG,
    FILES_PROCESSES,
    FILES_THREADS,
    GAUSSIAN,
    MEDIAN,
    MEMORY_PROCESSES,
    MEMORY_THREADS,
    TIMES_TWO,
    TOPHAT,
    USUAL,
    building,
    our_way,
)

__all__ = ["memory", "memory_growth"]

_MIB = 1 / 2**20


def memory(shape: tuple[int, ...], cube: tuple[int, ...], rounds: int) -> Case:
    """Return the case of the memory that runs take."""
    works = [(GAUSSIAN, shape), (MEDIAN, shape), (TOPHAT, shape), (DOG, shape)]
    measured = [(work, size, name) for work, size in works for name in USUAL]
    measured += [(TIMES_TWO, cube, name) for name in (FILES_PROCESSES, MEMORY_THREADS)]
    ways = tuple(
        our_way(name, work, size, label=f"{work.name}: {name}", fresh=True)
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
        building([*works, (TIMES_TWO, cube)]),
    )  # fmt: skip


def memory_growth(shape: tuple[int, ...], rounds: int) -> Case:
    """Return the case of memory against the size of a volume."""
    volumes = {
        factor: (shape[0] * factor // side, shape[1] * side, shape[2])
        for factor, side in ((1, 1), (4, 2), (16, 4))
    }
    blocks = {"axes": "all", "size_max": min(shape) // 2 + 16, "optimization": False}
    ways: list[Way] = []
    figures: list[Figure] = []
    for name in (FILES_PROCESSES, FILES_THREADS, MEMORY_PROCESSES):
        grown = {
            factor: our_way(
                name, GAUSSIAN, size, label=f"{name}, {factor}x", fresh=True, sizes=blocks
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
        building([(GAUSSIAN, size) for size in volumes.values()]),
    )
