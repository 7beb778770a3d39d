"""Where a part of the measurement notes what it finds, while its time lasts. Touches the clock."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Lab", "placed"]

_Value = TypeVar("_Value")


class Lab:
    """What all parts share that are measured in one process.

    Parameters
    ----------
    send : callable
        Takes a path and a value as soon as they are found, so that nothing is lost with the
        process.
    open_cuda : callable
        Returns the device when the first part asks for it (see `benchmarks.gpu.cuda.Cuda`).
    clock : callable

    Attributes
    ----------
    kept : dict
        Whatever parts leave for later ones: volumes above all.
    failed : bool
        Whether a step of this part failed.
    """

    def __init__(
        self,
        send: Callable[[str, Any], None],
        open_cuda: Callable[[], Any],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._send = send
        self._open_cuda = open_cuda
        self._cuda: Any = None
        self._clock = clock
        self._end = 0.0
        self.kept: dict[str, Any] = {}
        self.failed = False

    @property
    def cuda(self) -> Any:
        """The device."""
        if self._cuda is None:
            self._cuda = self._open_cuda()
        return self._cuda

    @property
    def left(self) -> float:
        """Seconds until the time of this part is up."""
        return self._end - self._clock()

    def begin(self, seconds: float) -> None:
        """Give the next part so much time."""
        self._end = self._clock() + seconds
        self.failed = False

    def note(self, path: str, value: Any) -> None:
        """Report something found: ``'floors/gather'`` is `gather` within `floors`."""
        self._send(path, value)

    def attempt(
        self, path: str, step: Callable[[], _Value], *, estimate: float = 0.0
    ) -> _Value | None:
        """Do a step, and go on without it if it fails or would take longer than there is time.

        Parameters
        ----------
        path : str
            Where the error, or that it was skipped, is noted as text.
        estimate : float
            Seconds that it takes.

        Returns
        -------
        object
            What the step returned; None without it.
        """
        if self.left < estimate:
            left = max(0.0, self.left)
            self.note(path, {"skipped": f"takes about {estimate:.0f} s, {left:.0f} s were left"})
            return None
        try:
            return step()
        except Exception as error:
            self.failed = True
            self.note(path, {"error": f"{type(error).__name__}: {error}"})
            return None

    def times(self, step: Callable[[], Any], count: int) -> list[float]:
        """Return the seconds that each repetition of a step took; one at least, else while time
        is left for another as long as the last."""
        found: list[float] = []
        while len(found) < count and (not found or self.left > found[-1]):
            begun = self._clock()
            step()
            found.append(self._clock() - begun)
        return found


def placed(found: dict[str, Any], path: str, value: Any) -> None:
    """Put a value into nested dicts, at a path of names with slashes.

    What is there already and is a dict is added to.

    Examples
    --------
    >>> found = {}
    >>> placed(found, "a/b", {"c": 1})
    >>> placed(found, "a/b", {"d": 2})
    >>> found
    {'a': {'b': {'c': 1, 'd': 2}}}
    """
    *folders, name = path.split("/")
    for folder in folders:
        inner = found.setdefault(folder, {})
        if not isinstance(inner, dict):
            inner = found[folder] = {"value": inner}
        found = inner
    if isinstance(value, dict) and isinstance(found.get(name), dict):
        found[name].update(value)
    else:
        found[name] = value
