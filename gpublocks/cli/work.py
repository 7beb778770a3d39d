"""The commands `plan` and `run`. Touches what a run touches, and standard output and error."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from inspect import signature
from math import prod
from time import perf_counter
from typing import Any

from gpublocks import block_processing as bp
from gpublocks.arguments import read_mask
from gpublocks.budget import parse_bytes
from gpublocks.contracts import CellDone, Event, Source
from gpublocks.errors import GpublocksError, PlanError
from gpublocks.masking import Mask
from gpublocks.planning import Plan
from gpublocks.report import Report, check_target
from gpublocks.telling import Progress

__all__ = ["numbers", "plan", "run"]

_NUMBERS = {
    "halo": "",
    "overlap": "",
    "size_max": "full",
    "size_min": "fixed",
    "size_multiple_of": "",
    "axes": "all",
}
"""Options that are numbers, and the word that each of them may be instead."""
_DECLARED = ("halo", "memory", "result_dtype")
"""What a function may tell about itself (`gpublocks.contracts.Filter`)."""
_TEXTS = ("executor", "dtype", "casting")


class _Watch:
    """Counts blocks that are done, and moves the bar."""

    def __init__(self, bar: Progress | None) -> None:
        self.done = 0
        self._bar = bar

    def __call__(self, event: Event) -> None:
        self.done += isinstance(event, CellDone)
        if self._bar is not None:
            self._bar(event)


def plan(
    options: Namespace, function: Any, keywords: dict[str, Any], source: Source, sink: Any
) -> None:
    """Print what a run would do.

    Parameters
    ----------
    options : Namespace
        What the parser found.
    function : callable
    keywords : dict
        Its keyword arguments.
    source : Source
    sink : path, NewSink or None
    """
    function, arguments = _arguments(options, function, keywords, sink)
    with redirect_stdout(sys.stderr):
        planned = bp.plan(function, source, trial=options.trial, **arguments)
    print(json.dumps(planned.to_dict(), indent=2) if options.json else planned)


def run(
    options: Namespace, function: Any, keywords: dict[str, Any], source: Source, sink: Any
) -> None:
    """Run the function over the source, and print a line about it. Parameters: see `plan`."""
    function, arguments = _arguments(options, function, keywords, sink)
    planned = bp.plan(function, source, **arguments)
    count = _count(planned, arguments.get("mask"))
    new = not isinstance(sink, str)
    wanted = options.progress
    if wanted is None:
        wanted = sys.stderr.isatty() and not options.verbose
    bar = Progress(count, options.function) if wanted else None
    watch = _Watch(bar)
    report = _report(options.report)
    start = perf_counter()
    try:
        with redirect_stdout(sys.stderr), _saved(report, options.report):
            bp.process(
                function,
                source,
                progress=watch,
                verbose=options.verbose,
                report=report,
                **arguments,
            )
    except KeyboardInterrupt:
        state = "was not created" if new else "holds the blocks that are done"
        where = f"after {watch.done} of {count} blocks; {options.sink} {state}"
        raise KeyboardInterrupt(where) from None
    finally:
        if bar is not None:
            bar.close()
    seconds = perf_counter() - start
    nbytes = sum(prod(one.shape) * one.dtype.itemsize for one in planned.sources)
    blocks = "1 block" if watch.done == 1 else f"{watch.done} blocks"
    print(
        f"{options.function}: {blocks} of {options.source} in {seconds:.2f} s "
        f"({nbytes / seconds / 1e6:.3g} MB/s, {planned.executor}) -> {options.sink}"
    )


def _report(path: str | None) -> Report | None:
    """Return a report to be saved, if a path says where."""
    if path is None:
        return None
    check_target(path)
    return Report()


@contextmanager
def _saved(report: Report | None, path: str) -> Iterator[None]:
    """Save a report in the end, of a run that failed too."""
    try:
        yield
    except BaseException:
        # What ended the run is told, not what kept its report from being saved.
        with suppress(GpublocksError):
            _save(report, path)
        raise
    _save(report, path)


def _save(report: Report | None, path: str) -> None:
    if report is not None and report.runs:
        report.save(path)


def _arguments(
    options: Namespace, function: Any, keywords: Mapping[str, Any], sink: Any
) -> tuple[Any, dict[str, Any]]:
    """Return the function, and all keyword arguments for `process`: its own and the function's."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    arguments = {name: numbers(name, given[name]) for name in _NUMBERS if name in given}
    arguments |= {name: given[name] for name in _TEXTS if name in given}
    if "processes" in given:
        text = given["processes"]
        arguments["processes"] = int(text) if text.isdecimal() else text
    if "device" in given:
        names = given["device"].split(",")
        arguments["device"] = names if len(names) > 1 else names[0]
    limits = {"host": given.get("memory"), "device": given.get("device_memory")}
    if any(limits.values()):
        arguments["memory"] = limits
    if "mask" in given:
        limit = given.get("memory")
        arguments["mask"] = read_mask(given["mask"], limit and parse_bytes(limit))
    if sink is not None:
        arguments["sink"] = sink
    own = signature(bp.process).parameters
    clashing = {name: value for name, value in keywords.items() if name in own}
    others = {name: value for name, value in keywords.items() if name not in own}
    return _separate(function, clashing, {"progress", *arguments}), arguments | others


def _separate(function: Any, bound: Mapping[str, Any], given: Set[str]) -> Any:
    """Return a function with keywords bound that does not show those names of `process`.

    `process` refuses a keyword that may be its own or the function's. Here ``--dtype`` is always
    its own, and ``--arg dtype=`` always the function's.
    """
    try:
        shown = signature(function)
    except (TypeError, ValueError):
        return partial(function, **bound) if bound else function
    try:
        shown.bind_partial(**bound)
    except TypeError as error:
        raise PlanError(f"FUNCTION {error}; --arg gives it {', '.join(bound)}") from None
    hidden = bound.keys() | given
    parameters = shown.parameters.values()
    kept = [one for one in parameters if one.default is one.empty or one.name not in hidden]
    if not bound and len(kept) == len(parameters):
        return function
    separate: Any = partial(function, **bound)
    separate.__signature__ = shown.replace(parameters=kept)
    for name in _DECLARED:
        if hasattr(function, name):
            setattr(separate, name, getattr(function, name))
    return separate


def numbers(name: str, text: str) -> Any:
    """Return the number or the list of numbers that a text is."""
    if text == _NUMBERS[name]:
        return text
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        flag, word = "--" + name.replace("_", "-"), _NUMBERS[name]
        choice = f", or {word!r}" if word else ""
        raise PlanError(
            f"{flag} is {text!r}; give a number, or one for each axis such as 8,16,16{choice}"
        ) from None
    return numbers[0] if len(numbers) == 1 else numbers


def _count(planned: Plan, mask: Any) -> int:
    """Return how many blocks are computed: those with something inside the mask."""
    if mask is None:
        return len(planned.grid)
    inside = Mask.of(mask, planned.grid.shape)
    return sum(1 for cell in planned.grid if inside.holds(cell))
