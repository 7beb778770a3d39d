"""Tables of how runs grow, and of what that lets expect. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from gpublocks.bench.scaling import (
    EXECUTORS,
    PLANNING,
    SIDE,
    SIGMA,
    by_workers,
    fit_line,
    flatness,
    growth,
)
from gpublocks.bench.tables import Table, number
from gpublocks.budget import format_bytes

__all__ = ["outlook_tables"]


def outlook_tables(results: Mapping[str, Any]) -> list[Table]:
    """Return everything as tables."""
    case = results["cases"][0]
    return [_growth_table(case), _workers_table(case), _forecast_table(results)]


def _growth_table(case: Mapping[str, Any]) -> Table:
    sizes = case["parameters"]["cells"]
    rows, notes = [], []
    for name in (*EXECUTORS, PLANNING):
        seconds, peaks = growth(case, name), growth(case, name, "peak_bytes")
        if name == PLANNING:
            walked = growth(case, name, "walk_seconds")
            seconds = {cells: seconds[cells] + walked[cells] for cells in seconds}
        rows.append(
            (
                f"{name}: µs a block",
                *[number(1e6 * seconds[cells] / cells) for cells in sizes],
            )
        )
        rows.append((f"{name}: peak MiB", *[_mib(peaks.get(cells)) for cells in sizes]))
        line = fit_line(seconds)
        notes.append(
            f"{name}: {1e3 * line.start:.1f} ms + {1e6 * line.cell:.1f} µs a block, off by at most "
            f"{100 * line.error:.0f} %; from 10 000 blocks on a block costs at most "
            f"{flatness(seconds):.2f} times its least"
        )
    head = ("blocks", *[f"{cells:,}".replace(",", " ") for cells in sizes])
    workers = case["parameters"]["workers"]
    title = f"blocks without voxels, {workers} workers (serial: 1); plan: made and walked"
    return Table(title, head, tuple(rows), tuple(notes))


def _workers_table(case: Mapping[str, Any]) -> Table:
    found = {name: by_workers(case, name) for name in EXECUTORS[1:]}
    cells = case["parameters"]["cells_by_workers"]
    counts = sorted({count for times in found.values() for count in times})
    rows = tuple(
        (f"{name}: µs a block", *[_each(times.get(count), cells) for count in counts])
        for name, times in found.items()
    )
    return Table(f"\n{cells} blocks", ("workers", *map(str, counts)), rows)


def _each(times: Sequence[float] | None, cells: int) -> str:
    return number(1e6 * median(times) / cells) if times else ""


def _forecast_table(results: Mapping[str, Any]) -> Table:
    work, sites = results["forecast"]["work"], results["forecast"]["sites"]
    names = ("computing", "storage", "memory", "link", "handing out")
    rows = []
    for name, found in sites.items():
        known = "computing" in found["parts"]
        rows.append(
            (
                name,
                "x".join(map(str, found["site"]["block"])),
                str(found["cells"]),
                f"{found['over_read']:.2f}",
                *[_part(found, part) for part in names],
                f"{'' if known else 'at least '}{_time(found['seconds'])}, {found['bound']}",
            )
        )
    shape = " x ".join(map(str, work["shape"]))
    title = f"\npredicted: Gaussian, sigma {SIGMA:g}, {shape} uint16"
    head = ("", "block", "blocks", "read", *names, "in all, bound by")
    return Table(title, head, tuple(rows), tuple(_assumptions(results)))


def _assumptions(results: Mapping[str, Any]) -> Iterator[str]:
    sites = results["forecast"]["sites"]
    here = next(iter(sites.values()))["site"]
    gpus = list(sites.values())[-1]["site"]
    stated = (
        "how much a GPU computes is not stated (--gpu-voxels-per-second): computing is left out"
    )
    rate = gpus["voxels_per_second"]
    link = gpus["link_per_second"]
    yield "assumed:"
    yield (
        f"- a CPU computes {here['voxels_per_second'] / 1e6:.1f} million voxels/s: measured here "
        f"over {SIDE}^3 voxels, in one thread while others idled"
    )
    yield f"- {stated if rate is None else f'a GPU computes {rate:.3g} voxels/s: as stated'}"
    told = "how fast a GPU is linked is not stated (--gpu-link): the link is left out"
    linked = "" if link is None else f"a GPU is linked at {_per_second(link)}: as stated"
    yield f"- {linked or told}"
    block = " x ".join(map(str, gpus["block"]))
    yield (
        f"- blocks of {block} voxels fit into the memory of a GPU with their halos, their results "
        "and what the function takes beside (--gpu-block): not held against any GPU"
    )
    yield (
        f"- storage gives each node {_per_second(here['storage_per_second'])} for reading and "
        "writing together: the slower of both as measured here, or as stated; so many times that "
        "for so many nodes"
    )
    yield (
        f"- memory copies {_per_second(here['copied_per_second'])}, on any node: measured here; "
        "each block is gathered and scattered once"
    )
    yield (
        f"- handing out a block costs {1e6 * here['cell_seconds']:.1f} µs with worker processes, "
        f"{1e6 * gpus['cell_seconds']:.1f} µs with threads: fitted above; for GPUs that of threads,"
        " without calls of CUDA"
    )
    yield "- all of it goes on at once, so that the longest decides; nothing fails"
    yield "- voxels are stored without compression, in units of which blocks are multiples"
    yield (
        "- several nodes: a run on each, over its own part of the blocks, started by hand or by a "
        "scheduler at the same time"
    )


def _part(found: Mapping[str, Any], part: str) -> str:
    """Return the time of a part: ``-`` where there is none, ``?`` where it is not known."""
    if part == "link" and not found["site"]["gpus"]:
        return "-"
    return _time(found["parts"].get(part))


def _per_second(rate: float) -> str:
    return f"{format_bytes(int(rate))}/s"


def _mib(nbytes: float | None) -> str:
    return "" if nbytes is None else number(nbytes / 2**20)


def _time(seconds: float | None) -> str:
    """Return a time in the unit that suits it.

    Examples
    --------
    >>> _time(90.0), _time(7200.0)
    ('90 s', '2.0 h')
    """
    if seconds is None:
        return "?"
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
