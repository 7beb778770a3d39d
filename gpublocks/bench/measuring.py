"""Measures several ways of doing a work, each in its own process, by turns. Touches processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from gpublocks.bench.case import Way

__all__ = ["Stage", "measure_ways", "worth_repeating"]

_CLOSE_SECONDS = 30
_NEAR = 1.15
"""Rivals that took so much longer than the best of them in the warm-up are not repeated."""


class Sampler(Protocol):
    """Watches the memory of a tree of processes: see `gpublocks.memory.Peak`."""

    @property
    def bytes(self) -> int: ...
    def __enter__(self) -> "Sampler": ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class StageLike(Protocol):
    """A place where a program is measured: see `Stage`."""

    @property
    def pid(self) -> int: ...
    def do(self, method: str) -> Any: ...
    def close(self) -> None: ...
    def __enter__(self) -> "StageLike": ...
    def __exit__(self, *exception: object) -> None: ...


class Stage:
    """A process of its own for one program.

    Parameters
    ----------
    way : Way
    folder : Path
        Where volumes lie.

    Raises
    ------
    RuntimeError
        If the program cannot be loaded.
    """

    def __init__(self, way: Way, folder: Path) -> None:
        self._name = way.name
        path = os.pathsep.join([entry or os.getcwd() for entry in sys.path])
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from gpublocks.bench import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
        )
        try:
            self._ask({"load": [way.program, str(folder), dict(way.options)]})
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Process in which the program is."""
        return self._process.pid

    def do(self, method: str) -> Any:
        """Call a method of the program and return its answer.

        Raises
        ------
        RuntimeError
            If it failed or the process ended.
        """
        return self._ask({"do": method})

    def close(self) -> None:
        """End the process and wait for it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(_CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> "Stage":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ask(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise RuntimeError(f"{self._name}: its process ended with status {status}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self._name}: {answer['error']}")
        return answer["value"]


def measure_ways(
    ways: Sequence[Way],
    setup: Way | None,
    folder: Path,
    *,
    rounds: int,
    stage: "Callable[[Way, Path], StageLike] | None" = None,
    sampler: Callable[[int], Sampler],
    tell: Callable[[str], None],
) -> dict[str, dict[str, list[float]]]:
    """Measure all ways by turns: A B C, C B A, A B C ...

    Every way is done once without being counted, and its result checked. Ways with `fresh` begin
    each measurement in a new process with a warm pool, and have their memory sampled.

    Parameters
    ----------
    setup : Way or None
        Is done before all others, once: builds the volumes.
    rounds : int
        How often each way is measured.
    stage : callable, optional
        Opens a place for the program of a way; by default a `Stage`.
    sampler : callable
        Returns the sampler for a process.
    tell : callable

    Returns
    -------
    dict
        By way and quantity a list with one number for each round.
    """
    stage = Stage if stage is None else stage
    if setup is not None:
        tell(setup.name)
        with stage(setup, folder) as opened:
            opened.do("act")
    found: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        stages: dict[str, StageLike] = {}
        first: dict[str, float] = {}
        for way in ways:
            if not way.fresh:
                tell(f"warm-up: {way.name}")
                stages[way.name] = stack.enter_context(stage(way, folder))
                first[way.name] = _once(stages[way.name], check=True)["seconds"]
        repeated = worth_repeating(ways, first)
        for way in ways:
            if way not in repeated:
                stages.pop(way.name).close()
        for number in range(rounds):
            tell(f"round {number + 1} of {rounds}")
            for way in repeated if number % 2 == 0 else reversed(repeated):
                kept = stages.get(way.name)
                measured = _once(kept) if kept else _afresh(way, stage, folder, sampler)
                for quantity, value in measured.items():
                    found.setdefault(way.name, {}).setdefault(quantity, []).append(value)
    return {way.name: found[way.name] for way in ways if way.name in found}


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


def _afresh(
    way: Way,
    stage: Callable[[Way, Path], StageLike],
    folder: Path,
    sampler: Callable[[int], Sampler],
) -> dict[str, float]:
    with stage(way, folder) as opened:
        opened.do("prepare")
        with sampler(opened.pid) as peak:
            measured: dict[str, float] = opened.do("act")
        opened.do("check")
    return {**measured, "peak_bytes": float(peak.bytes)}
