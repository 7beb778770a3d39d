"""When lanes have nothing to do, and what they wait for, by the spans of a run. Pure."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gpublocks.spans import STEPS, Spans, Table

__all__ = ["NO_CELLS", "TURN", "Gaps", "gaps_of"]

TURN = -1
"""What a lane waits for where nothing else ended when it went on."""
NO_CELLS = -2
"""What it waits for after its last span."""
_SLACK_SECONDS = 2e-4
"""A wait that ends when something else does ends no later than this after it, or before: clocks of
devices are known to some 10 us, and threads take so long to wake."""
_SLACK = 0.5
"""Part of a wait by which it may end later, since it takes a message to another process."""

Ints = npt.NDArray[np.int64]
Times = npt.NDArray[np.float64]


class Gaps(NamedTuple):
    """Times in which lanes had nothing to do, as columns, lane by lane.

    Attributes
    ----------
    lane : ndarray of int64
    start, stop : ndarray of float64
        Seconds since the run began.
    step : ndarray of int64
        Index in `STEPS` of what was waited for, `TURN` or `NO_CELLS`.
    """

    lane: Ints
    start: Times
    stop: Times
    step: Ints


def gaps_of(spans: Spans) -> Gaps:
    """Return the times in which lanes did nothing, from the first span of the run to the last.

    A lane waits for what ends when it goes on: an earlier step of the cell that it goes on with;
    a later step of another cell in the same place, which makes room; the writing of another cell,
    where only one may write.
    """
    table = spans.table
    if not len(spans):
        return Gaps(np.empty(0, int), np.empty(0), np.empty(0), np.empty(0, int))
    first, last = float(table.start.min()), float(table.stop.max())
    found = []
    for lane in range(len(spans.lanes)):
        own = np.flatnonzero(table.lane == lane)
        own = own[np.argsort(table.start[own], kind="stable")]
        free = np.concatenate([[first], np.maximum.accumulate(table.stop[own])])
        next_start = np.concatenate([table.start[own], [last]])
        next_span = np.concatenate([own, [-1]])
        long = next_start - free > _SLACK_SECONDS
        found.append((np.full(long.sum(), lane), free[long], next_start[long], next_span[long]))
    lanes, starts, stops, spans_after = [
        np.concatenate(column) for column in zip(*found, strict=True)
    ]
    steps = np.full(len(lanes), NO_CELLS)
    ended = spans_after >= 0
    places = np.array([spans.workers.index(worker) for worker in spans.workers])
    steps[ended] = _awaited(table, places[table.lane], spans_after[ended], starts[ended])
    return Gaps(lanes, starts, stops, steps)


def _awaited(table: Table, places: Ints, after: Ints, free: Times) -> Ints:
    """Return the steps whose ends let spans begin, whose lanes had been free since then."""
    count, write = len(STEPS), STEPS.index("write")
    moments, steps, cells = table.start[after], table.step[after], table.cell[after]
    slack = np.maximum(_SLACK_SECONDS, _SLACK * (moments - free))
    earliest, latest = np.maximum(free, moments - slack), moments + _SLACK_SECONDS
    of_cells = _Ends(table.cell * count + table.step, table.stop)
    of_places = _Ends(places * count + table.step, table.stop)
    # What ended last, first among steps of the same cell, then among those of others.
    same, others = _Latest(earliest), _Latest(earliest)
    for step in range(count):
        last = of_cells.last(cells * count + step, latest)
        same.take(step, table.stop[last], (steps > step) & (last >= 0))
        last = of_places.last(places[after] * count + step, latest)
        another = (last >= 0) & (table.cell[last] != cells)
        others.take(step, table.stop[last], (steps < step) & another)
    writes = _Ends(table.step.astype(np.int64), table.stop)
    last = writes.last(steps.astype(np.int64), latest)
    another = (last >= 0) & (table.cell[last] != cells)
    others.take(write, table.stop[last], (steps == write) & another)
    return np.where(same.step != TURN, same.step, others.step)


class _Ends:
    """When spans end, each of which has a key."""

    def __init__(self, keys: Ints, stops: Times) -> None:
        self._keys = keys
        self._stops = np.sort(stops)
        ranks = np.empty(len(stops), int)
        ranks[np.argsort(stops, kind="stable")] = np.arange(len(stops))
        numbers = self._number(keys, ranks)
        self._order = np.argsort(numbers)
        self._numbers = numbers[self._order]

    def _number(self, keys: Ints, ranks: Ints) -> Ints:
        return keys * (len(self._stops) + 1) + ranks

    def last(self, keys: Ints, moments: Times) -> Ints:
        """Return which span of each key ended last until a moment; -1 if none did."""
        ended = np.searchsorted(self._stops, moments, side="right")
        at = np.searchsorted(self._numbers, self._number(keys, ended)) - 1
        found = self._order[np.maximum(at, 0)]
        return np.where((at >= 0) & (self._keys[found] == keys), found, -1)


class _Latest:
    """Of several steps that ended, the one that ended last, and not before some moment."""

    def __init__(self, earliest: Times) -> None:
        self.stop = np.nextafter(earliest, -np.inf)
        self.step = np.full(len(earliest), TURN)

    def take(self, step: int, stop: Times, fits: npt.NDArray[np.bool_]) -> None:
        """Look at the ends of one more step, where they fit."""
        chosen = fits & (stop > self.stop)
        self.stop[chosen] = stop[chosen]
        self.step[chosen] = step
