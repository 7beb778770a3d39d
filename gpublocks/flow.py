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

    Attributes
    ----------
    stopped : bool
        Whether no more cells are handed out.
    """

    def __init__(self, cells: Iterable[Cell]) -> None:
        self.stopped = False
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

    Parameters
    ----------
    limit : int
        How many batches may wait.
    members : iterable of hashable
        Who puts events.
    """

    def __init__(self, limit: int, members: Iterable[Any]) -> None:
        self._limit = limit
        self._members = set(members)
        self._batches: deque[list[Any]] = deque()
        self._closed = False
        self._condition = threading.Condition()

    @property
    def members(self) -> tuple[Any, ...]:
        """Those that have not left."""
        with self._condition:
            return tuple(self._members)

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
            while not self._batches and self._members:
                self._condition.wait()
            if not self._batches:
                return []
            batch = self._batches.popleft()
            self._condition.notify_all()
            return batch

    def leave(self, member: Any) -> None:
        """Remove a member."""
        with self._condition:
            self._members.discard(member)
            self._condition.notify_all()

    def close(self) -> None:
        """Let nobody wait any more to put events."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def left(self, seconds: float) -> bool:
        """Wait until all members have left, for at most so long; return whether they have."""
        deadline = monotonic() + seconds
        with self._condition:
            while self._members and (rest := deadline - monotonic()) > 0:
                self._condition.wait(rest)
            return not self._members
