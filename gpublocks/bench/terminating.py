"""Termination that lets go of what was taken, as an interrupt does. Touches a signal's handler."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["terminable"]


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM raise SystemExit while a with block lasts, so that those inside clean up.

    In other threads than the main one, which alone may do so, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: Any) -> None:
    # Once: what is let go of is not to be cut short.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)
