"""From a task to its plan: which blocks, how many workers. Touches the machine, reads only."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from math import prod

import numpy as np

from gpublocks import machine
from gpublocks.budget import SLOTS, Budget, Need, Traffic, format_bytes
from gpublocks.chaining import advice_for, passes_of
from gpublocks.contracts import Array, CellDone, NewSink, Reach, Source
from gpublocks.cutting import (
    CACHE_SHARE,
    Units,
    check_shapes,
    cut,
    encoding_bytes,
    layout_of,
    need_of,
    results_of,
    traffic_of,
    volumes_of,
)
from gpublocks.errors import BudgetError, PlanError, SinkError
from gpublocks.geometry import Cell
from gpublocks.grid import Grid
from gpublocks.notice import warn_user
from gpublocks.planning import Plan, Volume
from gpublocks.sizing import device_cost, normalise_axes
from gpublocks.storage import Usage
from gpublocks.task import Task, check_periodic

__all__ = ["plan_task", "replan"]

_SHARING_WORK = 100_000
"""Steps after which two views are taken to share memory (`numpy.shares_memory`); some 10 ms."""
_SELDOM = 1.1
"""Pieces that are decoded so often on average are not kept for other blocks."""
_OFTEN, _LONG_BYTES = 3, 10**10
"""Pieces that are decoded so many times more than once, and so many bytes of them, are told of."""
_WORTH_IT = 0.9
"""Part of the time that other blocks may take, since the first cell is computed anew for them."""


def plan_task(task: Task) -> Plan:
    """Choose blocks and workers for a task; for devices by what is free on them right now.

    Raises
    ------
    PlanError, BudgetError, SinkError, DeviceError
        If it cannot be done as asked. Nothing has been created by then.
    """
    try:
        plan = _plan_now(task)
    except BudgetError as error:
        passes = passes_of(task.function)
        if not passes:
            raise
        raise BudgetError(f"{error}, or two passes: {passes}") from error
    _warn_of_decoding(plan)
    return plan


def _plan_now(task: Task) -> Plan:
    """Return the plan for the memory that is free right now."""
    choice = task.choice
    if not choice.devices:
        return _draft(task, machine.host_budget(choice.workers, task.memory_bytes))
    budget = machine.device_budget(choice.devices, task.memory_bytes, task.device_bytes)
    return _draft(task, budget, results_of(task))


def _warn_of_decoding(plan: Plan) -> None:
    """Warn if pieces are decoded so often that this will take longer than all else."""
    stored = [source.pieces for source in plan.sources if source.pieces is not None]
    again = (plan.decoded or 1) - 1
    if again < _OFTEN or again * sum(prod(p.shape) * p.itemsize for p in stored) < _LONG_BYTES:
        return
    largest = max(stored, key=lambda pieces: pieces.nbytes)
    warn_user(
        f"each piece that the source is stored in (of {largest.unit} voxels) is decoded about "
        f"{again + 1:.0f} times, for memory holds only {format_bytes(plan.cache_bytes)} of them; "
        "give more memory, fewer processes or larger blocks, or convert it to smaller chunks first"
    )


def _draft(task: Task, budget: Budget, results: Sequence[Volume] = ()) -> Plan:
    grid, units = cut(task, budget, results)
    if len(grid) > 1:
        check_periodic(task.function, task.kwargs)
    check_shapes(task, grid.shape, grid.axes)
    check_aliasing(task, grid)
    _check_neighbours(task)
    traffic = traffic_of(task, results) if task.choice.devices else None
    plan = _plan(task, grid, budget, traffic, units)
    if not plan.fits:
        plan = _lighter(task, plan)
    plan = _within_budget(task, plan) if plan.traffic is None else _within_devices(task, plan)
    return replace(plan, advice=advice_for(task, plan.grid, budget))


def _check_neighbours(task: Task) -> None:
    arrays: list[Source] = [*task.sources, *task.existing_sinks]
    away = task.choice.name not in ("serial", "threads") and task.choice.given is None
    seen = task.neighbours and task.function_type != "array"
    if seen and away and any(array.reach == Reach.PROCESS for array in arrays):
        raise PlanError(
            "neighbours=True with arrays in memory needs executor='serial' or 'threads'; "
            "worker processes see only their own block of such an array"
        )


def _plan(task: Task, grid: Grid, budget: Budget, traffic: Traffic | None, units: Units) -> Plan:
    volumes = volumes_of(task)
    count = len(task.sources)
    known = len(task.sinks) == len(task.existing_sinks)
    first = task.sources[0]
    in_memory = [sink for sink in task.sinks if isinstance(sink, NewSink) and not sink.location]
    if task.automatic:
        sizing = "chosen for caches, workers and memory"
        if traffic is not None:
            sizing = "chosen for throughput and memory of devices"
    elif task.one_block or len(grid) == 1:
        sizing = "one block"
        if not task.one_block and task.sizes.size_max is None:
            missing = "overlap, halo or size_max" if not task.overlap_known else "size_max too"
            sizing += f": nothing says how large blocks may be (give {missing})"
    else:
        sizing = "as given"
    return Plan(
        grid=grid,
        sources=tuple(volumes[:count]),
        sinks=tuple(volumes[count:]) if known else (),
        executor=task.choice.name,
        executor_reason=task.choice.reason,
        budget=budget,
        need=need_of(task),
        sizing=sizing,
        enforced=task.choice.name == "processes" and sys.platform == "linux",
        own_writes=task.function_type == "block",
        result_bytes=len(in_memory) * prod(first.shape) * (task.dtype or first.dtype).itemsize,
        devices=task.choice.devices[: min(budget.workers, max(1, len(grid)))],
        traffic=traffic,
        units=units,
        encoding_bytes=encoding_bytes(task, units),
        arrays=task.sources,
        mask=task.mask,
    )


def _with_caches(task: Task, plan: Plan) -> Plan:
    """Let a plan keep decoded pieces for the blocks that need them too, where that is worth it.

    They take no more than they can need, than a share of the budget, and than blocks leave.
    """
    plan = replace(plan, caches=())
    limit, workers = plan.budget.host_bytes, plan.budget.workers
    blocks = plan.worker_bytes if task.choice.given is None else plan.peak_bytes
    usages = [plan.usage(n) if task.loads_blocks else None for n in range(len(plan.sources))]
    useful = [_useful_bytes(usage, workers) for usage in usages]
    wanted = sum(useful)
    # What blocks leave is not all for pieces: what a function takes may be a guess.
    most = max(limit // CACHE_SHARE, (limit - blocks) // 2)
    room = max(0, min(most, limit - blocks, wanted))
    shares = [nbytes * room // max(1, wanted) for nbytes in useful]
    # One that has no room for a piece is of no use.
    caches = [
        share if usage is not None and share >= usage.pieces.nbytes else 0
        for usage, share in zip(usages, shares, strict=True)
    ]
    away = task.choice.name == "processes"
    sources = tuple(
        [
            replace(volume, staged=away and (source.reach == Reach.PROCESS or nbytes > 0))
            for source, volume, nbytes in zip(task.sources, plan.sources, caches, strict=True)
        ]
    )
    return replace(plan, sources=sources, caches=tuple(caches))


def _useful_bytes(usage: Usage | None, workers: int) -> int:
    if usage is None or usage.decoded(0, workers) <= _SELDOM:
        return 0
    return usage.useful_bytes(workers)


def _lighter(task: Task, plan: Plan) -> Plan:
    """Return the plan or the one not optimised for workers, whichever has smaller blocks."""
    plain = replace(task, sizes=replace(task.sizes, optimization=False))
    grid, units = cut(plain, plan.budget)
    other = _plan(plain, grid, plan.budget, plan.traffic, units)
    return min(plan, other, key=lambda plan: plan.worker_bytes)


def _within_budget(task: Task, plan: Plan) -> Plan:
    """Lower the number of workers until the predicted peak fits.

    A prediction that rests on a guess refuses nothing unless the user set the limit; the arrays
    that are certainly needed always count.
    """
    plan, limit = _with_caches(task, plan), plan.budget.host_bytes
    if plan.peak_bytes <= limit:
        return plan
    workers = max(1, (limit - plan.cache_bytes) // plan.worker_bytes)
    if task.choice.given is None:
        plan = replace(plan, budget=replace(plan.budget, workers=workers))
    elif task.memory_bytes is not None:
        raise BudgetError(
            f"the executor works on {task.choice.workers} blocks at once, which need "
            f"{format_bytes(plan.peak_bytes)}, but {plan.budget.reason} leaves "
            f"{format_bytes(limit)}; give one with at most {workers} workers, or smaller blocks"
        )
    certain = plan.block_bytes + plan.staging_bytes
    needed = plan.worker_bytes if task.memory_bytes is not None else certain
    if needed <= limit:
        return plan
    raise BudgetError(
        f"one block of {plan.grid.largest} voxels needs {format_bytes(needed)} (block "
        f"{format_bytes(plan.block_bytes)} + function {plan.need.per_voxel:g} B per voxel"
        f"{' + staging' if plan.staging_bytes else ''}"
        f"{' + coding' if plan.coding_bytes else ''}), but {plan.budget.reason} leaves "
        f"{format_bytes(limit)}; {_advice(task, plan)}"
    )


def _within_devices(task: Task, plan: Plan) -> Plan:
    """Check that blocks fit devices; leave out those for which there is no page-locked memory.

    What a function takes refuses nothing where it is a guess: blocks are halved if there is no
    room for it. The slots and its arguments are certain.
    """
    plan = _with_caches(task, plan)
    budget, sure = plan.budget, _certain(plan)
    if not sure.fits:
        raise BudgetError(f"{_shortage(sure)}; {_advice(task, sure)}")
    room = budget.host_bytes - plan.cache_bytes
    workers = min(budget.workers, room // max(1, plan.worker_bytes))
    return replace(plan, budget=replace(budget, workers=workers), devices=plan.devices[:workers])


def _shortage(plan: Plan) -> str:
    """Return how much of what memory a block on a device lacks."""
    budget, traffic, voxels = plan.budget, plan.traffic, plan.voxels
    assert traffic is not None
    needed, limit, reason = plan.device_peak_bytes, budget.device_bytes or 0, budget.device_reason
    coming = format_bytes(traffic.input_bytes(voxels))
    going = format_bytes(traffic.output_bytes(voxels))
    if needed > limit:
        where = f"on the device ({SLOTS + 1} x in {coming} + {SLOTS} x out {going}"
        where += f" + function {plan.need.per_voxel:g} B per voxel)" if plan.need.per_voxel else ")"
    else:
        needed, limit, reason = plan.worker_bytes, budget.host_bytes, budget.reason
        where = f"of page-locked host memory for one device ({SLOTS} x (in {coming} + out {going}))"
    return (
        f"one block of {plan.grid.largest} voxels needs {format_bytes(needed)} {where}, "
        f"but {reason} leaves {format_bytes(limit)}"
    )


def _certain(plan: Plan) -> Plan:
    """Return the plan without what is a guess about a function on devices."""
    guessed = plan.traffic is not None and plan.need.origin == "default"
    return replace(plan, need=Need(0.0)) if guessed else plan


def _room(plan: Plan) -> float:
    """Return the part of a block for which there is memory."""
    fixed, host_bytes = plan.need.fixed, plan.budget.host_bytes
    if plan.traffic is None:
        fixed += plan.coding_bytes
        return max(0.0, host_bytes - fixed) / (plan.worker_bytes - fixed)
    on_device = ((plan.budget.device_bytes or 0) - fixed) / (plan.device_peak_bytes - fixed)
    return min(on_device, host_bytes / plan.worker_bytes)


def _advice(task: Task, plan: Plan) -> str:
    """Return what would make the blocks of a plan fit: a size that was tried, if there is one."""
    first, largest = task.sources[0], plan.grid.largest
    if task.automatic:
        return "use a smaller overlap or more memory"
    if plan.traffic is None and plan.coding_bytes >= plan.budget.host_bytes:
        return "pieces that are coded as one are too large for that: use more memory"
    axes = normalise_axes(task.axes, len(first.shape), first.order, first.unit)
    room = _room(plan)
    for axis in sorted(axes, key=lambda axis: -largest[axis]):
        lengths = [int(largest[a] * (room if a == axis else 1)) for a in axes]
        sizes = replace(task.sizes, size_max=lengths)
        smaller = replace(task, one_block=False, sizes=sizes)
        with suppress(PlanError):
            grid, units = cut(smaller, plan.budget)
            tried = _lighter(smaller, _plan(smaller, grid, plan.budget, plan.traffic, units))
            if _certain(tried).fits:
                where = f"axes {axes}" if len(axes) > 1 else f"axis {axis}"
                return f"use size_max={lengths if len(axes) > 1 else lengths[0]} on {where}"
    return "use smaller blocks, or give overlap or halo without sizes, which are then chosen"


def check_aliasing(task: Task, grid: Grid) -> None:
    """Refuse sinks that share bytes with each other, or with a source in a way that is not exact.

    In place is exact where blocks do not overlap and each is written where it was read.

    Raises
    ------
    SinkError
    """
    sinks = task.existing_sinks
    split = [axis for axis, split in zip(grid.axes, grid.splits, strict=True) if split.count > 1]
    overlap = max((split.overlap for split in grid.splits if split.count > 1), default=0)
    for i, sink in enumerate(sinks):
        if any(_shared(sink, other) for other in sinks[:i]):
            raise SinkError(f"two sinks are the same array: {_label(sink)}")
        for source in task.sources:
            if split and _shared(source, sink):
                same = f"sink and source are the same {_label(sink)}: in place"
                if overlap:
                    raise SinkError(
                        f"{same} with overlap {overlap} would read neighbours already changed; "
                        "use another sink"
                    )
                if not _in_step(source, sink, split):
                    raise SinkError(
                        f"{same} where voxels move would read what other blocks have changed; "
                        "use another sink"
                    )


def _shared(a: Source, b: Source) -> bool:
    """Tell whether two arrays have bytes in common, as far as that can be known."""
    if a.extent is None or b.extent is None or not a.extent.overlaps(b.extent):
        return False
    x, y = _array(a), _array(b)
    if x is None or y is None or a.extent.store != ("memory", os.getpid()):
        return True
    try:
        # Views of one array may lie within each other and have no byte in common.
        return np.shares_memory(x, y, _SHARING_WORK)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def _in_step(source: Source, sink: Source, split: list[int]) -> bool:
    """Tell whether two views of the same bytes lie on each other along the split axes.

    That is, whether no place along these axes has a byte in common with another one. For arrays
    that tell no strides it is taken for granted.
    """
    a, b = _array(source), _array(sink)
    if a is None or b is None or source.extent is None or sink.extent is None:
        return True
    step = min(abs(a.strides[axis]) for axis in split)
    both = range(min(a.ndim, b.ndim))
    wide = [n for n in both if a.shape[n] > 1 < b.shape[n] and a.strides[n] != b.strides[n]]
    if any(max(abs(a.strides[n]), abs(b.strides[n])) >= step for n in wide):
        return False
    offset = abs(sink.extent.start - source.extent.start)
    whole = {abs(v.strides[n]) for v in (a, b) for n in range(v.ndim) if n not in split}
    for stride in sorted(whole, reverse=True):
        if stride >= step > 0:
            offset %= stride
    return offset < step


def _array(source: Source) -> Array | None:
    array = getattr(source, "array", None)
    return array if isinstance(array, np.ndarray) else None


def _label(source: Source) -> str:
    return f"file {source.location}" if source.location else "array in memory"


def replan(task: Task, plan: Plan, first: CellDone) -> Plan:
    """Return the plan with what the first cell took, with smaller blocks if it took too much.

    Parameters
    ----------
    first : CellDone
        The first cell, whose ``peak_bytes`` were measured if the executor can.

    Returns
    -------
    Plan
        With the same grid, unless sizes were chosen here and would break the budget.
    """
    if plan.traffic is not None:
        return _replan_on_devices(task, plan, first)
    need = _measured(task, plan, first)
    if need is None:
        return plan
    measured = replace(plan, need=need)
    if measured.peak_bytes <= plan.budget.host_bytes:
        return measured
    if _may_replan(task):
        return plan_task(replace(task, need=need))
    return _within_budget(task, measured)


def _may_replan(task: Task) -> bool:
    return task.automatic and task.function_type == "array" and not task.return_result


def _measured(task: Task, plan: Plan, first: CellDone) -> Need | None:
    if first.peak_bytes is None:
        return None
    voxels = first.cell.read_in(task.sources[0].shape).size
    taken = max(0, first.peak_bytes - first.read_bytes) / max(1, voxels)
    fixed = max(plan.need.fixed, first.outside_bytes)
    return Need(per_voxel=taken, fixed=fixed, origin="measured")


def _replan_on_devices(task: Task, plan: Plan, first: CellDone) -> Plan:
    """Return the plan with what the first cell took and gave, with other blocks where they pay.

    The budget stays: this process has taken a part of what was free. Sizes that were given stay
    too, whatever was measured: this cell has been done, and others may be halved.
    """
    results = results_of(task, [_whole(output, first.cell, plan.grid) for output in first.outputs])
    traffic = traffic_of(task, results)
    need = _measured(task, plan, first) or plan.need
    if not _may_replan(task):
        return replace(_within_devices(task, replace(plan, traffic=traffic)), need=need)
    task = replace(task, need=need)
    budget = replace(plan.budget, workers=len(task.choice.devices))
    kept = _plan(task, plan.grid, budget, traffic, plan.units)
    other = _draft(task, budget, results)
    layout = layout_of(task, results, plan.units, budget)
    before, after = (device_cost(p.grid, layout, traffic, budget) for p in (kept, other))
    if kept.fits and after > _WORTH_IT * before:
        return _within_devices(task, kept)
    return other


def _whole(output: Array, cell: Cell, grid: Grid) -> Volume:
    """Return the whole result of which a cell has given a part."""
    shape = list(output.shape)
    for axis in cell.axes:
        shape[axis] = grid.shape[axis]
    return Volume(tuple(shape), output.dtype)
