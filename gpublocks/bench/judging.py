"""From measurements to figures and their verdicts. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from gpublocks.bench.case import Figure

__all__ = ["Outcome", "judge", "judge_all", "paired"]

Raw = Mapping[str, Mapping[str, Sequence[float]]]
"""Measurements, one for each round, by way and quantity."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A figure with its spread and verdict.

    Parameters
    ----------
    label, unit : str
    median, low, high : float
        Over all rounds.
    bound : float or None
        The most that `median` may be.
    passed : bool or None
        Whether it is; None where there is no bound.
    against : str or None
        What it was compared with: of several the fastest.
    """

    label: str
    unit: str
    median: float
    low: float
    high: float
    bound: float | None
    passed: bool | None
    against: str | None = None


def judge_all(figures: Iterable[Figure], raw: Raw) -> list[Outcome]:
    """Return what measurements say of all figures whose ways were measured."""
    return [judge(figure, raw) for figure in figures if _measured(figure, raw)]


def _measured(figure: Figure, raw: Raw) -> bool:
    against = figure.compare == "value" or any(name in raw for name in figure.against)
    return against and figure.quantity in raw.get(figure.way, {})


def judge(figure: Figure, raw: Raw) -> Outcome:
    """Return what measurements say of a figure.

    A ratio or difference is taken round by round, between measurements that were made one after
    the other, so that whatever slows the machine for a while slows both: all ways are measured in
    the same rounds, or in none.
    """
    values = raw[figure.way][figure.quantity]
    against = None
    if figure.compare != "value":
        present = [name for name in figure.against if name in raw]
        against = min(present, key=lambda name: median(raw[name][figure.against_quantity]))
        others = raw[against][figure.against_quantity]
        values = paired(figure.compare, values, others)
    values = [figure.scale * value for value in values]
    middle = median(values)
    return Outcome(
        label=figure.label,
        unit=figure.unit,
        median=middle,
        low=min(values),
        high=max(values),
        bound=figure.bound,
        passed=None if figure.bound is None else middle <= figure.bound,
        against=against,
    )


def paired(compare: str, values: Sequence[float], against: Sequence[float]) -> list[float]:
    """Return the ratio or difference of each pair of measurements.

    Examples
    --------
    >>> paired("ratio", [2.0, 9.0], [1.0, 3.0])
    [2.0, 3.0]
    """
    pairs = list(zip(values, against, strict=True))
    if compare == "ratio":
        return [value / other for value, other in pairs]
    return [value - other for value, other in pairs]
