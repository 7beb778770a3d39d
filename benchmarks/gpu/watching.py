"""Memory that is taken while something runs. Touches threads."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

__all__ = ["Meter", "Watch"]

_PERIOD_SECONDS = 0.005


class Meter:
    """Counts memory while a with block lasts, in the thread that has it.

    Parameters
    ----------
    make_hook : callable
        Returns the context manager that calls `taken` and `given_back`.

    Attributes
    ----------
    peak_bytes : int
        The most that was held at once, of what was taken in the block.
    """

    def __init__(self, make_hook: "Callable[[Meter], Any]") -> None:
        self._hook = make_hook(self)
        self._held: dict[int, int] = {}
        self._now = 0
        self.peak_bytes = 0

    def taken(self, key: int, nbytes: int) -> None:
        """Note memory that was handed out; 0 for one that was refused."""
        if key:
            self._held[key] = nbytes
            self._now += nbytes
            self.peak_bytes = max(self.peak_bytes, self._now)

    def given_back(self, key: int) -> None:
        """Note memory that was given back."""
        self._now -= self._held.pop(key, 0)

    def __enter__(self) -> "Meter":
        self._hook.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hook.__exit__(kind, error, trace)


class Watch:
    """Samples the memory of the GPU in use while a with block lasts.

    Parameters
    ----------
    used : callable
        Returns it.

    Attributes
    ----------
    before, peak : int
        At the beginning, and the most.
    """

    def __init__(self, used: Callable[[], int]) -> None:
        self._used = used
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.before = self.peak = 0

    def __enter__(self) -> "Watch":
        self.before = self.peak = self._used()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._enough.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._enough.wait(_PERIOD_SECONDS):
            self.peak = max(self.peak, self._used())
