"""Sorting networks that find one rank among the voxels of a footprint. Pure.

Voxels stand in rows, along the fastest axis of their memory. A wire is a row that is read some
voxels further on, so that what is done with a row once serves for all voxels along it. Nothing is
compared twice: the columns of a box are sorted once for all positions that look at them, and so are
two, four or eight of them that lie side by side (A. Adams, Fast median filters using separable
sorting networks, ACM Transactions on Graphics 40, 2021). Lists are merged by the odd-even method of
K. E. Batcher (Sorting networks and their applications, AFIPS 1968); what the wanted rank does not
depend on is left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt

__all__ = ["COPY", "EXCHANGE", "LEAST", "MOST", "SELECT", "Column", "Network", "network"]

EXCHANGE, LEAST, MOST, SELECT, COPY = range(5)
"""What is done with rows `a` and `b`: the lesser voxels to row `c` and the greater ones to `d`; the
one or the other to `c`; to `c` the lesser of what it has and of the greater of the two; `a` to `c`.
"""

Column = tuple[int, tuple[int, ...]]
"""A number of voxels along a row, and the rows that are looked at there."""

_Wire = tuple[int, int]
"""Number of a value, and how many voxels further on it is read."""


@dataclass(frozen=True, slots=True)
class Network:
    """What is done with rows, one operation after the other.

    Attributes
    ----------
    operations : ndarray of int64, shape (n, 7)
        Of each its kind, row `a`, by how much it is shifted, row `b`, by how much it is shifted,
        and rows `c` and `d`. They are others than `a` and `b`, or `c` is `a` and `d` is `b`.
    inputs : int
        The first rows, which are not written.
    rows : int
        All rows.
    result : int
        The row that holds the wanted voxels at last.
    span : int
        How many voxels further on a row is looked at.
    """

    operations: npt.NDArray[np.int64]
    inputs: int
    rows: int
    result: int
    span: int


@cache
def network(columns: tuple[Column, ...], rank: int) -> Network:
    """Return what finds the voxel of a rank, from 0 on, among those of some columns."""
    draft = _Draft(1 + max(max(rows) for _, rows in columns))
    lists = [draft.sorted([(row, shift) for row in rows]) for shift, rows in columns]
    if len(lists) == 1:
        half = len(lists[0]) // 2
        wires = [(row, columns[0][0]) for row in columns[0][1]]
        one, other = draft.sorted(wires[:half]), draft.sorted(wires[half:])
    else:
        half = _parting(len(lists))
        one, other = draft.merged_all(lists[:half]), draft.merged_all(lists[half:])
    alone, pairs = _selection(one, other, rank + 1)
    return _laid_out(draft, alone, pairs, columns[-1][0])


def _parting(count: int) -> int:
    """Return how many lists are merged first.

    Half of an even number, so that both halves are alike and done at once; all but one of an odd
    number.
    """
    return count // 2 if count % 2 == 0 else count - 1


@dataclass(slots=True)
class _Draft:
    """Comparisons in the order in which they are taken up, each once."""

    inputs: int
    taken: dict[tuple[int, int, int], int] = field(default_factory=dict)
    """Values that are compared, the second so many voxels further on, and their lesser value; the
    greater one is the next."""

    def compared(self, one: _Wire, other: _Wire) -> tuple[_Wire, _Wire]:
        """Return the lesser and the greater of two."""
        (shift, a), (further, b) = sorted([one[::-1], other[::-1]])
        key = a, b, further - shift
        least = self.taken.setdefault(key, self.inputs + 2 * len(self.taken))
        return (least, shift), (least + 1, shift)

    def sorted(self, wires: list[_Wire]) -> list[_Wire]:
        """Return wires in the order of what they carry."""
        if len(wires) < 2:
            return wires
        half = len(wires) // 2
        return self.merged(self.sorted(wires[:half]), self.sorted(wires[half:]))

    def merged_all(self, lists: list[list[_Wire]]) -> list[_Wire]:
        """Return the wires of several lists in order."""
        if len(lists) == 1:
            return lists[0]
        half = _parting(len(lists))
        return self.merged(self.merged_all(lists[:half]), self.merged_all(lists[half:]))

    def merged(self, one: list[_Wire], other: list[_Wire]) -> list[_Wire]:
        """Return the wires of two lists in order (Batcher's odd-even merge, for any lengths)."""
        if not one or not other:
            return one or other
        if len(one) == len(other) == 1:
            return list(self.compared(one[0], other[0]))
        even = self.merged(one[0::2], other[0::2])
        odd = self.merged(one[1::2], other[1::2])
        found = even[:1]
        for lower, upper in zip(odd, even[1:], strict=False):
            found += self.compared(lower, upper)
        pairs = min(len(odd), len(even) - 1)
        return found + odd[pairs:] + even[1 + pairs :]


def _selection(
    one: list[_Wire], other: list[_Wire], count: int
) -> tuple[list[_Wire], list[tuple[_Wire, _Wire]]]:
    """Return wires and pairs of wires: the least of all, and of the greater ones of pairs, is the
    last of the `count` least ones of two lists.

    Of these, i come from the one list and the others from the other one, for the i that makes the
    greater of the last of both the least.
    """
    alone, pairs = [], []
    for i in range(max(0, count - len(other)), min(count, len(one)) + 1):
        if 0 < i < count:
            pairs.append((one[i - 1], other[count - i - 1]))
        else:
            alone.append(one[i - 1] if i else other[count - 1])
    return alone, pairs


def _laid_out(
    draft: _Draft, alone: list[_Wire], pairs: list[tuple[_Wire, _Wire]], span: int
) -> Network:
    """Return the operations for what is needed, with rows that are used again."""
    wanted = {value for value, _ in alone} | {value for pair in pairs for value, _ in pair}
    needed, kept = set(wanted), []
    for (a, b, further), least in reversed(draft.taken.items()):
        if least in needed or least + 1 in needed:
            needed |= {a, b}
            kept.append((a, b, further, least))
    kept.reverse()
    last = {}
    for n, (a, b, _, _) in enumerate(kept):
        last[a] = last[b] = n
    rows = _Rows(draft.inputs)
    operations = []
    for n, (a, b, further, least) in enumerate(kept):
        found = [value for value in (least, least + 1) if value in needed]
        kind = EXCHANGE if len(found) == 2 else LEAST if found == [least] else MOST
        read = rows.of[a], 0, rows.of[b], further
        done = {value for value in (a, b) if last[value] == n and value not in wanted}
        done = {value for value in done if value >= draft.inputs}
        # Rows are written where they are read if both can be: half as many lie in the cache then.
        if kind == EXCHANGE and done == {a, b} and a != b and not further:
            rows.hand_on({a: least, b: least + 1})
        elif kind != EXCHANGE and a in done and a != b:
            rows.hand_on({a: found[0]})
            done.remove(a)
            rows.give_back(done)
        else:
            for value in found:
                rows.take(value)
            rows.give_back(done)
        operations.append((kind, *read, rows.of[found[0]], rows.of[found[-1]]))
    result = rows.take(-1)
    if alone:
        ((a, shift),) = alone[:1]
        operations.append((COPY, rows.of[a], shift, rows.of[a], shift, result, result))
        pairs = [((b, further), (b, further)) for b, further in alone[1:]] + pairs
    for n, ((a, shift), (b, further)) in enumerate(pairs):
        kind = SELECT if alone or n else MOST
        operations.append((kind, rows.of[a], shift, rows.of[b], further, result, result))
    return Network(np.array(operations, np.int64), draft.inputs, rows.count, result, span)


class _Rows:
    """Rows of values: those of inputs, and others, which are used again."""

    def __init__(self, inputs: int) -> None:
        self.inputs = self.count = inputs
        self.of = {row: row for row in range(inputs)}
        self.free: list[int] = []

    def take(self, value: int) -> int:
        """Return the row for a new value."""
        if not self.free:
            self.free.append(self.count)
            self.count += 1
        self.of[value] = self.free.pop()
        return self.of[value]

    def hand_on(self, values: dict[int, int]) -> None:
        """Let the rows of values be those of others."""
        for value, other in values.items():
            self.of[other] = self.of.pop(value)

    def give_back(self, values: Iterable[int]) -> None:
        """Let the rows of values be used again."""
        self.free += [self.of.pop(value) for value in values]
