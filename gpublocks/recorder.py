"""Recording what happens in a run. Touches clocks, and /proc for memory."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from gpublocks import machine
from gpublocks.contracts import (
    CellDone,
    CellFailed,
    CellRefused,
    CellRetried,
    CellSplit,
    Event,
)
from gpublocks.errors import text_of
from gpublocks.job import spans_of
from gpublocks.memory import Peak
from gpublocks.planning import Plan
from gpublocks.records import Incident, Record
from gpublocks.report import Report

__all__ = ["MOST_INCIDENTS", "Recorder", "recorded_in", "recording"]

MOST_INCIDENTS = 1000
"""More than that of what goes wrong is not kept."""
_SAMPLE_SECONDS = 0.1
_SAMPLE_SHARE = 0.01

_active: ContextVar[tuple[Report, ...]] = ContextVar("gpublocks recording", default=())


@contextmanager
def recording() -> Iterator[Report]:
    """Record all runs that this thread, or task of asyncio, does within a with block.

    Yields
    ------
    Report
        Has a run when that is over, however it ends.

    Examples
    --------
    >>> import numpy as np
    >>> from gpublocks import process
    >>> with recording() as report:
    ...     result = process(np.sqrt, np.ones(10), overlap=0, processes="serial")
    >>> report.runs[0].cells
    1
    """
    report = Report()
    _active.set((*_active.get(), report))
    try:
        yield report
    finally:
        _active.set(tuple([other for other in _active.get() if other is not report]))


def recorded_in(report: Report | None) -> tuple[Report, ...]:
    """Return the reports that a run belongs to: one that is given, and those of `recording`."""
    active = _active.get()
    if report is None or any(report is other for other in active):
        return active
    return (*active, report)


class Recorder:
    """Fills a record from the events of a run, while a with block lasts.

    Parameters
    ----------
    reports : tuple of Report
        Where the record goes in the end.
    function : str
        Name of the function.
    begun : float
        When the call began, by `time.perf_counter`.
    """

    def __init__(self, reports: tuple[Report, ...], function: str, begun: float) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._reports = reports
        self._begun = begun
        self._record = Record(function, now, {})
        self._peak = Peak(os.getpid(), _SAMPLE_SECONDS, _SAMPLE_SHARE)
        self._slot_bytes = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sample memory, and hand the record in at the end."""
        record = self._record
        with ExitStack() as stack:
            watched = sys.platform == "linux"
            if watched:
                stack.enter_context(self._peak)
            try:
                yield
            except BaseException as error:
                record.error = f"{type(error).__name__}: {text_of(error)}"
                raise
            finally:
                record.seconds = perf_counter() - self._begun
                record.host_peak_bytes = self._peak.bytes if watched else None
                # To ask takes a tenth of a second.
                record.versions = machine.versions()
                for report in self._reports:
                    report.runs.append(record)

    def keep(self, plan: Plan) -> None:
        """Note the plan, as it is now."""
        self._record.plan = plan.to_dict()
        self._slot_bytes = plan.worker_bytes if plan.devices else 0

    def __call__(self, event: Event) -> None:
        """Note what an event tells."""
        record = self._record
        if isinstance(event, CellDone):
            record.cells += 1
            record.read_bytes += event.read_bytes
            record.written_bytes += event.written_bytes
            record.spans.add(event.cell.number, event.worker, spans_of(event), self._begun)
            if record.plan.get("devices") and event.peak_bytes is not None:
                taken = self._slot_bytes + event.peak_bytes
                record.device_peak_bytes = max(record.device_peak_bytes or 0, taken)
        elif isinstance(event, CellRetried | CellSplit):
            self._note(
                "retried" if isinstance(event, CellRetried) else "split", event, event.reason
            )
        elif isinstance(event, CellRefused | CellFailed):
            kind = "refused" if isinstance(event, CellRefused) else "failed"
            self._note(kind, event, f"{type(event.error).__name__}: {text_of(event.error)}")

    def _note(self, kind: str, event: Any, reason: str) -> None:
        if len(self._record.incidents) < MOST_INCIDENTS:
            seconds = perf_counter() - self._begun
            self._record.incidents.append(
                Incident(kind, seconds, event.cell.number, event.worker, reason)
            )
