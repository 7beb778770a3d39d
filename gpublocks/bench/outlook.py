"""What measurements of small runs let expect of a large volume. Pure, but for a plan made here."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from gpublocks.bench.cells import Hollow
from gpublocks.bench.forecast import Site, Work, cube_of, forecast
from gpublocks.bench.scaling import COMPUTING, EXECUTORS, SIDE, SIGMA, fit_line, growth

__all__ = ["Stated", "predict"]

_HALO = 8
"""Of that Gaussian: four times its sigma."""
_ITEM = 2


@dataclass(frozen=True, slots=True)
class Stated:
    """What cannot be measured on this machine.

    Parameters
    ----------
    volume_bytes : int
        Of the volume, a cube of uint16.
    gpus, nodes : int
        GPUs of a node, and nodes.
    gpu_block : int
        Side of the blocks of a GPU, without their halos.
    gpu_voxels_per_second : float or None
        That one GPU computes.
    link_per_second : float or None
        Bytes to one GPU, and as many back.
    storage_per_second : float or None
        Bytes that one node reads and writes; by default what the disk of this machine does.
    """

    volume_bytes: int
    gpus: int
    nodes: int
    gpu_block: int
    gpu_voxels_per_second: float | None = None
    link_per_second: float | None = None
    storage_per_second: float | None = None


def predict(results: Mapping[str, Any], stated: Stated) -> dict[str, Any]:
    """Return what the measurements let expect of a large volume."""
    work = Work(cube_of(stated.volume_bytes, _ITEM), _ITEM, (_HALO,) * 3)
    found = {}
    for name, site in _sites(results, stated, work).items():
        told = forecast(work, site)
        found[name] = {
            **asdict(told),
            "site": asdict(site),
            "bound": told.bound,
            "seconds": told.seconds(site.start_seconds),
        }
    return {"work": asdict(work), "sites": found}


def _sites(results: Mapping[str, Any], stated: Stated, work: Work) -> dict[str, Site]:
    case, floors = results["cases"][0], results["floors"]
    lines = {name: fit_line(growth(case, name)) for name in EXECUTORS}
    measured = min(floors[name] for name in floors if name != "copied_per_second")
    cpus = case["parameters"]["workers"]
    here = Site(
        nodes=1,
        workers=cpus,
        block=_block_of(work, cpus),
        voxels_per_second=SIDE**3 / median(case["raw"][COMPUTING]["seconds"]),
        storage_per_second=stated.storage_per_second or measured,
        copied_per_second=floors["copied_per_second"],
        cell_seconds=lines["processes"].cell,
        start_seconds=lines["processes"].start,
    )
    with_gpus = replace(
        here,
        workers=stated.gpus,
        gpus=True,
        block=tuple(min(stated.gpu_block, size) for size in work.shape),
        voxels_per_second=stated.gpu_voxels_per_second,
        cell_seconds=lines["threads"].cell,
        start_seconds=lines["threads"].start,
        link_per_second=stated.link_per_second,
    )
    return {
        f"this machine, {cpus} CPUs": here,
        f"{stated.nodes} nodes like it": replace(here, nodes=stated.nodes),
        f"1 node of {stated.gpus} GPUs": with_gpus,
        f"{stated.nodes} nodes of {stated.gpus} GPUs": replace(with_gpus, nodes=stated.nodes),
    }


def _block_of(work: Work, workers: int) -> tuple[int, ...]:
    """Return the shape of the blocks that gpublocks chooses on this machine."""
    from scipy.ndimage import gaussian_filter

    from gpublocks.block_processing import plan

    volume = Hollow(work.shape, f"u{work.itemsize}", os.devnull)
    grid = plan(gaussian_filter, volume, halo=work.halo, processes=workers, sigma=SIGMA).grid
    return tuple(-(-size // count) for size, count in zip(work.shape, grid.counts, strict=True))
