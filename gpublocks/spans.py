"""When each step of each cell was done: columns that grow. Pure."""

from array import array
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from gpublocks.contracts import Span, Step

__all__ = ["DOING", "STEPS", "Spans", "Table"]

STEPS: tuple[Step, ...] = get_args(Step)
"""In their order."""
DOING = {
    "read": "reading",
    "copy in": "copying in",
    "compute": "computing",
    "copy out": "copying out",
    "write": "writing",
}
"""What they are called in sentences and legends."""

_KINDS = {"cell": "q", "step": "B", "lane": "H", "start": "d", "stop": "d", "nbytes": "q"}


class Table(NamedTuple):
    """Spans as columns.

    Attributes
    ----------
    cell : ndarray of int64
        Number of the cell.
    step : ndarray of uint8
        Index in `STEPS`.
    lane : ndarray of uint16
        Index in the names of the lanes.
    start, stop : ndarray of float64
        Seconds since the run began.
    nbytes : ndarray of int64
        Bytes that were moved.
    """

    cell: npt.NDArray[np.int64]
    step: npt.NDArray[np.uint8]
    lane: npt.NDArray[np.uint16]
    start: npt.NDArray[np.float64]
    stop: npt.NDArray[np.float64]
    nbytes: npt.NDArray[np.int64]


class Spans:
    """Spans of all cells of a run, 35 bytes each.

    Attributes
    ----------
    lanes : list of str
        Names of the lanes, in the order in which they were first seen.
    workers : list of str
        To which worker or device each of them belongs.
    """

    def __init__(self) -> None:
        self.lanes: list[str] = []
        self.workers: list[str] = []
        self._numbers: dict[str, int] = {}
        self._columns: dict[str, array[Any]] = {name: array(kind) for name, kind in _KINDS.items()}

    def __len__(self) -> int:
        return len(self._columns["cell"])

    def add(self, cell: int, worker: str, spans: Iterable[Span], begun: float) -> None:
        """Add spans of a cell that a worker did; times are counted from `begun` on."""
        columns = self._columns
        for span in spans:
            number = self._numbers.get(span.lane)
            if number is None:
                number = self._numbers[span.lane] = len(self.lanes)
                self.lanes.append(span.lane)
                self.workers.append(worker)
            start = span.start - begun
            columns["cell"].append(cell)
            columns["step"].append(STEPS.index(span.step))
            columns["lane"].append(number)
            columns["start"].append(start)
            columns["stop"].append(start + span.seconds)
            columns["nbytes"].append(span.nbytes)

    @property
    def table(self) -> Table:
        """All spans as columns."""
        return Table(*[np.array(column) for column in self._columns.values()])

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, for JSON."""
        columns = {name: column.tolist() for name, column in self._columns.items()}
        return {"lanes": self.lanes, "workers": self.workers, "steps": list(STEPS), **columns}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Spans":
        """Return what `to_dict` made lists of.

        Raises
        ------
        KeyError, TypeError, ValueError, OverflowError
            If these are others.
        """
        spans = cls()
        spans.lanes = [str(lane) for lane in values["lanes"]]
        spans.workers = [str(worker) for worker in values["workers"]]
        spans._numbers = {lane: number for number, lane in enumerate(spans.lanes)}
        spans._columns = {name: array(kind, values[name]) for name, kind in _KINDS.items()}
        table = spans.table
        if len({len(column) for column in spans._columns.values()}) > 1 or len(spans.lanes) != len(
            spans.workers
        ):
            raise ValueError("columns of different lengths")
        if not (np.isfinite(table.start).all() and np.isfinite(table.stop).all()):
            raise ValueError("times that are no numbers")
        if len(spans) and (table.lane.max() >= len(spans.lanes) or table.step.max() >= len(STEPS)):
            raise ValueError("spans of unknown lanes or steps")
        return spans
