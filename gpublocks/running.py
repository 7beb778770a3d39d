"""A run under way: a stream of events that can be cancelled from any thread. Touches threads."""

import threading
from collections.abc import Callable, Generator
from contextlib import closing

from gpublocks.contracts import CellFailed, Event
from gpublocks.errors import RunCancelledError

__all__ = ["EventRun"]


class EventRun:
    """The `gpublocks.contracts.Run` that every executor returns.

    Parameters
    ----------
    drive : callable
        Called with this run; a generator of events. It ends early when `cancelled` is set, and
        its ``finally`` clauses leave nothing running. A `CellFailed` is the last event taken.
    stop : callable, optional
        Called once by `cancel`, in the cancelling thread, to wake or end what `drive` waits for.
    """

    def __init__(
        self,
        drive: Callable[["EventRun"], Generator[Event, None, None]],
        stop: Callable[[], None] | None = None,
    ) -> None:
        self._drive = drive
        self._stop = stop or _nothing
        self._cancelled = threading.Event()
        self._ended = threading.Event()
        self._consumer: int | None = None

    @property
    def cancelled(self) -> bool:
        """Whether somebody cancelled the run."""
        return self._cancelled.is_set()

    def __iter__(self) -> Generator[Event, None, None]:
        self._consumer = threading.get_ident()
        try:
            with closing(self._drive(self)) as events:
                for event in events:
                    yield event
                    if isinstance(event, CellFailed):
                        raise event.error
        finally:
            self._ended.set()
            # Whoever made this run holds it as well, and with that its arrays.
            self._drive, self._stop = _no_events, _nothing
        if self.cancelled:
            raise RunCancelledError("the run was cancelled")

    def cancel(self) -> None:
        """Stop soon: no further cell begins. May be called from any thread, more than once."""
        if not self._cancelled.is_set():
            self._cancelled.set()
            self._stop()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Cancel if `cancel_futures`; then wait for the end, except in the consuming thread."""
        if cancel_futures:
            self.cancel()
        if wait and self._consumer not in (None, threading.get_ident()):
            self._ended.wait()


def _no_events(run: EventRun) -> Generator[Event, None, None]:
    yield from ()


def _nothing() -> None:
    """Do nothing."""
