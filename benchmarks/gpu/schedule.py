"""Parts in order of worth, within a time budget; failures are noted. Touches the clock."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from benchmarks.gpu.lab import placed

__all__ = ["Ending", "Part", "Place", "run_parts"]

_FACTOR = 3.0
"""A part may take so many times its estimate ..."""
_EXTRA_SECONDS = 15.0
"""... and this much more, for a process to start and kernels to be compiled."""
_MOST_HANGS = 2


@dataclass(frozen=True, slots=True)
class Part:
    """Something that is measured in one go.

    Parameters
    ----------
    name : str
    measures : str
        What, in words.
    program : str
        ``'module:function'``; the function takes a `benchmarks.gpu.lab.Lab`.
    options : mapping
        Its keyword arguments; plain values.
    estimate_seconds : float
        What it should take: it is skipped when less time is left.
    fresh : bool
        Whether it needs a process in which nothing has happened yet.
    group : str
        After two of a group that did not end in time, the others are skipped.
    """

    name: str
    measures: str
    program: str
    options: Mapping[str, Any] = field(default_factory=dict)
    estimate_seconds: float = 10.0
    fresh: bool = False
    group: str = ""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a part ended.

    Parameters
    ----------
    status : {'done', 'failed', 'died', 'hung'}
        Complete, perhaps without some of its steps; raised an error; took its process along; or
        did not end in time.
    error : str or None
        What went wrong: text of the error, traceback, last words of the process.
    usable : bool
        Whether the place may go on with another part.
    """

    status: Literal["done", "failed", "died", "hung"]
    error: str | None = None
    usable: bool = True


class Place(Protocol):
    """Where parts are done, one after the other: a process."""

    def do(self, part: Part, seconds: float, note: Callable[[str, Any], None]) -> Ending:
        """Do a part, which has so much time; never raises for what goes wrong in it."""

    def close(self) -> None:
        """End it."""


def run_parts(
    parts: Sequence[Part],
    *,
    seconds: float,
    open_place: Callable[[], Place],
    keep: Callable[[list[dict[str, Any]], bool], None],
    tell: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> list[dict[str, Any]]:
    """Do parts in their order while the time lasts.

    Parameters
    ----------
    parts : sequence of Part
        The most valuable first.
    seconds : float
        For all of them. A part that would take longer than what is left is skipped, and shorter
        ones after it are still done.
    open_place : callable
        Is called for the first part, after a failure of any kind, and where a part asks for it.
    keep : callable
        Takes all results after every note, and whether a part has ended with it.
    tell : callable
        Takes a line of text when something begins.

    Returns
    -------
    list of dict
        For each part ``name``, ``measures``, ``estimate_seconds``, ``status`` ('done', 'failed',
        'died', 'hung', 'skipped'), ``seconds``, ``error``, ``found``.
    """
    end = clock() + seconds
    results: list[dict[str, Any]] = []
    hangs: dict[str, int] = {}
    place: Place | None = None
    try:
        for part in parts:
            result = _blank(part)
            results.append(result)
            reason = _reason_to_skip(part, end - clock(), hangs)
            if reason:
                result |= {"status": "skipped", "error": reason}
                tell(f"{part.name}: skipped, {reason}")
                keep(results, True)
                continue
            if place is not None and part.fresh:
                place.close()
                place = None
            place = open_place() if place is None else place
            tell(part.name)
            ending = _do(part, place, end, results, keep, clock)
            if ending.status == "hung" and part.group:
                hangs[part.group] = hangs.get(part.group, 0) + 1
            if ending.error:
                tell(f"{part.name}: {ending.status}: {ending.error.splitlines()[0]}")
            if not ending.usable:
                place.close()
                place = None
    finally:
        if place is not None:
            place.close()
    return results


def _blank(part: Part) -> dict[str, Any]:
    return {
        "name": part.name,
        "measures": part.measures,
        "estimate_seconds": part.estimate_seconds,
        "status": "begun",
        "seconds": 0.0,
        "error": None,
        "found": {},
    }


def _reason_to_skip(part: Part, left: float, hangs: Mapping[str, int]) -> str:
    if left < part.estimate_seconds:
        return f"takes about {part.estimate_seconds:.0f} s, {max(0.0, left):.0f} s are left"
    if part.group and hangs.get(part.group, 0) >= _MOST_HANGS:
        return f"{_MOST_HANGS} parts like it did not end in time"
    return ""


def _do(
    part: Part,
    place: Place,
    end: float,
    results: list[dict[str, Any]],
    keep: Callable[[list[dict[str, Any]], bool], None],
    clock: Callable[[], float],
) -> Ending:
    begun = clock()
    result = results[-1]

    def note(path: str, value: Any) -> None:
        placed(result["found"], path, value)
        result["seconds"] = clock() - begun
        keep(results, False)

    limit = min(end - begun, _FACTOR * part.estimate_seconds + _EXTRA_SECONDS)
    ending = place.do(part, limit, note)
    result |= {"status": ending.status, "error": ending.error, "seconds": clock() - begun}
    keep(results, True)
    return ending
