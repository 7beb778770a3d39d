"""What bounds a run, and who waits for whom, by its spans. Pure."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gpublocks.spans import STEPS, Spans, Table

__all__ = ["Gap", "Group", "Verdict", "gaps", "judge"]

_SLACK_SECONDS = 2e-4
"""A wait that ends when something else does ends no later than this after it, or before: clocks of
devices are known to some 10 us, and threads take so long to wake."""
_IDLE = 0.5
"""Where even the busiest lanes have something to do for a smaller part of the time, they wait."""


class Gap(NamedTuple):
    """Time in which a lane had nothing to do.

    Attributes
    ----------
    lane : int
    start, stop : float
        Seconds since the run began.
    step : int
        Index in `STEPS` of what it waited for; -1 if nothing else ended then: for its turn; -2
        after its last span: there were no cells left.
    """

    lane: int
    start: float
    stop: float
    step: int


@dataclass(frozen=True, slots=True)
class Group:
    """Lanes that do the same steps.

    Attributes
    ----------
    lanes : tuple of str
    shares : dict of str to float
        For each of their steps, the part of their time from the first span of the run to the last
        that went into it.
    """

    lanes: tuple[str, ...]
    shares: dict[str, float]

    @property
    def busy(self) -> float:
        """Part of the time in which they did something."""
        return sum(self.shares.values())


@dataclass(frozen=True, slots=True)
class Verdict:
    """What bounds a run.

    Attributes
    ----------
    bound : str
        One of `STEPS`; ``'start'`` or ``'end'`` if most of the time was before the first step or
        after the last one; ``'wait'`` if even the busiest lanes did nothing for most of it;
        ``'nothing'`` if no cell was done.
    share : float
        The part of the time that went into it.
    groups : tuple of Group
    waits : dict of str to float
        Part of the time of lanes that compute in which they waited, by what for: a step, ``'turn'``
        where nothing tells, ``'no cells'`` at the end.
    start_seconds, end_seconds : float
        Time before the first span, and after the last one.
    """

    bound: str
    share: float
    groups: tuple[Group, ...] = ()
    waits: dict[str, float] | None = None
    start_seconds: float = 0.0
    end_seconds: float = 0.0


def judge(spans: Spans, seconds: float) -> Verdict:
    """Tell what bounds a run of so many seconds.

    Lanes that do the same steps are looked at together. The group that is busiest sets the pace,
    and within it the step that takes most of its time.
    """
    if not len(spans):
        return Verdict("nothing", 1.0, end_seconds=seconds)
    table = spans.table
    first, last = float(table.start.min()), float(table.stop.max())
    start, end = max(0.0, first), max(0.0, seconds - last)
    groups = tuple(_groups(spans.lanes, table, max(last - first, 1e-9)))
    waits = _waits(spans, table, last - first)
    told: dict[str, Any] = {
        "groups": groups,
        "waits": waits,
        "start_seconds": start,
        "end_seconds": end,
    }
    for name, part in (("start", start), ("end", end)):
        if part > _IDLE * seconds:
            return Verdict(name, part / seconds, **told)
    busiest = max(groups, key=lambda group: group.busy)
    if busiest.busy < _IDLE:
        return Verdict("wait", 1 - busiest.busy, **told)
    step = max(busiest.shares, key=lambda step: busiest.shares[step])
    return Verdict(step, busiest.shares[step], **told)


def _groups(lanes: Sequence[str], table: Table, seconds: float) -> Iterator[Group]:
    """Return lanes with the same steps together, and how much of their time each step takes."""
    kinds: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for lane in range(len(lanes)):
        kinds[tuple(np.unique(table.step[table.lane == lane]).tolist())].append(lane)
    for steps, members in kinds.items():
        shares: dict[str, float] = {}
        for step in steps:
            chosen = np.isin(table.lane, members) & (table.step == step)
            taken = float((table.stop[chosen] - table.start[chosen]).sum())
            shares[STEPS[step]] = taken / (seconds * len(members))
        yield Group(tuple([lanes[lane] for lane in members]), shares)


def _waits(spans: Spans, table: Table, seconds: float) -> dict[str, float]:
    compute = STEPS.index("compute")
    computing = np.unique(table.lane[table.step == compute])
    waited: defaultdict[str, float] = defaultdict(float)
    names = {-1: "turn", -2: "no cells", **dict(enumerate(STEPS))}
    for gap in gaps(spans):
        if gap.lane in computing:
            waited[names[gap.step]] += gap.stop - gap.start
    total = max(seconds, 1e-9) * max(1, len(computing))
    return {name: part / total for name, part in waited.items()}


def gaps(spans: Spans) -> Iterator[Gap]:
    """Yield the times in which lanes did nothing, from the first span of the run to the last.

    A lane waits for what ends when it goes on: an earlier step of the cell that it goes on with,
    or a later step of another cell in the same place, which makes room.
    """
    table = spans.table
    if not len(spans):
        return
    first, last = float(table.start.min()), float(table.stop.max())
    places = [spans.workers.index(worker) for worker in spans.workers]
    ends = _Ends(table, places)
    for lane in range(len(spans.lanes)):
        own = np.flatnonzero(table.lane == lane)
        own = own[np.argsort(table.start[own], kind="stable")]
        free = first
        for n in own.tolist():
            start = float(table.start[n])
            if start - free > _SLACK_SECONDS:
                yield Gap(lane, free, start, ends.step_before(n, free, places[lane]))
            free = max(free, float(table.stop[n]))
        if last - free > _SLACK_SECONDS:
            yield Gap(lane, free, last, -2)


class _Ends:
    """When spans end, in order, to look up what ended last before a moment."""

    def __init__(self, table: Table, places: Sequence[int]) -> None:
        self._table = table
        self._order = np.argsort(table.stop, kind="stable")
        self._stops = table.stop[self._order]
        self._places: npt.NDArray[np.int64] = np.array(places)[table.lane]

    def step_before(self, n: int, free: float, place: int) -> int:
        """Return the step whose end let span `n` begin, after its lane had been free; else -1."""
        table = self._table
        start = float(table.start[n])
        earliest = max(free, start - _SLACK_SECONDS)
        lo, hi = np.searchsorted(self._stops, [earliest, start + _SLACK_SECONDS])
        found = self._order[lo:hi][::-1]
        found = found[self._places[found] == place]
        same = found[(table.cell[found] == table.cell[n]) & (table.step[found] < table.step[n])]
        later = found[(table.cell[found] != table.cell[n]) & (table.step[found] > table.step[n])]
        for candidates in (same, later):
            if len(candidates):
                return int(table.step[candidates[0]])
        return -1
