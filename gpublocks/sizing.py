"""Which blocks: by the documented sizes, or the fastest that fit the budget. Pure."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import ceil, log2, prod
from typing import Any

from gpublocks.budget import Budget, Need, Traffic, format_bytes
from gpublocks.contracts import Order
from gpublocks.dividing import common_unit
from gpublocks.errors import BudgetError, PlanError
from gpublocks.grid import Grid
from gpublocks.notice import warn_user
from gpublocks.splitting import AxisSplit, aligned, as_count, even_split, split_axis
from gpublocks.storage import Pieces, Usage

__all__ = [
    "Layout",
    "Sizes",
    "automatic_grid",
    "device_cost",
    "device_grid",
    "documented_grid",
    "normalise_axes",
]

_NEAR = 256
"""So many larger sizes are all tried before one is advised, others in longer and longer steps."""
_MOST_BLOCKS = 10**9
"""More blocks are a slip of the hand: they would take days for nothing but to be counted."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The documented sizes: each a value for all split axes, or a sequence, one for each."""

    size_max: Any = None
    size_min: Any = None
    size_multiple_of: Any = None
    overlap: Any = None
    optimization: Any = True
    optimization_fix: Any = "all"
    processes: int = 1


def normalise_axes(axes: Any, ndim: int, order: Order, unit: Sequence[int] = ()) -> list[int]:
    """Return split axes as a list of non-negative ints, in the order given.

    Parameters
    ----------
    axes : None, 'all', int or sequence of int
        None chooses by memory order: the last axis for 'F', else the first; for arrays stored in
        pieces the axis along which the pieces are shortest.

    Raises
    ------
    PlanError
        If an axis is out of range, given twice, or unknown.
    """
    if ndim == 0:
        raise PlanError("the source is a scalar (0 axes); there is nothing to split")
    if axes is None:
        slowest_first = range(ndim) if order == "C" else range(ndim - 1, -1, -1)
        if any(length > 1 for length in unit):
            return [min(slowest_first, key=lambda axis: unit[axis])]
        return [slowest_first[0]]
    if axes is all:
        warn_user("axes=all is deprecated; use axes='all'", DeprecationWarning)
        axes = "all"
    if isinstance(axes, str):
        if axes != "all":
            raise PlanError(f"axes is {axes!r}; use 'all', a number or a list of numbers")
        return list(range(ndim))
    listed = list(axes) if isinstance(axes, Sequence) or getattr(axes, "ndim", 0) > 0 else [axes]
    if not listed:
        raise PlanError("axes is empty; give at least one axis, or size_max='full' for one block")
    result: list[int] = []
    for axis in listed:
        number = as_count("axis", axis, -ndim) if axis is not None else None
        if number is None or number >= ndim:
            raise PlanError(f"axis {axis}; the source has axes 0..{ndim - 1}")
        if number % ndim in result:
            raise PlanError(f"axis {number % ndim} is given twice in axes {listed}")
        result.append(number % ndim)
    return result


def documented_grid(
    shape: Sequence[int],
    axes: list[int],
    sizes: Sizes,
    unit: Sequence[int] = (),
) -> Grid:
    """Split a shape by the documented rules, valid borders on multiples of the sink's unit.

    Raises
    ------
    PlanError, ArgumentTypeError
        If sizes contradict each other or are not one for each axis.
    """
    columns = {
        "processes": sizes.processes,
        "size_max": sizes.size_max,
        "size_min": sizes.size_min,
        "overlap": sizes.overlap,
        "optimization": sizes.optimization,
        "optimization_fix": sizes.optimization_fix,
        "multiple_of": sizes.size_multiple_of,
    }
    table = {name: _per_axis(name, value, axes) for name, value in columns.items()}
    splits: dict[int, AxisSplit] = {}
    for position, axis in enumerate(axes):
        parameters = {name: values[position] for name, values in table.items()}
        label = f" of axis {axis}"
        splits[axis] = _split(shape[axis], unit[axis] if unit else 1, label, parameters)
    ordered = tuple(sorted(splits))
    number = prod(splits[axis].count for axis in ordered)
    if number > _MOST_BLOCKS:
        raise PlanError(
            f"blocks of {[splits[axis].largest for axis in ordered]} voxels on axes "
            f"{list(ordered)} are {number} blocks, and at most {_MOST_BLOCKS} are made; "
            "use a larger size_max"
        )
    return Grid(tuple(shape), ordered, tuple(splits[axis] for axis in ordered))


def _split(size: int, unit: int, label: str, parameters: dict[str, Any]) -> AxisSplit:
    """Split an axis, valid borders on units; not optimised where they would not allow it."""
    size_max = parameters["size_max"]
    split = split_axis(size, label=label, **parameters)
    with suppress(PlanError):
        return aligned(split, unit, size_max, label)
    plain = {**parameters, "optimization": False}
    try:
        return _of_units(size, unit, label, plain)
    except PlanError as error:
        fitting = " or ".join(map(str, _aligned_sizes(size, unit, plain)))
        raise PlanError(f"{error}; use a size_max of {fitting}") from None


def _of_units(size: int, unit: int, label: str, parameters: dict[str, Any]) -> AxisSplit:
    """Split an axis, valid borders on units: in blocks of equal lengths, or of as many units.

    Raises
    ------
    PlanError
        If neither can be.
    """
    size_max, size_min = parameters["size_max"], parameters["size_min"]
    split = split_axis(size, label=label, **parameters)
    try:
        return aligned(split, unit, size_max, label)
    except PlanError:
        overlap = split.overlap
        most = (min(size_max or size, size) - overlap) // unit
        if most < 1 or size_min == "fixed" or parameters["multiple_of"] is not None:
            raise
        # As if the last unit were whole: else so many blocks as there are units would not fit.
        units = -(-size // unit)
        whole = replace(even_split(units * unit, -(-units // most), overlap), size=size)
        if whole.width < (size_min or 1):
            raise
        with suppress(PlanError):
            return aligned(whole, unit, size_max, label)
        raise


def _aligned_sizes(size: int, unit: int, parameters: dict[str, Any]) -> list[int]:
    """Return the next larger `size_max` whose blocks can be aligned, and a smaller one if it can.

    One block always can.
    """

    def fits(size_max: int) -> bool:
        with suppress(PlanError):
            _of_units(size, unit, "", {**parameters, "size_max": size_max})
            return True
        return False

    given, overlap = int(parameters["size_max"]), int(parameters["overlap"] or 0)
    smaller = (given - overlap) // unit * unit + overlap
    larger = given + 1
    for step in itertools.count(1 - _NEAR):
        if fits(larger):
            break
        larger += max(1, step)
    return [larger, smaller] if overlap < smaller < given and fits(smaller) else [larger]


def _per_axis(name: str, value: Any, axes: list[int]) -> list[Any]:
    if isinstance(value, tuple | list) or getattr(value, "ndim", 0) > 0:
        values = list(value)
        if len(values) != len(axes):
            raise PlanError(
                f"{name} has {len(values)} values, but {len(axes)} axes are split; "
                "give one value, or one for each axis"
            )
        return values
    return [value] * len(axes)


@dataclass(frozen=True, slots=True)
class Layout:
    """What automatic sizing needs to know of an array and its function.

    Parameters
    ----------
    shape : tuple of int
    itemsize : int
        Bytes per voxel that is read, over all sources.
    order : {'C', 'F'}
    axes : tuple of int
        Axes that may be split.
    overlap : tuple of int
        Voxels that neighbours share, for each of `axes`.
    unit : tuple of int
        Write unit of the sinks, for each axis of the array.
    bytes_per_voxel : float
        Predicted bytes in flight for each voxel read, inputs and results included.
    fixed_bytes : int
        Bytes in flight for each worker that do not depend on the block.
    stored : tuple of Pieces
        Those of the sources that are stored in pieces.
    cache_bytes : int
        Memory in which decoded pieces may be kept for other blocks.
    """

    shape: tuple[int, ...]
    itemsize: int
    order: Order
    axes: tuple[int, ...]
    overlap: tuple[int, ...]
    unit: tuple[int, ...]
    bytes_per_voxel: float
    fixed_bytes: int = 0
    stored: tuple[Pieces, ...] = ()
    cache_bytes: int = 0


# Measured with scipy.ndimage and NumPy on 256 MB volumes, two workers, in units of the time that a
# function takes for a voxel: some 16 ns for a Gaussian, 0.1 ns for x * 2 (benchmarks/README.md).
_ROW_COST = 4
"""Start of another row when a block is gathered and when a pass goes over it."""
_ARRAYS = 3
"""Arrays of the block's size that a function goes over: input, a temporary, result."""
_ALIASING = 0.4
"""Rows that lie a multiple of 1 KiB apart fall into few sets of the level-1 cache."""
_ALIASED_BYTES = 1024
_STEP = 1.2
"""Ratio of the sides of one candidate to those of the next."""


@dataclass(frozen=True, slots=True)
class _Costs:
    """What a cell costs beyond its voxels.

    Parameters
    ----------
    cell : float
        A cell's own cost: hand-over, set-up of the function.
    spill : float
        Extra cost of a voxel for each doubling of the block beyond the worker's own cache ...
    miss : float
        ... and for each doubling beyond its share of all cache.
    decode : float
        Cost of decoding a voxel that is stored in a piece.
    """

    cell: float
    spill: float
    miss: float
    decode: float


_FILTER = _Costs(cell=15_000, spill=0.03, miss=0.1, decode=0.25)
"""A function that looks at neighbours, with many passes over a block: caches matter little."""
_POINTWISE = _Costs(cell=300_000, spill=0.15, miss=0.2, decode=10)
"""A function that looks at single voxels is as fast as the memory that they come from."""


_SHARING = 1.15
"""Cost of a decoded piece that is kept for several blocks, which takes copies and waiting; of one
that a single block reads it is 1."""


def automatic_grid(layout: Layout, budget: Budget) -> Grid:
    """Choose the blocks that are done soonest within the budget.

    The time of a run is that of the busiest worker: cells are handed out one by one, so it does
    ``ceil(cells / workers)`` of them. A cell takes time for each voxel that it reads (halo
    included: small blocks read more), more if the block spills out of cache, and a fixed time of
    its own. The best of a family of candidates is taken: blocks whose sides are in proportion to
    the halos (for a given volume these read the least) in many sizes. Where not even the smallest
    blocks of all workers fit, fewer workers are assumed.

    Raises
    ------
    BudgetError
        If the smallest block does not fit.
    """
    best: Grid | None = None
    best_cost = float("inf")
    smallest = float("inf")
    for grid in _grids(layout, budget.workers, slabs=bool(layout.stored)):
        voxels = prod(grid.largest)
        needed = voxels * layout.bytes_per_voxel + layout.fixed_bytes
        smallest = min(smallest, needed)
        if needed * min(budget.workers, len(grid)) > budget.host_bytes:
            continue
        cost = _cost(grid, layout, budget)
        if cost < best_cost:
            best, best_cost = grid, cost
    if best is None:
        workers = int(budget.host_bytes // smallest)
        if workers:
            return automatic_grid(layout, replace(budget, workers=workers))
        raise BudgetError(
            f"the smallest block needs {format_bytes(smallest)}, but {budget.reason} leaves "
            f"{format_bytes(budget.host_bytes)}; use a smaller overlap or more memory"
        )
    return _as_cut(best)


def _even(layout: Layout, counts: Sequence[int]) -> Grid | None:
    """Cut the axes into so many blocks of equal lengths, valid borders on units if they can be."""
    splits = []
    for axis, count, overlap in zip(layout.axes, counts, layout.overlap, strict=True):
        size, unit = layout.shape[axis], layout.unit[axis]
        # As if the last unit were whole: else so many blocks as there are units would not fit.
        split = replace(even_split(-(-size // unit) * unit, count, overlap), size=size)
        try:
            splits.append(aligned(split, unit, None))
        except PlanError:
            return None
    return Grid(layout.shape, layout.axes, tuple(splits))


def _as_cut(grid: Grid) -> Grid:
    """Leave out the axes that stay whole: results may have another length there."""
    cut = {a: s for a, s in zip(grid.axes, grid.splits, strict=True) if s.count > 1}
    axes = tuple(sorted(cut))
    return Grid(grid.shape, axes, tuple(cut[axis] for axis in axes))


def _cost(grid: Grid, layout: Layout, budget: Budget) -> float:
    block = grid.largest
    voxels = prod(block)
    row = block[-1] if layout.order == "C" else block[0]
    costs = _FILTER if any(layout.overlap) else _POINTWISE
    working_set = _ARRAYS * voxels * layout.itemsize
    factor = 1 + costs.spill * max(0.0, log2(working_set / budget.core_cache_bytes))
    factor += costs.miss * max(0.0, log2(working_set / budget.cache_bytes))
    if any(layout.overlap) and row * layout.itemsize % _ALIASED_BYTES == 0:
        factor += _ALIASING
    cell = costs.cell + voxels * factor + _ROW_COST * voxels / row
    cell += costs.decode * _decoded(grid, layout, budget.workers) / len(grid)
    return (ceil(len(grid) / budget.workers) + 0.5) * cell


def _decoded(grid: Grid, layout: Layout, workers: int) -> float:
    """Return the voxels of pieces that are decoded for all blocks, more for those they share."""
    voxels = 0.0
    for pieces in layout.stored:
        usage = Usage(pieces, grid)
        times = 1.0 if usage.apart else _SHARING * usage.decoded(layout.cache_bytes, workers)
        voxels += prod(pieces.shape) * times
    return voxels


def _grids(layout: Layout, workers: int, *, slabs: bool) -> Iterator[Grid]:
    """Return the candidates whose borders can be on units.

    Without overlap, blocks of whole pieces of the sources are among them.

    Parameters
    ----------
    slabs : bool
        Whether those with more and more of the faster axes whole are among them.
    """
    units = [layout.unit]
    if layout.stored and not any(layout.overlap):
        pieces = [pieces.unit for pieces in layout.stored if not any(pieces.origin)]
        units.insert(0, common_unit([layout.unit, *pieces], len(layout.shape)))
    slowest_first = _slowest_first(layout)
    for unit in dict.fromkeys(units):
        for cut in range(len(slowest_first), 0 if slabs else len(slowest_first) - 1, -1):
            positions = sorted(slowest_first[:cut])
            slower = replace(
                layout,
                axes=tuple(layout.axes[p] for p in positions),
                overlap=tuple(layout.overlap[p] for p in positions),
                unit=unit,
            )
            for counts in _candidates(slower, workers):
                if (grid := _even(slower, counts)) is not None:
                    yield grid


def _candidates(layout: Layout, workers: int) -> Iterator[tuple[int, ...]]:
    """Return numbers of blocks for each split axis, deduplicated.

    Axes with a halo get sides in proportion to it, from a third of the halo to the whole axis in
    steps of a fifth; the others are cut from the slowest axis on, contiguous blocks first.
    """
    seen: set[tuple[int, ...]] = set()
    halos = [(overlap + 1) // 2 for overlap in layout.overlap]
    longest = max(
        (layout.shape[axis] / halo for axis, halo in zip(layout.axes, halos, strict=True) if halo),
        default=1.0,
    )
    scales = _geometric(1 / 3, longest) if any(halos) else [1.0]
    for scale in scales:
        sides = [
            min(layout.shape[axis], max(layout.unit[axis], round(scale * halo)))
            if halo
            else layout.shape[axis]
            for axis, halo in zip(layout.axes, halos, strict=True)
        ]
        for lengths in _sliced(layout, sides, halos):
            counts = tuple(
                max(1, min(ceil(layout.shape[axis] / side), _most(layout, position)))
                for position, (axis, side) in enumerate(zip(layout.axes, lengths, strict=True))
            )
            for varied in _beside(counts, layout, workers):
                if varied not in seen:
                    seen.add(varied)
                    yield varied


def _sliced(layout: Layout, sides: list[int], halos: list[int]) -> Iterator[list[int]]:
    """Cut the axes without a halo, slowest first, into ever thinner slabs."""
    yield sides
    free = [p for p in _slowest_first(layout) if not halos[p]]
    step = 2.0 if any(halos) else _STEP
    current = list(sides)
    for position in free:
        unit = layout.unit[layout.axes[position]]
        while current[position] > unit:
            current[position] = max(unit, min(current[position] - 1, int(current[position] / step)))
            yield list(current)


def _slowest_first(layout: Layout) -> list[int]:
    """Return the positions of the split axes, that of the largest stride first."""
    positions = range(len(layout.axes))
    return sorted(positions, key=lambda p: layout.axes[p], reverse=layout.order == "F")


def _beside(counts: tuple[int, ...], layout: Layout, workers: int) -> Iterator[tuple[int, ...]]:
    """Return the counts, and those with one more block along the axis of rows.

    Without a halo rows stay whole: blocks that follow each other in memory are read at once. The
    number of blocks is then made a multiple of the workers too.
    """
    yield counts
    if not any(layout.overlap):
        slowest_first = _slowest_first(layout)
        last = [p for p in slowest_first if counts[p] > 1][-1:] or slowest_first[:1]
        for position in last:
            even = -(-counts[position] // workers) * workers
            if even <= _most(layout, position):
                yield (*counts[:position], even, *counts[position + 1 :])
    rows = len(layout.shape) - 1 if layout.order == "C" else 0
    if rows in layout.axes and any(layout.overlap):
        position = layout.axes.index(rows)
        if counts[position] < _most(layout, position):
            yield (*counts[:position], counts[position] + 1, *counts[position + 1 :])


def _most(layout: Layout, position: int) -> int:
    """Return the most blocks along an axis that may each have a unit for their valid range."""
    axis = layout.axes[position]
    free = max(1, layout.shape[axis] - layout.overlap[position])
    return min(free, -(-layout.shape[axis] // layout.unit[axis]))


def _geometric(start: float, stop: float) -> Iterator[float]:
    value = start
    while value < stop:
        yield value
        value *= _STEP
    yield stop


_DEVICE_CELL = 2_500_000
"""A cell's own cost on a GPU, in voxels: some 0.5 ms of Python and launches of kernels, at some 5 G
voxels in a second. An estimate, of which nothing has been measured on a GPU."""
_LOCKING = 1.0
"""Cost of a byte of page-locked memory: some 0.2 ns, from 0.14 to 0.5 s for a GiB as published."""
_DEVICE_DECODE = 1.0
"""Cost of decoding a voxel with the threads that copy blocks: some 0.2 ns."""
_FILLING = 3
"""Blocks in whose time the pipeline of a device fills and runs dry."""
_RUN_BYTES = 512
"""Cost of the start of another run of voxels when a block is gathered, in bytes of it. Measured
with NumPy, on one thread: blocks of 256^3 float32 are gathered 1.2 to 1.9 times slower than slabs
of whole planes."""
_SHORT_BYTES = 2**31
"""Kernels of CuPy compute with slower indices of 64 bits on arrays of this length and above."""


def device_grid(layout: Layout, traffic: Traffic, need: Need, budget: Budget) -> Grid:
    """Choose the blocks that pass soonest through devices with memory of their own.

    Candidates are those of `automatic_grid`, with the same proportions where only the slower axes
    are cut as well, since voxels that lie side by side are gathered faster. Those fit whose slots
    and function have room on a device, and whose page-locked slots have room on the host for one
    device at least. Arrays of 2 GiB and above are chosen only where blocks cannot be cut finer.

    Raises
    ------
    BudgetError
        If the smallest block does not fit.
    """
    limit = budget.device_bytes or 0
    best: Grid | None = None
    best_rank = (True, float("inf"))
    smallest: Grid | None = None
    for grid in _grids(layout, budget.workers, slabs=True):
        voxels = prod(grid.largest)
        if smallest is None or voxels < prod(smallest.largest):
            smallest = grid
        pinned = traffic.pinned_bytes(voxels)
        if pinned > budget.host_bytes or traffic.device_bytes(voxels, need) > limit:
            continue
        long = traffic.longest_bytes(voxels) >= _SHORT_BYTES
        rank = long, device_cost(grid, layout, traffic, budget)
        if rank < best_rank:
            best, best_rank = grid, rank
    if best is None:
        assert smallest is not None
        raise _too_large(smallest, traffic, need, budget)
    return _as_cut(best)


def device_cost(grid: Grid, layout: Layout, traffic: Traffic, budget: Budget) -> float:
    """Return the time of a run on devices, in units of the time for a voxel.

    Cells are handed out one by one, so the busiest device does ``ceil(cells / devices)`` of them,
    beside the time that its pipeline takes to fill and to run dry, and its memory to be locked
    before that. Only so many devices take part as there is page-locked memory for.
    """
    voxels = prod(grid.largest)
    pinned = traffic.pinned_bytes(voxels)
    devices = min(budget.workers, max(1, budget.host_bytes // pinned))
    run_bytes = _run(grid, layout.order) * layout.itemsize
    cell = voxels * (1 + _RUN_BYTES / run_bytes) + _DEVICE_CELL
    cell += _DEVICE_DECODE * _decoded(grid, layout, devices) / len(grid)
    return (ceil(len(grid) / devices) + _FILLING) * cell + _LOCKING * pinned


def _run(grid: Grid, order: Order) -> int:
    """Return how many voxels of a block lie side by side in memory."""
    lengths = list(zip(grid.largest, grid.shape, strict=True))
    run = 1
    for length, whole in lengths if order == "F" else reversed(lengths):
        run *= length
        if length < whole:
            break
    return run


def _too_large(smallest: Grid, traffic: Traffic, need: Need, budget: Budget) -> BudgetError:
    """Return the error for the smallest block, which fits a device or the host not."""
    voxels = prod(smallest.largest)
    needed, limit = traffic.device_bytes(voxels, need), budget.device_bytes or 0
    where, reason = "on the device", budget.device_reason
    if needed <= limit:
        needed, limit = traffic.pinned_bytes(voxels), budget.host_bytes
        where, reason = "of page-locked host memory for one device", budget.reason
    return BudgetError(
        f"the smallest block, of {smallest.largest} voxels, needs {format_bytes(needed)} {where}, "
        f"but {reason} leaves {format_bytes(limit)}; use a smaller overlap, more memory, or "
        "device='cpu'"
    )
