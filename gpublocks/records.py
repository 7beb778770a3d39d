"""What happened in a run, and why it took as long as it did. Pure."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gpublocks.budget import format_bytes
from gpublocks.spans import DOING, STEPS, Spans
from gpublocks.verdict import Verdict, judge

__all__ = ["Incident", "Record"]

_OFTEN = 1.15
"""Voxels that are read for each voxel, or times that a piece is decoded, from which on it helps to
do that less."""


_FEW = 4
"""Blocks for each worker: with fewer of them workers have none left at the end."""
_LONG = 300
"""Letters of a line."""


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that went otherwise than planned.

    Attributes
    ----------
    kind : {'retried', 'split', 'refused', 'failed'}
    seconds : float
        Since the run began.
    cell : int
        Number of the block.
    worker : str
    reason : str
    """

    kind: str
    seconds: float
    cell: int
    worker: str
    reason: str


@dataclass(slots=True)
class Record:
    """What happened in one run.

    Attributes
    ----------
    function : str
        Its name.
    date : str
        When the run began, in UTC (ISO 8601).
    plan : dict
        What `Plan.to_dict` returns, with what the first block showed.
    versions : dict of str to str
        Of gpublocks, Python and libraries.
    seconds : float
        From the call to its end.
    cells : int
        Blocks that were done.
    spans : Spans
        When each step of each block was done.
    incidents : list of Incident
        At most `MOST_INCIDENTS` of them.
    read_bytes, written_bytes : int
        Of all blocks.
    host_peak_bytes : int or None
        Most memory that all processes of the run took together, beyond what they had before it:
        the largest of some samples. None where that cannot be told.
    device_peak_bytes : int or None
        Most memory that a block took on a device.
    error : str or None
        What ended the run early.
    """

    function: str
    date: str
    plan: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    cells: int = 0
    spans: Spans = field(default_factory=Spans)
    incidents: list[Incident] = field(default_factory=list)
    read_bytes: int = 0
    written_bytes: int = 0
    host_peak_bytes: int | None = None
    device_peak_bytes: int | None = None
    error: str | None = None

    @property
    def verdict(self) -> Verdict:
        """What bounds the run."""
        return judge(self.spans, self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        names = [name for name in self.__slots__ if name not in ("spans", "incidents")]
        return {
            **{name: getattr(self, name) for name in names},
            "incidents": [asdict(incident) for incident in self.incidents],
            "spans": self.spans.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Record":
        """Return the record that `to_dict` made values of.

        Raises
        ------
        KeyError, TypeError, ValueError, OverflowError
            If they are others.
        """
        told = dict(values)
        told["spans"] = Spans.from_dict(told["spans"])
        told["incidents"] = [Incident(**incident) for incident in told["incidents"]]
        return cls(**told)

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)

    def rows(self) -> list[tuple[str, str]]:
        """Return the record as rows of a table."""
        plan, verdict = self.plan, self.verdict
        rows = [
            (
                "run",
                f"{_line(self.function)} over {tuple(plan['shape'])} {plan['dtype']}, {self.date}",
            ),
            ("verdict", self.sentence(verdict)),
            ("time", _times(self, verdict)),
        ]
        rows += [(f"{len(g.lanes)} x {_named(g.lanes)}", _shares(g.shares)) for g in verdict.groups]
        if verdict.waits:
            rows.append(("waits", _waits(verdict.waits)))
        rows += [
            ("moved", self._moved()),
            ("host peak", _peak(self.host_peak_bytes, plan["peak_bytes"])),
        ]
        if plan["device_peak_bytes"]:
            rows.append(("device peak", _peak(self.device_peak_bytes, plan["device_peak_bytes"])))
        return rows + self._trouble()

    def sentence(self, verdict: Verdict) -> str:
        """Return a verdict on this run in words, with what would help."""
        part = f"{100 * verdict.share:.0f} % of the time"
        if self.error is not None and verdict.bound not in STEPS:
            return "ended by an error"
        if verdict.bound == "nothing":
            return "no block was done"
        if verdict.bound == "start":
            return f"bound by its start: {part} was over before the first block began"
        if verdict.bound == "end":
            return (
                f"bound by its end: {part} came after the last block, when the sink was synced, "
                "packed or given its name; a format without packing, or a faster disk, would help"
            )
        if verdict.bound == "wait":
            return f"bound by nothing: workers waited for {part}; {self._less_waiting(verdict)}"
        return f"bound by {DOING[verdict.bound]}: {part}; {self._help(verdict.bound)}"

    def _less_waiting(self, verdict: Verdict) -> str:
        computing = [len(g.lanes) for g in verdict.groups if "compute" in g.shares]
        if self.cells <= _FEW * sum(computing):
            return "more blocks than workers would help"
        return (
            f"{1000 * self.seconds / self.cells:.2g} ms a block: larger blocks would help, or "
            "callables given as progress and return_result that take less"
        )

    def _help(self, bound: str) -> str:
        plan = self.plan
        if bound == "read":
            ways = [*self._less_reading(), "a faster disk"]
        elif bound == "write":
            ways = ["a sink without compression", "one that several workers may write"]
            ways.append("a faster disk")
        elif bound == "compute":
            ways = ["more devices"] if plan["devices"] else ["more workers", "a GPU"]
            if plan["executor"] == "threads":
                # A function of Python alone holds its lock, and threads take turns.
                ways[0] = "executor='processes' if the function is one of Python, more workers"
            ways.append("a faster function")
        elif plan["devices"]:
            ways = ["a faster link to the device", "more work on it for each block"]
        else:
            ways = ["files instead of arrays in memory", "executor='threads'"]
        *most, last = ways
        return f"{', '.join(most)} or {last} would help" if most else f"{last} would help"

    def _less_reading(self) -> list[str]:
        over, decoded = self.plan["over_read"], self.plan["decoded"]
        ways = []
        if over > _OFTEN:
            ways.append(f"larger blocks ({over:.2f} voxels are read for each one)")
        if decoded is not None:
            if decoded > _OFTEN:
                ways.append(f"more memory (pieces are decoded {decoded:.2f} times)")
            ways.append("a source without compression")
        return ways

    def _moved(self) -> str:
        read, written = format_bytes(self.read_bytes), format_bytes(self.written_bytes)
        rate = format_bytes((self.read_bytes + self.written_bytes) / max(self.seconds, 1e-9))
        over = f"{self.plan['over_read']:.2f} voxels for each voxel"
        return f"{read} read ({over}), {written} written: {rate}/s"

    def _trouble(self) -> list[tuple[str, str]]:
        counts: dict[str, int] = {}
        for incident in self.incidents:
            counts[incident.kind] = counts.get(incident.kind, 0) + 1
        rows = []
        if counts:
            rows.append(("blocks", ", ".join(f"{count} {kind}" for kind, count in counts.items())))
            first = self.incidents[0]
            reason = _line(first.reason)
            rows.append(("", f"first: block {first.cell} on {first.worker}: {reason}"))
        if self.error:
            rows.append(("error", _line(self.error)))
        return rows


def _line(text: str) -> str:
    """Return the first line of a text, cut off where it is long."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= _LONG else f"{line[:_LONG]} ..."


def _times(record: Record, verdict: Verdict) -> str:
    between = record.seconds - verdict.start_seconds - verdict.end_seconds
    return (
        f"{record.seconds:.3g} s: {verdict.start_seconds:.3g} s before the first block, "
        f"{between:.3g} s for {record.cells} blocks, {verdict.end_seconds:.3g} s after the last"
    )


def _named(lanes: tuple[str, ...]) -> str:
    """Return what lanes that do the same are called together."""
    return lanes[0] if len(lanes) == 1 else f"{lanes[0]} ... {lanes[-1]}"


def _shares(shares: Mapping[str, float]) -> str:
    told = [f"{DOING[step]} {100 * share:.0f} %" for step, share in shares.items()]
    return ", ".join([*told, f"idle {100 * max(0.0, 1 - sum(shares.values())):.0f} %"])


def _waits(waits: Mapping[str, float]) -> str:
    names = {"turn": "for their turn", "no cells": "with no blocks left"}
    ordered = sorted(waits.items(), key=lambda item: -item[1])
    told = [
        f"{100 * part:.0f} % {names.get(name) or f'for {DOING[name]}'}"
        for name, part in ordered
        if part >= 0.005
    ]
    return f"those who compute wait {', '.join(told)}" if told else "those who compute do not wait"


def _peak(measured: int | None, predicted: int) -> str:
    found = "not measured" if measured is None else f"{format_bytes(measured)} (samples)"
    return f"{found}, {format_bytes(predicted)} predicted"
