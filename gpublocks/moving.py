"""What GPUs cannot do goes to CPUs: tasks, plans, warnings. Touches the machine, reads only."""

from dataclasses import replace

from gpublocks import io
from gpublocks.budget import format_bytes
from gpublocks.contracts import Sink
from gpublocks.drafting import plan_task
from gpublocks.errors import BudgetError, DeviceError
from gpublocks.notice import warn_user
from gpublocks.planning import Plan
from gpublocks.task import Task

__all__ = ["line", "move", "plan_rest", "settle", "warn_of_move", "warn_of_rest"]


def settle(task: Task) -> tuple[Task, Plan]:
    """Plan a task; for CPUs if GPUs that nobody asked for cannot do it.

    Raises
    ------
    PlanError, BudgetError, SinkError, DeviceError
        As `plan_task` does.
    """
    try:
        return task, plan_task(task)
    except (BudgetError, DeviceError) as error:
        if task.choice.otherwise is None:
            raise
        moved = _on_cpus(task, error)
    return moved, plan_task(moved)


def move(task: Task, why: BaseException) -> tuple[Task, Plan]:
    """Return task and plan for CPUs, instead of GPUs of which nothing is stored yet.

    Raises
    ------
    BudgetError
        If they have not the memory for it either.
    """
    moved = _on_cpus(task, why)
    try:
        return moved, plan_task(moved)
    except BudgetError as error:
        raise error from why


def plan_rest(
    task: Task, plan: Plan, sinks: tuple[Sink, ...], why: BaseException
) -> tuple[Task, Plan]:
    """Return task and plan with which CPUs do cells of the grid of GPUs.

    Parameters
    ----------
    sinks : tuple of Sink
        The sinks, all of them open by now.

    Raises
    ------
    BudgetError
        If not even one worker has memory for such a cell.
    """
    moved, drafted = move(replace(task, sinks=sinks), why)
    rest = replace(drafted, grid=plan.grid, sizing=plan.sizing)
    limit = rest.budget.host_bytes
    # As in every plan, a guess of what the function takes counts only against a given limit.
    guessed = task.memory_bytes is None
    needed = rest.block_bytes + rest.staging_bytes if guessed else rest.worker_bytes
    if needed > limit:
        raise BudgetError(
            f"a block of {rest.grid.largest} voxels, which no GPU could do, needs "
            f"{format_bytes(needed)} of host memory, but {rest.budget.reason} leaves "
            f"{format_bytes(limit)}; use a smaller size_max, or device='cpu'"
        ) from why
    workers = min(rest.budget.workers, max(1, limit // rest.worker_bytes))
    return moved, replace(rest, budget=replace(rest.budget, workers=workers))


def warn_of_move(task: Task, worker: str, why: BaseException) -> None:
    """Say that all blocks are computed on CPUs."""
    if isinstance(why, DeviceError | BudgetError):
        warn_user(f"all blocks are computed on CPUs: {line(why)}")
        return
    warn_user(
        f"function {task.name!r} does not run on {worker} ({type(why).__name__}: {line(why)}), "
        "but runs on the CPU, where all blocks are computed; write it with "
        "gpublocks.arrays.ndimage(x) to use the GPU, or pass device='cpu'"
    )


def warn_of_rest(left: int, count: int, why: BaseException) -> None:
    """Say that some blocks are computed on CPUs."""
    warn_user(f"{left} of {count} blocks are computed on CPUs: {line(why)}")


def line(error: BaseException) -> str:
    """Return the first line of an error."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _on_cpus(task: Task, why: BaseException) -> Task:
    """Return a task for those who do what GPUs cannot do."""
    cpus = task.choice.otherwise
    assert cpus is not None
    choice = replace(cpus, reason=f"{cpus.reason}; no GPU is used: {line(why)}")
    plain, shared = io.new_array(), io.new_array(shared=choice.name == "processes")
    return replace(
        task,
        choice=choice,
        sizes=replace(task.sizes, processes=choice.workers),
        sinks=tuple([shared if isinstance(sink, type(plain)) else sink for sink in task.sinks]),
    )
