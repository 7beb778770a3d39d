"""Telling a person how a run goes: the documented lines, progress bars. Touches standard output."""

import sys
import warnings
from collections.abc import Callable
from time import perf_counter
from typing import Any

from gpublocks.blocks import Block
from gpublocks.contracts import CellDone, CellStarted, Event, OutputWritten, Source
from gpublocks.geometry import Cell
from gpublocks.grid import Grid

__all__ = ["Lines", "Observer", "Progress", "elapsed", "forward_output"]

Observer = Callable[[Event], None]
"""Called with each event of a run, in the thread that iterates over it."""


def elapsed(seconds: float) -> str:
    """Return a time as text.

    Examples
    --------
    >>> elapsed(3725.25)
    '1:02:05.250'
    """
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours}:{minutes:02}:{rest // 1000:02}.{rest % 1000:03}"


class Lines:
    """The documented lines of ``verbose=True``.

    Parameters
    ----------
    name : str
        Name of the function.
    source : Source
        The first source.
    grid : callable
        Returns the grid, which may change after the first cell.
    """

    def __init__(self, name: str, source: Source, grid: Callable[[], Grid]) -> None:
        self._name = name
        self._source = source
        self._grid = grid
        self._began = perf_counter()

    def begin(self, count: int) -> None:
        """Print the first line."""
        self._began = perf_counter()
        print(f"Processing {count} blocks with function {self._name!r}.", flush=True)

    def __call__(self, event: Event) -> None:
        """Print the lines of a block."""
        if isinstance(event, CellStarted):
            print(f"Processing block {self._info(event.cell)}", flush=True)
        elif isinstance(event, CellDone):
            time = elapsed(sum(event.seconds))
            print(f"Processing block {self._info(event.cell)}: elapsed time: {time}", flush=True)

    def end(self, count: int) -> None:
        """Print the last line."""
        time = elapsed(perf_counter() - self._began)
        title = f"Processed {count} blocks with function {self._name!r}"
        print(f"{title}: elapsed time: {time}", flush=True)

    def _info(self, cell: Cell) -> str:
        return Block(self._source, self._grid(), cell.number).info()


class Progress:
    """A tqdm bar over the cells, for terminals and notebooks."""

    def __init__(self, total: int, name: str) -> None:
        from tqdm import TqdmWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TqdmWarning)
            from tqdm.auto import tqdm

            self._bar: Any = tqdm(total=total, desc=name, unit="block")

    def __call__(self, event: Event) -> None:
        """Count a cell that is done."""
        if isinstance(event, CellDone):
            self._bar.update()

    def expect(self, total: int) -> None:
        """Take another number of cells."""
        self._bar.total = total

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


def forward_output(event: Event) -> None:
    """Write what a worker process printed to this process's streams."""
    if isinstance(event, OutputWritten):
        stream = sys.stdout if event.stream == "stdout" else sys.stderr
        if stream is not None:
            stream.write(event.text)
            stream.flush()
