"""What bounds a run, by its spans. Pure."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpublocks.gaps import NO_CELLS, TURN, gaps_of
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
    computing = np.unique(table.lane[table.step == STEPS.index("compute")])
    gaps = gaps_of(spans)
    own = np.isin(gaps.lane, computing)
    names = {TURN: "turn", NO_CELLS: "no cells", **dict(enumerate(STEPS))}
    total = max(seconds, 1e-9) * max(1, len(computing))
    waited = {
        step: float((gaps.stop - gaps.start)[own & (gaps.step == step)].sum()) for step in names
    }
    return {names[step]: part / total for step, part in waited.items() if part}
