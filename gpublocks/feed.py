"""Hands out cells to many threads, and takes back what a device could not do. Touches a lock."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from gpublocks.concurrency import Concurrency
from gpublocks.contracts import CellDone
from gpublocks.geometry import Cell
from gpublocks.running import EventRun

__all__ = ["Feed", "Work"]


@dataclass(slots=True, eq=False)
class _Whole:
    """A cell of the grid, of which parts may be under way."""

    cell: Cell
    begun: bool = False
    refused: bool = False
    parts: int = 1
    done: list[CellDone] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Work:
    """A cell, or a part of one, to be done.

    Parameters
    ----------
    cell : Cell
        What is read and written.
    whole : object
        The cell of the grid that it is, or is a part of.
    tries : int
        How often a device had no memory for it.
    halvings : int
        How often it was halved.
    losses : int
        How many devices were lost while they computed it.
    """

    cell: Cell
    whole: _Whole
    tries: int = 0
    halvings: int = 0
    losses: int = 0


class Feed:
    """One queue of cells for everybody who can do them.

    Whoever finds it empty waits while cells are under way elsewhere, since they may come back.

    Parameters
    ----------
    cells : iterable of Cell
    run : EventRun
        The run, which may be cancelled.
    concurrency : Concurrency
    """

    def __init__(self, cells: Iterable[Cell], run: EventRun, concurrency: Concurrency) -> None:
        self._cells = iter(cells)
        self._run = run
        self._condition: Any = concurrency.condition()
        self._returned: deque[Work] = deque()
        self._under_way = 0
        self._stopped = False

    @property
    def over(self) -> bool:
        """Whether nothing more is to be done, not even what is under way."""
        return self._stopped or self._run.cancelled

    @property
    def returned(self) -> bool:
        """Whether something was put back and not taken again."""
        return bool(self._returned)

    def take(self) -> Work | None:
        """Return the next cell, or None when all are done or none is to be done any more."""
        with self._condition:
            while not self.over:
                if self._returned:
                    self._under_way += 1
                    return self._returned.popleft()
                cell = next(self._cells, None)
                if cell is not None:
                    self._under_way += 1
                    return Work(cell, _Whole(cell))
                if not self._under_way:
                    return None
                self._condition.wait()
            return None

    def begin(self, work: Work) -> bool:
        """Tell whether this is the first time that anybody begins with the whole cell."""
        with self._condition:
            first = not work.whole.begun
            work.whole.begun = True
            return first

    def done(self, work: Work, event: CellDone) -> CellDone | None:
        """Note that something is done; return the event of the whole cell if that is complete."""
        with self._condition:
            self._leave()
            whole = work.whole
            whole.done.append(event)
            whole.parts -= 1
            return None if whole.parts else _together(whole)

    def give_back(self, work: Work, *instead: Work) -> None:
        """Put something back to be done next, as other works, or not at all if there are none."""
        with self._condition:
            work.whole.parts += len(instead) - 1
            self._returned.extendleft(reversed(instead))
            self._leave()

    def refuse(self, work: Work) -> bool:
        """Give up the whole cell; tell whether this is the first time."""
        with self._condition:
            first = not work.whole.refused
            work.whole.refused = True
            self._leave()
            return first

    def stop(self) -> None:
        """Hand out nothing more, not even to those who wait for the lock already."""
        self._stopped = True
        with self._condition:
            self._condition.notify_all()

    def _leave(self) -> None:
        self._under_way -= 1
        self._condition.notify_all()


def _together(whole: _Whole) -> CellDone:
    """Return one event for all parts of a cell."""
    if len(whole.done) == 1:
        return replace(whole.done[0], cell=whole.cell)
    last = whole.done[-1]
    load, compute, store = (
        sum(times) for times in zip(*[d.seconds for d in whole.done], strict=True)
    )
    return replace(
        last,
        cell=whole.cell,
        started=min(part.started for part in whole.done),
        seconds=(load, compute, store),
        read_bytes=sum(part.read_bytes for part in whole.done),
        written_bytes=sum(part.written_bytes for part in whole.done),
        peak_bytes=max((part.peak_bytes or 0 for part in whole.done), default=None),
        spans=tuple([span for part in whole.done for span in part.spans]),
    )
