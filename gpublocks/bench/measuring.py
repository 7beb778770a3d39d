"""Measures several ways of doing a work by turns. Touches what stages and samplers touch."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from gpublocks.bench.case import Way
from gpublocks.bench.effort import Effort
from gpublocks.bench.stages import Stage

__all__ = ["measure_ways", "worth_repeating"]

_NEAR = 1.15
"""Rivals that took so much longer than the best of them in the warm-up are not repeated."""


class Sampler(Protocol):
    """Watches a tree of processes: see `gpublocks.bench.effort.Effort`."""

    @property
    def found(self) -> dict[str, float]: ...
    def __enter__(self) -> "Sampler": ...
    def __exit__(self, *exception: object) -> None: ...


class StageLike(Protocol):
    """A place where a program is measured: see `gpublocks.bench.stages.Stage`."""

    @property
    def pid(self) -> int: ...
    def do(self, method: str) -> Any: ...
    def close(self) -> None: ...
    def __enter__(self) -> "StageLike": ...
    def __exit__(self, *exception: object) -> None: ...


class Watch(Protocol):
    """Returns what watches a process: see `gpublocks.bench.effort.Effort`."""

    def __call__(self, root: int, *, memory: bool) -> Sampler: ...


Open = Callable[[Way, Path], StageLike]


def measure_ways(
    ways: Sequence[Way],
    setup: Way | None,
    folder: Path,
    *,
    rounds: int,
    stage: Open = Stage,
    sampler: Watch = Effort,
    tell: Callable[[str], None],
    failures: dict[str, str] | None = None,
    deadline: float = math.inf,
    end: float = math.inf,
) -> dict[str, dict[str, list[float]]]:
    """Measure all ways by turns: A B C, C B A, A B C ...

    A way is done once without being counted, and its result checked. One with `fresh` begins each
    measurement in a new process with a warm pool, is watched, and has each of its results checked.

    Parameters
    ----------
    setup : Way or None
        Is done before all others, once: builds the volumes.
    rounds : int
        How often each way is measured.
    stage : callable
        Opens a place for the program of a way.
    sampler : callable
        Returns what watches a process.
    tell : callable
    failures : dict of str to str, optional
        Gets the reason for each way that failed and `may_fail`; it is not measured any more.
    deadline : float
        By `time.monotonic`: no round but the first begins after it.
    end : float
        No way that `may_fail` begins its first measurement after it.

    Returns
    -------
    dict
        By way and quantity a list with one number for each round, or the first one.

    Raises
    ------
    RuntimeError
        If another way fails.
    """
    failures = {} if failures is None else failures
    if setup is not None:
        tell(setup.name)
        with stage(setup, folder) as opened:
            opened.do("act")
    found: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        kept = _keep([way for way in ways if not way.fresh], folder, stage, stack, tell)
        repeated = [way for way in ways if way.fresh or way.name in kept]
        for number in range(rounds):
            if number and time.monotonic() > deadline:
                break
            tell(f"round {number + 1} of {rounds}")
            for way in repeated if number % 2 == 0 else reversed(repeated):
                late = way.may_fail and way.name not in found and time.monotonic() > end
                if way.name in failures or late:
                    continue
                try:
                    if way.fresh:
                        measured = _afresh(way, stage, folder, sampler, number)
                    else:
                        measured = _once(kept[way.name])
                except RuntimeError as error:
                    if not way.may_fail:
                        raise
                    tell(f"failed: {error}")
                    failures[way.name] = str(error)
                    continue
                for quantity, value in measured.items():
                    found.setdefault(way.name, {}).setdefault(quantity, []).append(value)
    return {way.name: found[way.name] for way in ways if way.name in found.keys() - failures.keys()}


def _keep(
    ways: Sequence[Way],
    folder: Path,
    stage: Open,
    stack: ExitStack,
    tell: Callable[[str], None],
) -> dict[str, StageLike]:
    """Open the stages of ways that have one for all rounds, after a checked warm-up."""
    stages: dict[str, StageLike] = {}
    first: dict[str, float] = {}
    for way in ways:
        tell(f"warm-up: {way.name}")
        stages[way.name] = stack.enter_context(stage(way, folder))
        first[way.name] = _once(stages[way.name], check=True)["seconds"]
    for name in set(stages) - {way.name for way in worth_repeating(ways, first)}:
        stages.pop(name).close()
    return stages


def worth_repeating(ways: Sequence[Way], seconds: Mapping[str, float]) -> list[Way]:
    """Return the ways without those rivals that are clearly not the best of their kind.

    Parameters
    ----------
    ways : sequence of Way
    seconds : mapping of str to float
        What the warm-up took.
    """
    best: dict[str, float] = {}
    for way in ways:
        if way.rival is not None:
            best[way.rival] = min(best.get(way.rival, float("inf")), seconds[way.name])
    return [
        way for way in ways if way.rival is None or seconds[way.name] <= _NEAR * best[way.rival]
    ]


def _once(stage: StageLike, *, check: bool = False) -> dict[str, float]:
    stage.do("prepare")
    measured: dict[str, float] = stage.do("act")
    if check:
        stage.do("check")
    return measured


def _afresh(way: Way, stage: Open, folder: Path, sampler: Watch, number: int) -> dict[str, float]:
    """Measure a way in a new process; in its first round twice, if memory is sampled apart."""
    if not way.apart:
        return _watched(way, stage, folder, sampler, memory=True)
    first: dict[str, float] = {}
    if number == 0:
        found = _watched(way, stage, folder, sampler, memory=True)
        first = {name: value for name, value in found.items() if name == "peak_bytes"}
    return {**_watched(way, stage, folder, sampler, memory=False), **first}


def _watched(
    way: Way, stage: Open, folder: Path, sampler: Watch, *, memory: bool
) -> dict[str, float]:
    with stage(way, folder) as opened:
        opened.do("prepare")
        with sampler(opened.pid, memory=memory) as watched:
            measured: dict[str, float] = opened.do("act")
        opened.do("check")
    return {**measured, **watched.found}
