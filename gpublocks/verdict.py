"""What bounds a run, by its spans. Pure."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpublocks.gaps import NO_CELLS, TURN, Gaps, gaps_of
from gpublocks.spans import STEPS, Spans, Table

__all__ = ["Group", "Verdict", "judge"]

_IDLE = 0.5
"""Where even the busiest lanes have something to do for a smaller part of the time, they wait."""


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
        after the last one; ``'wait'`` if even the busiest lanes mostly did nothing;
        ``'nothing'`` if no cell was done.
    share : float
        The part of the time that went into it, or into waiting for it.
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
    and within it the step that takes most of its time; if it is mostly idle, what lanes that
    compute wait for, if that is a step: only one of them may write, say.
    """
    if not len(spans):
        return Verdict("nothing", 1.0, end_seconds=seconds)
    table = spans.table
    first, last = float(table.start.min()), float(table.stop.max())
    start, end = max(0.0, first), max(0.0, seconds - last)
    groups = tuple(_groups(spans.lanes, table, max(last - first, 1e-9)))
    gaps = gaps_of(spans)
    waits = _waits(gaps, table, last - first)
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
    step = max(busiest.shares, key=lambda step: busiest.shares[step])
    idle = 1 - busiest.busy
    if idle > max(busiest.shares[step], 1 - _IDLE):
        awaited = max(waits, key=lambda name: waits[name], default="turn")
        if awaited not in STEPS or waits[awaited] < _IDLE * idle:
            return Verdict("wait", idle, **told)
        step = awaited
        busiest = max(groups, key=lambda group: ("compute" in group.shares, group.busy))
    lanes = [spans.lanes.index(lane) for lane in busiest.lanes]
    waited = _waited(gaps, lanes, STEPS.index(step)) / (max(last - first, 1e-9) * len(lanes))
    return Verdict(step, busiest.shares.get(step, 0.0) + waited, **told)


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
        yield Group(tuple(sorted([lanes[lane] for lane in members], key=_natural)), shares)


def _natural(name: str) -> tuple[int, str]:
    """Sort names with numbers by these: the longer one has the greater number."""
    return len(name), name


def _waits(gaps: Gaps, table: Table, seconds: float) -> dict[str, float]:
    """Return which part of their time lanes that compute waited for what."""
    computing = np.unique(table.lane[table.step == STEPS.index("compute")])
    names = {TURN: "turn", NO_CELLS: "no cells", **dict(enumerate(STEPS))}
    total = max(seconds, 1e-9) * max(1, len(computing))
    waited = {name: _waited(gaps, computing, step) for step, name in names.items()}
    return {name: part / total for name, part in waited.items() if part}


def _waited(gaps: Gaps, lanes: Any, step: int) -> float:
    """Return how long lanes waited for a step, all together."""
    return float((gaps.stop - gaps.start)[np.isin(gaps.lane, lanes) & (gaps.step == step)].sum())
