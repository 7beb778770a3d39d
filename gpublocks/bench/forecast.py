"""How long a run over a large volume will take, from what was measured and what is stated. Pure."""

from dataclasses import dataclass
from math import ceil, prod

from gpublocks.bench.jobs import read_voxels

__all__ = ["Forecast", "Site", "Work", "cube_of", "forecast"]


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be done.

    Parameters
    ----------
    shape : tuple of int
        Of the volume, in voxels.
    itemsize : int
        Bytes of a voxel, of the source and of the sink.
    halo : tuple of int
        Voxels on each side of a block.
    """

    shape: tuple[int, ...]
    itemsize: int
    halo: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Site:
    """Where it is done: nodes that are all alike.

    Parameters
    ----------
    nodes : int
    workers : int
        Of each node: CPUs, or GPUs.
    block : tuple of int
        Shape of a block without its halo.
    voxels_per_second : float or None
        That one worker computes; None if that is not known.
    storage_per_second : float
        Bytes that one node reads or writes, together.
    copied_per_second : float
        Bytes that the memory of a node copies.
    cell_seconds, start_seconds : float
        What a block costs the process that hands them out, and what a run costs beside.
    link_per_second : float or None
        Bytes each way, between the memory of a node and that of one GPU; None if that is not known,
        or where CPUs compute.
    gpus : bool
        Whether its workers are GPUs.
    """

    nodes: int
    workers: int
    block: tuple[int, ...]
    voxels_per_second: float | None
    storage_per_second: float
    copied_per_second: float
    cell_seconds: float
    start_seconds: float
    link_per_second: float | None = None
    gpus: bool = False


@dataclass(frozen=True, slots=True)
class Forecast:
    """What comes of it.

    Parameters
    ----------
    cells : int
        Blocks, over all nodes.
    over_read : float
        Voxels read for each voxel.
    parts : dict of str to float
        Seconds that the node with the most blocks would need for each of its works alone.
    """

    cells: int
    over_read: float
    parts: dict[str, float]

    @property
    def bound(self) -> str:
        """The part that takes longest."""
        return max(self.parts, key=lambda name: self.parts[name])

    def seconds(self, start_seconds: float) -> float:
        """Return the time in all: works go on at once, so that the longest decides."""
        return start_seconds + self.parts[self.bound]


def forecast(work: Work, site: Site) -> Forecast:
    """Return how long each part of a run takes.

    Blocks are dealt to nodes and workers one by one, and all cost as much as the mean: the node
    and the worker with the most of them decide. On a node

    * computing takes ``blocks of a worker * voxels of a block / voxels per second``,
    * storage ``bytes read and written / storage rate``,
    * memory the same bytes by the rate at which memory is copied: each block is gathered into a
      buffer, and its result scattered,
    * the link the larger of the bytes that a GPU gets and those that it gives,
    * handing out ``blocks of the node * seconds of a block``.
    """
    counts = [ceil(size / side) for size, side in zip(work.shape, site.block, strict=True)]
    cells = prod(counts)
    read = read_voxels(work.shape, site.block, work.halo)
    of_node = ceil(cells / site.nodes)
    of_worker = ceil(of_node / site.workers)
    block_in, block_out = read / cells, prod(work.shape) / cells
    moved = of_node * (block_in + block_out) * work.itemsize
    parts = {
        "storage": moved / site.storage_per_second,
        "memory": moved / site.copied_per_second,
        "handing out": of_node * site.cell_seconds,
    }
    if site.voxels_per_second is not None:
        parts["computing"] = of_worker * block_in / site.voxels_per_second
    if site.link_per_second is not None:
        parts["link"] = of_worker * max(block_in, block_out) * work.itemsize / site.link_per_second
    return Forecast(cells, read / prod(work.shape), parts)


def cube_of(nbytes: float, itemsize: int, axes: int = 3) -> tuple[int, ...]:
    """Return the shape of a cube of so many bytes.

    Examples
    --------
    >>> cube_of(16e6, 2)
    (200, 200, 200)
    """
    return (round((nbytes / itemsize) ** (1 / axes)),) * axes
