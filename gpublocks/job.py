"""What to do with any cell: load, compute, store. Touches sources, sinks and the function only."""

import copy
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from math import prod
from time import perf_counter
from typing import Any, Literal

import numpy as np

from gpublocks.arrays import as_array, to_host
from gpublocks.blocks import Block, Slice
from gpublocks.contracts import (
    Array,
    CellDone,
    CellFailed,
    DType,
    Order,
    Reach,
    Sink,
    Source,
    Span,
    Stage,
)
from gpublocks.dividing import common_unit, halves, pieces
from gpublocks.errors import BlockError, WorkerDiedError, text_of
from gpublocks.geometry import Cell, Region
from gpublocks.grid import Grid
from gpublocks.io.staged import Staged
from gpublocks.slots import copied

__all__ = ["Buffers", "CallOn", "FunctionType", "Job", "execute", "place", "spans_of"]

FunctionType = Literal["array", "source", "block"]

CallOn = Callable[[Callable[[], Any]], Any]
"""Calls a function on a device."""

_FREELY = nullcontext()


@dataclass(frozen=True, slots=True)
class Job:
    """Sources, function, sinks and grid: all that is needed to do any of the cells.

    Parameters
    ----------
    function : callable
    sources, sinks : tuple
        Open sources and sinks.
    grid : Grid
    kwargs : mapping
        Keyword arguments of the function, copied for each call.
    function_type : {'array', 'source', 'block'}
        What the function gets: arrays; read-only blocks of the sources; or blocks of sources and
        sinks, into which it writes itself.
    outputs : int
        Number of results that are stored; one for each sink.
    as_memory : bool
        Whether blocks are loaded into memory before the call.
    neighbours : bool
        Whether blocks know their neighbours.
    return_result : bool
        Whether events carry what the function returned.
    keep_outputs : bool
        Whether events carry the cropped results, and nothing is stored.
    casting : str or None
        A casting rule of `numpy.can_cast`; None casts like assignment does, but refuses values
        that an integer sink cannot hold.
    divisible : bool
        Whether the parts of a cell, each with its overlap, have the voxels of the whole.
    recorded : bool
        Whether events are to tell when each step was done (`gpublocks.contracts.Span`).
    """

    function: Callable[..., Any]
    sources: tuple[Source, ...]
    sinks: tuple[Sink, ...]
    grid: Grid
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    function_type: FunctionType = "array"
    outputs: int = 0
    as_memory: bool = False
    neighbours: bool = False
    return_result: bool = False
    keep_outputs: bool = False
    casting: str | None = None
    divisible: bool = False
    recorded: bool = False

    def load(self, cell: Cell, buffers: "Buffers | None" = None) -> list[Any]:
        """Return the arguments of the function for a cell: arrays or blocks.

        Parameters
        ----------
        buffers : Buffers, optional
            Memory for the arrays, from the cell before.
        """
        if self.function_type == "array":
            regions = [cell.read_in(source.shape) for source in self.sources]
            if buffers is None:
                return [s.read(r) for s, r in zip(self.sources, regions, strict=True)]
            return [
                source.read(region, out=buffers.array(n, region.shape, source.dtype, source.order))
                for n, (source, region) in enumerate(zip(self.sources, regions, strict=True))
            ]
        blocks = [self._block(source, cell, writable=False) for source in self.sources]
        if self.function_type == "block":
            blocks += [self._block(sink, cell, writable=True) for sink in self.sinks]
        return blocks

    def reads(self, cell: Cell, size: int) -> list[list[Region]]:
        """Return for each source to be copied the regions, of some `size` bytes, of a cell."""
        return [
            pieces(
                cell.read_in(s.shape),
                max(1, size // s.dtype.itemsize),
                s.order,
                getattr(s, "read_unit", s.unit),
            )
            for s in copied(self.sources)
        ]

    def writes(self, cell: Cell, size: int) -> list[list[Region]]:
        """Return for each sink to be copied to the regions, of some `size` bytes, of a cell."""
        return [
            [cell.valid_in(s.shape)]
            if s.single_writer
            else pieces(cell.valid_in(s.shape), max(1, size // s.dtype.itemsize), s.order, s.unit)
            for s in copied(self.sinks)
        ]

    def halves(self, cell: Cell) -> tuple[Cell, Cell] | None:
        """Return two cells that together have the voxels of this one; None if there are none."""
        if not self.divisible or self.keep_outputs or self.return_result:
            return None
        grid = self.grid
        context = {a: (s.overlap + 1) // 2 for a, s in zip(grid.axes, grid.splits, strict=True)}
        unit = common_unit([sink.unit for sink in self.sinks], len(grid.shape))
        return halves(cell, context, unit)

    def compute(
        self, cell: Cell, arguments: list[Any], call: CallOn
    ) -> tuple[Any, tuple[Array, ...]]:
        """Return the function's value and the valid part of each result that is to be stored.

        Raises
        ------
        BlockError
            If a result cannot be stored: no array, of a wrong shape, or out of range.
        """
        value = call(lambda: self.function(*arguments, **_fresh(self.kwargs)))
        if self.function_type == "block":
            staged = [
                block.array[cell.crop(block.ndim)]
                for block, sink in zip(arguments[len(self.sources) :], self.sinks, strict=True)
                if self._in_memory(sink, writable=True)
            ]
            return value, tuple(staged)
        if not self.outputs:
            return value, ()
        results = value if isinstance(value, tuple | list) else (value,)
        if len(results) < self.outputs:
            raise BlockError(f"returned {len(results)} arrays, but there are {self.outputs} sinks")
        outputs = tuple([_valid(cell, result) for result in results[: self.outputs]])
        if self.sinks:
            self.admit(cell, outputs)
        return value, outputs

    def admit(self, cell: Cell, outputs: tuple[Array, ...]) -> None:
        """Raise `BlockError` if a sink cannot hold its output: its shape or its values."""
        for sink, output in zip(self.sinks, outputs, strict=True):
            expected = list(sink.shape)
            for axis, (start, stop) in zip(cell.axes, cell.valid, strict=True):
                expected[axis] = stop - start
            if output.shape != tuple(expected):
                raise BlockError(
                    f"returned an array with a valid region of shape {output.shape}, "
                    f"expected {tuple(expected)}"
                )
            _check_cast(output, sink.dtype, self.casting)

    def store(self, cell: Cell, outputs: tuple[Array, ...]) -> int:
        """Write the outputs of `compute` and return the number of bytes written."""
        sinks = self.sinks
        if self.function_type == "block":
            sinks = tuple(sink for sink in sinks if self._in_memory(sink, writable=True))
        with np.errstate(invalid="ignore") if self.casting == "unsafe" else nullcontext():
            for sink, output in zip(sinks, outputs, strict=True):
                sink.write(cell.valid_in(sink.shape), output)
        return sum(output.nbytes for output in outputs)

    def _block(self, source: Source, cell: Cell, *, writable: bool) -> Block:
        block = Block(source, self.grid, cell.number, neighbours=self.neighbours, writable=writable)
        return block.as_memory() if self._in_memory(source, writable=writable) else block

    def _in_memory(self, source: Source, *, writable: bool) -> bool:
        """Tell whether a block is a copy in memory, of which the valid region is written back.

        Sinks that store several voxels as one piece, have one writer, or lie in this process's
        memory are never handed out themselves: a block function may write beyond its valid region,
        which other blocks own.
        """
        if self.as_memory:
            return True
        if not writable:
            return False
        alone = getattr(source, "single_writer", False)
        return alone or source.reach == Reach.PROCESS or any(unit > 1 for unit in source.unit)


class Buffers:
    """Memory of one worker for the arrays that it loads, used again for the next cell.

    An allocator that gives memory back to the system between two cells has every page of it
    cleared anew, which takes longer than a cheap function. Memory to which anything refers when
    the next cell begins is left alone: a function may keep its arguments.
    """

    def __init__(self) -> None:
        self._memory: list[Array] = []
        self._idle: list[int] = []

    def array(self, n: int, shape: tuple[int, ...], dtype: DType, order: Order) -> Array:
        """Return an array for the source number `n`, its voxels not set."""
        nbytes = prod(shape) * dtype.itemsize
        while n >= len(self._memory):
            self._memory.append(np.empty(0, np.uint8))
            self._idle.append(0)
        if self._memory[n].nbytes < nbytes or sys.getrefcount(self._memory[n]) > self._idle[n]:
            self._memory[n] = np.empty(nbytes, np.uint8)
            self._idle[n] = sys.getrefcount(self._memory[n])
        return np.ndarray(shape, dtype, self._memory[n], order=order)


def place(job: Job, cell: Cell) -> str:
    """Return which block a cell is, as in ``'block 3/10<(0, 0, 3)/(1, 1, 10)>'``."""
    return f"block {cell.number}/{len(job.grid)}<{cell.index}/{job.grid.counts}>"


def execute(
    job: Job,
    cell: Cell,
    worker: str,
    call: CallOn,
    storing: AbstractContextManager[Any] = _FREELY,
    buffers: Buffers | None = None,
) -> CellDone | CellFailed:
    """Take a cell through its three stages, one after the other.

    Parameters
    ----------
    worker : str
        Who does it, for the event.
    call : callable
        Calls a function of no arguments where it is to be computed.
    storing : context manager
        Held while the cell is stored.
    buffers : Buffers, optional
        Memory of this worker for what is loaded.

    Returns
    -------
    CellDone or CellFailed
        The latter for everything that a function raises but KeyboardInterrupt. Its error keeps
        its type and has a note that names block and stage.
    """
    stage: Stage = "load"
    start = perf_counter()
    try:
        arguments = job.load(cell, buffers)
        loaded = perf_counter()
        stage = "compute"
        value, outputs = job.compute(cell, arguments, call)
        outputs = tuple(map(to_host, outputs))
        computed = free = perf_counter()
        stage = "store"
        written = 0
        if job.keep_outputs:
            outputs = tuple(np.array(output) for output in outputs)
        else:
            with storing:
                # Others may have been storing until then.
                free = perf_counter()
                written = job.store(cell, outputs)
            outputs = ()
        kept = _own(value) if job.return_result else None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return CellFailed(cell, worker, stage, explained(error, job, cell, stage))
    seconds = (loaded - start, computed - loaded, perf_counter() - free)
    read = sum(array.size * array.dtype.itemsize for array in arguments[: len(job.sources)])
    spans: tuple[Span, ...] = ()
    if job.recorded and storing is not _FREELY:
        spans = (
            Span("read", worker, start, seconds[0], read),
            Span("compute", worker, loaded, seconds[1]),
            Span("write", worker, free, seconds[2], written),
        )
    return CellDone(cell, worker, start, seconds, read, written, kept, outputs, spans=spans)


def spans_of(done: CellDone) -> tuple[Span, ...]:
    """Return when each step of a cell was done: as it tells, or one after the other."""
    if done.spans:
        return done.spans
    load, compute, store = done.seconds
    computed = done.started + load
    return (
        Span("read", done.worker, done.started, load, done.read_bytes),
        Span("compute", done.worker, computed, compute),
        Span("write", done.worker, computed + compute, store, done.written_bytes),
    )


def explained(error: BaseException, job: Job, cell: Cell, stage: Stage) -> BaseException:
    """Return an error that says which block failed in which stage, of the same type if it may be.

    What would end the interpreter instead of the run (SystemExit), and an error that cannot be
    told more, becomes a `BlockError`.
    """
    where = place(job, cell)
    if type(error) in (BlockError, WorkerDiedError) and error.block is None:  # type: ignore[attr-defined]
        message = f"{where}: function {error}" if stage == "compute" else f"{where}: {error}"
        return type(error)(message, cell.number, stage).with_traceback(error.__traceback__)
    if isinstance(error, Exception):
        with suppress(Exception):
            error.add_note(f"{where} failed in stage '{stage}'")
            return error
    text = f"{type(error).__name__}: {text_of(error)}" if text_of(error) else type(error).__name__
    told = BlockError(f"{where}: function raised {text}", cell.number, stage)
    return told.with_traceback(error.__traceback__)


def _valid(cell: Cell, result: Any) -> Array:
    """Return the valid region of a result that has the block's lengths along the split axes."""
    array = _as_array(result)
    expected = list(array.shape)
    for axis, (lo, hi) in zip(cell.axes, cell.read, strict=True):
        expected[axis : axis + 1] = [hi - lo]
    if array.shape != tuple(expected):
        raise BlockError(f"returned shape {array.shape}, expected {tuple(expected)}")
    valid: Array = array[cell.crop(array.ndim)]
    return valid


def _as_array(result: Any) -> Array:
    if isinstance(result, np.ma.MaskedArray):
        raise BlockError("returned a MaskedArray, expected an array; convert it with .filled()")
    array: Array | None = as_array(result)
    if array is not None:
        return array
    if isinstance(result, Source):
        return np.asarray(result)
    kind = "None" if result is None else f"a {type(result).__name__}"
    raise BlockError(f"returned {kind}, expected an array; convert it with numpy.asarray")


def _check_cast(array: Array, dtype: DType, casting: str | None) -> None:
    """Refuse a result that a sink of another type cannot hold."""
    if array.dtype == dtype or casting == "unsafe" or np.can_cast(array.dtype, dtype, "safe"):
        return
    if casting is not None:
        if not np.can_cast(array.dtype, dtype, casting):  # type: ignore[arg-type]
            raise BlockError(
                f"returned {array.dtype}, which casting='{casting}' does not turn into {dtype}"
            )
        return
    if array.dtype.kind == "c" and dtype.kind != "c":
        raise BlockError(
            f"returned {array.dtype}, but casting to {dtype} drops the imaginary part; "
            "return .real, or pass casting='unsafe'"
        )
    if dtype.kind in "iu" and array.dtype.kind in "iuf" and array.size:
        limits = np.iinfo(dtype)
        low, high = to_host(array.min()), to_host(array.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise BlockError(
                f"returned NaN or infinity, which {dtype} cannot hold; "
                "use another dtype= or casting='unsafe'"
            )
        if int(low) < limits.min or int(high) > limits.max:
            raise BlockError(
                f"returned values from {low} to {high}, but {dtype} holds {limits.min} to "
                f"{limits.max}; use another dtype= or casting='unsafe'"
            )


def _fresh(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _fresh_value(value) for name, value in kwargs.items()}


def _fresh_value(value: Any) -> Any:
    """Return a copy of a keyword argument; modules, locks and the like cannot be copied."""
    try:
        return copy.deepcopy(value)
    except Exception:
        return value


def _own(value: Any) -> Any:
    """Return what a function returned with voxels of its own, lest the next call change them."""
    if isinstance(value, np.ndarray):
        return value.copy("K")
    if isinstance(value, Slice):
        return value.as_memory() if isinstance(value.base, Staged) else value
    if type(value) is tuple or type(value) is list:
        return type(value)(map(_own, value))
    if type(value) is dict:
        return {key: _own(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(map(_own, value))
    return value
