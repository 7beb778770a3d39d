"""The documented front door: process, plan, split_into_blocks, block_sizes and defaults.

Touches what the rooms below touch; this room itself only normalises arguments.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from inspect import signature
from time import perf_counter
from typing import Any

from gpublocks import blocks as blk
from gpublocks import io
from gpublocks.arguments import make_task
from gpublocks.blocks import Block, Blocks
from gpublocks.choosing import agree, count_workers
from gpublocks.collecting import Take
from gpublocks.contracts import CellFailed, CellStarted
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.geometry import Range
from gpublocks.job import Job, execute
from gpublocks.moving import settle
from gpublocks.planning import Plan
from gpublocks.recorder import Recorder, recorded_in
from gpublocks.report import Report
from gpublocks.run import TaskRun, measure
from gpublocks.sizing import Sizes, documented_grid, normalise_axes
from gpublocks.splitting import split_axis
from gpublocks.task import Task, check_function, name_of
from gpublocks.telling import Lines, Observer, Progress, forward_output

__all__ = [
    "blk",
    "block_axes",
    "block_sizes",
    "default_device",
    "default_executor",
    "default_memory",
    "default_overlap",
    "default_progress",
    "default_size_max",
    "default_size_min",
    "plan",
    "process",
    "process_block_block",
    "process_block_source",
    "split_into_blocks",
]

default_size_max: Any = None
"""`size_max` where none is given; read at call time."""
default_size_min: Any = None
"""`size_min` where none is given; read at call time."""
default_overlap: Any = None
"""`overlap` where none is given; read at call time."""
default_device: Any = "auto"
"""`device` where none is given; read at call time."""
default_executor: Any = None
"""`executor` where none is given; read at call time."""
default_memory: Any = None
"""`memory` where none is given; read at call time."""
default_progress: Any = False
"""`progress` where none is given; read at call time."""


def block_sizes(
    size: int,
    processes: int | str | None = None,
    size_max: int | None = None,
    size_min: int | str | None = None,
    overlap: int | None = None,
    optimization: bool = True,
    optimization_fix: str | None = "all",
    verbose: bool = False,
) -> tuple[int, list[Range], list[Range]]:
    """Split one axis into overlapping blocks.

    Parameters
    ----------
    size : int
        Length of the axis.
    processes : int, 'serial' or None
        Number of blocks is made a multiple of it; None counts the CPUs of this process.
    size_max, size_min : int or None
        Bounds of the length of a block; ``size_min='fixed'`` makes all blocks `size_max` long.
    overlap : int or None
        Voxels that neighbours share.
    optimization : bool
        Whether to make the number of blocks a multiple of `processes`.
    optimization_fix : {'all', 'increase', 'decrease', None}
        Make blocks larger, smaller, or whatever is closer.
    verbose : bool
        Print the result.

    Returns
    -------
    n_blocks : int
    block_ranges, valid_ranges : list of (int, int)
        What each block reads, and the part of it that is valid. Valid ranges tile the axis.

    Raises
    ------
    PlanError, ArgumentTypeError

    Examples
    --------
    >>> block_sizes(200, processes=10, size_max=50, size_min=30, overlap=20)[1][:3]
    [(0, 38), (18, 56), (36, 74)]
    """
    split = split_axis(
        size,
        processes=count_workers(processes),
        size_max=size_max,
        size_min=size_min,  # type: ignore[arg-type]
        overlap=overlap,
        optimization=optimization,
        optimization_fix=optimization_fix,
    )
    ranges = [split.block(k) for k in range(split.count)]
    valid = [split.valid(k) for k in range(split.count)]
    if verbose:
        print(f"Splitting {size} voxels into {split.count} blocks: {ranges}, valid {valid}")
    return split.count, ranges, valid


def block_axes(source: Any, axes: Any = None) -> list[int]:
    """Return the axes along which a source is split.

    Parameters
    ----------
    source : array_like or Source
    axes : None, 'all', int or sequence of int
        None chooses by memory order: the last axis for Fortran order, else the first; for arrays
        stored in chunks the axis along which these are shortest.

    Returns
    -------
    list of int

    Raises
    ------
    PlanError
        If an axis is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> block_axes(np.zeros((2, 3, 4), order="F"))
    [2]
    """
    opened = io.as_source(source)
    return normalise_axes(axes, len(opened.shape), opened.order, opened.unit)


def split_into_blocks(
    source: Any,
    processes: int | str | None = None,
    axes: Any = None,
    size_max: Any = None,
    size_min: Any = None,
    overlap: Any = None,
    optimization: Any = True,
    optimization_fix: Any = "all",
    neighbours: bool = False,
    verbose: bool = False,
    *,
    size_multiple_of: Any = None,
    **kwargs: Any,
) -> Blocks:
    """Split a source into overlapping blocks.

    Every parameter of `block_sizes` is one value, or a list with one for each of `axes`.

    Parameters
    ----------
    source : array_like or Source
    axes : None, 'all', int or sequence of int
        See `block_axes`.
    neighbours : bool
        Whether blocks know the blocks beside them.
    size_multiple_of : int or list of int, optional
        Blocks are so many voxels long, or a multiple of it; the last one is cut.
    **kwargs
        Ignored.

    Returns
    -------
    Blocks
        A lazy sequence of `gpublocks.blocks.Block`, in C order of the grid.

    Raises
    ------
    PlanError, ArgumentTypeError, SourceError
    """
    opened = io.as_source(source)
    sizes = Sizes(
        _default(size_max, default_size_max),
        _default(size_min, default_size_min),
        size_multiple_of,
        _default(overlap, default_overlap),
        optimization,
        optimization_fix,
        count_workers(processes),
    )
    split = normalise_axes(axes, len(opened.shape), opened.order, opened.unit)
    grid = documented_grid(opened.shape, split, sizes)
    if verbose:
        print(f"Splitting {opened!r} into {len(grid)} blocks {grid.counts} of {grid.largest}")
    return Blocks(opened, grid, neighbours=neighbours)


def process(
    function: Callable[..., Any],
    source: Any,
    sink: Any = None,
    axes: Any = None,
    size_max: Any = None,
    size_min: Any = None,
    size_multiple_of: Any = None,
    overlap: Any = None,
    optimization: Any = True,
    optimization_fix: Any = "all",
    neighbours: bool = False,
    function_type: str | None = None,
    as_memory: bool = False,
    return_result: bool | Take = False,
    return_blocks: bool = False,
    processes: int | str | None = None,
    verbose: bool = False,
    workspace: Any = None,
    *,
    halo: Any = None,
    device: Any = None,
    executor: Any = None,
    memory: Any = None,
    dtype: Any = None,
    casting: str | None = None,
    mask: Any = None,
    progress: Any = None,
    report: bool | Report | None = None,
    **kwargs: Any,
) -> Any:
    """Run a function over a source in overlapping blocks and write the valid parts into a sink.

    Parameters
    ----------
    function : callable
        Called with the blocks of all sources. Lambdas, closures, NumPy ufuncs and functions
        defined in notebooks work in every executor.
    source : array_like, path, Source, or a list of these
        Arrays that agree in length along the split axes.
    sink : None, array, path, Sink, or a list of these
        Where results go; a path is created, or written into if it exists. None returns the result
        as an array. Only the lengths along the split axes must be those of the source.
    axes : None, 'all', int or sequence of int
        Axes that are split; None chooses (see `block_axes`).
    size_max, size_min, overlap : int or sequence of int, optional
        Lengths of blocks and of what neighbours share, for all split axes or for each of them
        (see `block_sizes`). ``size_max='full'`` makes one block. Without `size_max`, and with
        `overlap` or `halo` given, sizes that suit memory, caches and workers are chosen.
    size_multiple_of : int or sequence of int, optional
        Blocks are a multiple of it long. Given alone, like `size_min`, it chooses nothing: the
        documented rules then make one block.
    optimization, optimization_fix
        See `block_sizes`.
    neighbours : bool
        Whether blocks know the blocks beside them (function types 'source' and 'block').
    function_type : {'array', 'source', 'block'}, optional
        What the function gets: private, writable arrays (default); read-only blocks; or source
        and sink blocks, into which it writes itself.
    as_memory : bool
        Load whole blocks into memory before the call.
    return_result : bool or callable
        Return the list of what the function returned, uncropped, in the order of the blocks. A
        callable is called with each of these values instead, in the order in which blocks are
        stored, and none is kept: for sums over more blocks than a list can hold.
    return_blocks : bool
        Return also ``[source_blocks, sink_blocks]``: for each block its list of blocks.
    processes : int, 'serial' or None
        Number of workers, which CPUs are then, unless `device` names GPUs; None takes all CPUs of
        this process.
    verbose : bool
        Print the documented lines.
    workspace : object, optional
        Its ``executor`` is the run while it lasts, and None after.
    halo : int or sequence of int, optional
        Voxels on each side that one voxel of the result depends on: ``overlap = 2 * halo``.
    device : {'auto', 'cpu', 'cuda', 'cuda:N'} or list of 'cuda:N', optional
        Where to compute. ``'cuda'`` takes all GPUs that can be used. GPUs that are named compute
        all blocks, or there is an error. If nothing is said they compute where there are some,
        for functions of arrays and types of voxels that CuPy has; what they cannot do CPUs do,
        with one warning: all blocks if the function fails on the first one, and blocks for which
        no GPU has memory. ``'auto'`` is the same, but warns if no GPU can be used. On a GPU the
        function gets arrays of CuPy (see `gpublocks.arrays.ndimage`), one block at a time.
    executor : {'serial', 'threads', 'processes', 'cuda'} or Executor, optional
        Who does the blocks; ``'cuda'`` is what ``device='cuda'`` is.
    memory : int, str or dict, optional
        Host memory that may be in flight, in bytes or as ``'8GB'``; for GPUs it is page-locked.
        ``{'host': '8GB', 'device': '20GB'}`` also limits what is taken on each GPU.
    dtype : dtype, optional
        Type of new sinks; else that of the first result.
    casting : str, optional
        A rule of `numpy.can_cast` for existing sinks and `dtype`. By default values are cast like
        assignment casts them, and a value that an integer sink cannot hold is an error.
    mask : array of bool or path, optional
        A mask at an integer fraction of the source's resolution: along an axis of n voxels it has
        ``ceil(n / f)`` for some f, as ``source[::f]`` has. Blocks with nothing inside are not
        computed; their voxels of the sinks become zero.
    progress : bool or callable, optional
        Show a progress bar, or call something with each event.
    report : bool or Report, optional
        Print why the run took as long as it did, or fill a `gpublocks.Report` with it (see
        `gpublocks.recording` too).
    **kwargs
        Passed on to the function, fresh for each block.

    Returns
    -------
    object
        `sink` itself; the result array if it is None; what `return_result` and `return_blocks`
        ask for.

    Raises
    ------
    PlanError, ArgumentTypeError, SourceError, SinkError, DeviceError
        Before any work, with nothing created or changed.
    BlockError
        If a result cannot be stored, or workers died. Other errors of the function keep their
        type and have a note that names the block.
    DeviceMemoryError
        If a GPU that was named has no memory for a block, nor for parts of it where `overlap` or
        `halo` says that these will do.
    RunCancelledError
        If the run was cancelled through `workspace`.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.arange(10.0)
    >>> float(process(np.sqrt, image, overlap=0, processes="serial")[4])
    2.0
    """
    begun = perf_counter()
    told = _report(report)
    reports = recorded_in(told)
    task = replace(_task(locals()), recorded=bool(reports))
    watch = _default(progress, default_progress)
    take = return_result if callable(return_result) else None
    run = TaskRun(*settle(task), take=take)
    recorder = Recorder(reports, task.name, begun) if reports else None
    with _workspace(workspace, run), recorder.watching() if recorder else nullcontext():
        _consume(run, verbose=verbose, watch=watch, recorder=recorder)
    if report is True:
        print(told, flush=True)
    result = _result(run, sink) if take is None else sink
    return (result, _all_blocks(run)) if return_blocks else result


def plan(
    function: Callable[..., Any],
    source: Any,
    sink: Any = None,
    *args: Any,
    trial: bool = False,
    **kwargs: Any,
) -> Plan:
    """Return what `process` would do with the same arguments, without doing it.

    Where GPUs would compute, CUDA is started to learn what memory is free.

    Parameters
    ----------
    function, source, sink, *args, **kwargs
        As for `process`.
    trial : bool
        Call the function on the first block to measure the memory that it takes (in worker
        processes and on GPUs); otherwise it is not called.

    Returns
    -------
    Plan
        Prints as a table; see `Plan.to_dict` for numbers.

    Raises
    ------
    PlanError, ArgumentTypeError, SourceError, SinkError, DeviceError
        As `process` does.

    Examples
    --------
    >>> import numpy as np
    >>> plan(np.sqrt, np.zeros((64, 64)), size_max=16, processes="serial").grid.counts
    (4, 1)
    """
    bound = _signature.bind(function, source, sink, *args, **kwargs)
    bound.apply_defaults()
    task, planned = settle(_task(bound.arguments))
    return measure(task, planned) if trial else planned


def process_block_source(
    sources: Any,
    sinks: Any,
    function: Callable[..., Any],
    as_memory: bool = False,
    as_array: bool = False,
    return_result: bool = False,
    verbose: bool = False,
    **kwargs: Any,
) -> Any:
    """Process one block in this process; the function returns the result.

    Parameters
    ----------
    sources, sinks : Block, list of Block, or None
        Blocks of `split_into_blocks`; only the valid region of a sink block is written.
    function : callable
        Called with the source blocks, read-only.
    as_memory : bool
        Load whole blocks into memory before the call.
    as_array : bool
        Call the function with private, writable arrays instead of blocks.
    return_result : bool
        Return what the function returned.
    verbose : bool
        Print the documented lines of the block.
    **kwargs
        Passed on to the function.

    Returns
    -------
    object
        What the function returned if `return_result`, else `sinks`.

    Raises
    ------
    PlanError, ArgumentTypeError
        If the arguments are no blocks of one place, or do not fit the function.
    BlockError
        If a result cannot be stored. Errors of the function keep their type.
    """
    kind = "array" if as_array else "source"
    return _one_block(kind, sources, sinks, function, as_memory, return_result, verbose, kwargs)


def process_block_block(
    sources: Any,
    sinks: Any,
    function: Callable[..., Any],
    as_memory: bool = False,
    return_result: bool = False,
    verbose: bool = False,
    **kwargs: Any,
) -> Any:
    """Process one block in this process; the function writes into the sink blocks itself.

    Parameters, results and errors are those of `process_block_source`, but for `as_array`: the
    function is called with the source blocks and then the sink blocks.
    """
    return _one_block("block", sources, sinks, function, as_memory, return_result, verbose, kwargs)


_signature = signature(process)
_keywords = [name for name in _signature.parameters if name != "kwargs"]
_extra = [
    parameter.name
    for parameter in _signature.parameters.values()
    if parameter.kind is parameter.KEYWORD_ONLY
]


def _default(value: Any, default: Any) -> Any:
    return default if value is None else value


def _task(arguments: Mapping[str, Any]) -> Task:
    """Return the task for the arguments of `process`, with the defaults of this moment."""
    given = {name: arguments[name] for name in _keywords}
    for name in ("progress", "report", "verbose", "workspace", "return_blocks"):
        del given[name]
    watch = _default(arguments["progress"], default_progress)
    if not callable(watch) and not isinstance(watch, bool):
        raise ArgumentTypeError(f"progress is {watch!r}; give True, False or a callable")
    given["return_result"] = bool(given["return_result"])
    given["memory"] = _default(given["memory"], default_memory)
    given["executor"], given["device"] = _where(**arguments)
    sizes = {
        "size_max": _default(given.pop("size_max"), default_size_max),
        "size_min": _default(given.pop("size_min"), default_size_min),
        "size_multiple_of": given.pop("size_multiple_of"),
        "overlap": _default(given.pop("overlap"), default_overlap),
        "optimization": given.pop("optimization"),
        "optimization_fix": given.pop("optimization_fix"),
    }
    return make_task(
        **given,
        sizes=sizes,
        kwargs=arguments["kwargs"],
        own=_keywords,
        passed=[name for name in _extra if arguments[name] is not None],
    )


def _where(*, executor: Any, device: Any, processes: Any, **others: Any) -> tuple[Any, Any]:
    """Return executor and device: defaults, but for those that do not go with what was given."""
    usual = None if default_device == "auto" else default_device
    if device is None and agree(executor, usual):
        device = usual
    if executor is None and processes is None and agree(default_executor, device):
        executor = default_executor
    return executor, device


@contextmanager
def _workspace(workspace: Any, run: TaskRun) -> Iterator[None]:
    """Let a workspace hold the run while it lasts."""
    if workspace is None:
        yield
        return
    try:
        workspace.executor = run.events
    except AttributeError as error:
        raise ArgumentTypeError(
            f"workspace is a {type(workspace).__name__}, which takes no attribute 'executor'"
        ) from error
    try:
        yield
    finally:
        workspace.executor = None


def _report(report: Any) -> Report | None:
    """Return where a run is recorded, as `report` says."""
    if report is None or report is False:
        return None
    if report is not True and not isinstance(report, Report):
        raise ArgumentTypeError(f"report is {report!r}; give True, or a gpublocks.Report")
    return Report() if report is True else report


def _consume(
    run: TaskRun, *, verbose: bool, watch: bool | Observer, recorder: Recorder | None
) -> None:
    """Do the work, telling those who want to know."""
    observers: list[Observer] = [forward_output]
    grid = run.plan.grid
    lines = Lines(run.task.name, run.task.sources[0], lambda: run.plan.grid)
    bar = Progress(run.count, run.task.name) if watch is True else None
    if verbose:
        lines.begin(run.count)
        observers.append(lines)
    if bar is not None:
        observers.append(bar)
    if callable(watch):
        observers.append(watch)
    if recorder is not None:
        recorder.keep(run.plan)
        observers.append(recorder)
    try:
        with closing(iter(run.events)) as events:
            for event in events:
                if run.plan.grid is not grid:
                    grid = run.plan.grid
                    if bar is not None:
                        bar.expect(run.count)
                for observe in observers:
                    observe(event)
                if isinstance(event, CellFailed):
                    # Here, since a generator that raises StopIteration raises RuntimeError.
                    raise event.error
    finally:
        if recorder is not None:
            recorder.keep(run.plan)
        if bar is not None:
            bar.close()
    if verbose:
        lines.end(run.count)


def _result(run: TaskRun, sink: Any) -> Any:
    if run.task.return_result:
        return [run.values.get(number) for number in range(len(run.plan.grid))]
    if sink is None and run.sinks:
        return run.sinks[0].array  # type: ignore[attr-defined]
    return sink


def _all_blocks(run: TaskRun) -> list[list[list[Block]]]:
    """Return the source blocks and the sink blocks: for each cell a list, one for each array."""
    groups = []
    for arrays in (run.task.sources, run.sinks):
        columns = [Blocks(array, run.plan.grid, neighbours=run.task.neighbours) for array in arrays]
        groups.append([[column[n] for column in columns] for n in range(len(run.plan.grid))])
    return groups


def _check_blocks(sources: list[Any], sinks: list[Any]) -> None:
    """Check that blocks are all the same place of their arrays, and see these themselves."""
    for block in [*sources, *sinks]:
        if not isinstance(block, Block):
            raise ArgumentTypeError(
                f"a {type(block).__name__} is no block; give blocks of split_into_blocks"
            )
        if block.in_memory:
            raise PlanError(f"{block!r} is a copy in memory; give the block that it was made of")
        if (block.cell.axes, block.cell.valid) != (sources[0].cell.axes, sources[0].cell.valid):
            raise PlanError(
                f"{block.iteration_info()} is not at the place of {sources[0].iteration_info()}; "
                "split all arrays alike and give blocks of one number"
            )


def _one_block(
    kind: Any,
    sources: Any,
    sinks: Any,
    function: Callable[..., Any],
    as_memory: bool,
    return_result: bool,
    verbose: bool,
    kwargs: Mapping[str, Any],
) -> Any:
    source_blocks = sources if isinstance(sources, list) else [sources]
    sink_blocks = [] if sinks is None else sinks if isinstance(sinks, list) else [sinks]
    _check_blocks(source_blocks, sink_blocks)
    n_arrays = len(source_blocks) + (len(sink_blocks) if kind == "block" else 0)
    check_function(function, kind, n_arrays, kwargs, own=(), reserved=())
    first = source_blocks[0]
    job = Job(
        function=function,
        sources=tuple(block.source for block in source_blocks),
        sinks=tuple(io.as_sink(block.source) for block in sink_blocks),  # type: ignore[misc]
        grid=first.grid,
        kwargs=kwargs,
        function_type=kind,
        outputs=len(sink_blocks),
        as_memory=as_memory,
        neighbours=first.knows_neighbours,
        return_result=return_result,
    )
    lines = Lines(name_of(function), first.source, lambda: first.grid)
    if verbose:
        lines(CellStarted(first.cell, "serial"))
    event = execute(job, first.cell, "serial", lambda call: call())
    if isinstance(event, CellFailed):
        raise event.error
    if verbose:
        lines(event)
    return event.value if return_result else sinks
