"""Cells on their way to workers, and events on their way back. Touches threads."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import Any

from gpublocks.geometry import Cell

__all__ = ["Events", "Feed"]


class Feed:
    """Hands out cells to many threads, each cell to one of them.

    Parameters
    ----------
    cells : iterable of Cell
        Never more than one ahead is taken from it.
    end : int
        The number after that of the last cell, if they come in order.

    Attributes
    ----------
    stopped : bool
        Whether no more cells are handed out.
    left : int
        About how many cells there still are.
    """

    def __init__(self, cells: Iterable[Cell], end: int) -> None:
        self.stopped = False
        self.left = end
        self._end = end
        self._cells: Iterator[Cell] = iter(cells)
        self._returned: deque[Cell] = deque()
        self._held: dict[int, Cell] = {}
        self._lock = threading.Lock()

    def next(self) -> Cell | None:
        """Return a cell that came back, else a new one, else one that another thread holds."""
        with self._lock:
            if self.stopped:
                return None
            if self._returned:
                return self._returned.popleft()
            cell = next(self._cells, None)
            self.left = 0 if cell is None else self._end - cell.number - 1
            if cell is None and self._held:
                cell = self._held.pop(next(iter(self._held)))
            return cell

    def hold(self, cell: Cell) -> None:
        """Offer a cell that the caller took and will do later, if nobody else has time first."""
        with self._lock:
            self._held[cell.number] = cell

    def claim(self, cell: Cell) -> bool:
        """Take a cell that was held; return False if somebody else has taken it."""
        with self._lock:
            return not self.stopped and self._held.pop(cell.number, None) is not None

    def give_back(self, cells: Iterable[Cell]) -> None:
        """Put cells in front of all others, in their order."""
        with self._lock:
            self._returned.extendleft(reversed(list(cells)))


class Events:
    """A bounded queue from many members to one consumer, who notices when all have left.

    Members join in their own threads, so that nobody waits for one that was never begun.

    Parameters
    ----------
    limit : int
        How many batches may wait.
    awaited : int
        How many members will join.
    """

    def __init__(self, limit: int, awaited: int) -> None:
        self._limit = limit
        self._awaited = awaited
        self._members: dict[Any, int] = {}
        self._batches: deque[list[Any]] = deque()
        self._closed = False
        self._condition = threading.Condition()

    @property
    def members(self) -> tuple[Any, ...]:
        """Those that have not left."""
        with self._condition:
            return tuple(self._members)

    def join(self, member: Any) -> bool:
        """Add a member, which works in this thread; return False if it comes too late."""
        with self._condition:
            if not self._closed:
                self._awaited -= 1
                self._members[member] = threading.get_ident()
            return not self._closed

    def put(self, batch: list[Any], *, wait: bool = True) -> None:
        """Add events; wait while too many are there, unless the queue is closed."""
        with self._condition:
            while wait and len(self._batches) >= self._limit and not self._closed:
                self._condition.wait()
            self._batches.append(batch)
            self._condition.notify_all()

    def take(self) -> list[Any]:
        """Return the next events, waiting for them; none when there are no members any more."""
        with self._condition:
            while not self._batches and (self._members or (self._awaited and not self._closed)):
                self._condition.wait()
            if not self._batches:
                return []
            batch = self._batches.popleft()
            self._condition.notify_all()
            return batch

    def leave(self, member: Any) -> None:
        """Remove a member."""
        with self._condition:
            self._members.pop(member, None)
            self._condition.notify_all()

    def close(self) -> None:
        """Let nobody join any more, or wait to put events."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def left(self, seconds: float) -> bool:
        """Wait until all members have left, for at most so long; return whether they have.

        A member does not wait: it would wait for itself.
        """
        deadline = monotonic() + seconds
        with self._condition:
            if threading.get_ident() in self._members.values():
                return True
            while self._members and (rest := deadline - monotonic()) > 0:
                self._condition.wait(rest)
            return not self._members
