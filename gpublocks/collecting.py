"""What the function returned for each cell: kept, or handed on in order. Pure."""

from collections.abc import Callable, Iterable
from typing import Any

from gpublocks.geometry import Cell

__all__ = ["Take", "in_order"]

Take = Callable[[Any], Any]
"""Is called with what a function returned."""


def in_order(cells: Iterable[Cell], take: Take) -> Callable[[Cell, Any], None]:
    """Return what takes values of cells as they come, and hands them on in the order of cells.

    Values that come before their turn wait. Executors begin cells in their order, so that there
    are no more of these than a slow cell lets others overtake it.
    """
    coming = (cell.number for cell in cells)
    waiting: dict[int, Any] = {}
    turn = next(coming, None)

    def give(cell: Cell, value: Any) -> None:
        nonlocal turn
        waiting[cell.number] = value
        while turn in waiting:
            take(waiting.pop(turn))
            turn = next(coming, None)

    return give
