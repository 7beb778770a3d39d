"""From measurements to figures and their verdicts, and to a table. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from gpublocks.bench.case import Figure

__all__ = ["Outcome", "as_table", "judge", "paired"]

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


def judge(figure: Figure, raw: Raw) -> Outcome:
    """Return what measurements say of a figure.

    A ratio or difference is taken round by round, between measurements that were made one after
    the other, so that whatever slows the machine for a while slows both.
    """
    values = raw[figure.way][figure.quantity]
    against = None
    if figure.compare != "value":
        present = [name for name in figure.against if name in raw]
        against = min(present, key=lambda name: median(raw[name][figure.against_quantity]))
        values = paired(figure.compare, values, raw[against][figure.against_quantity])
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


def as_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a table: case, figure, median, spread, bound, verdict."""
    rows = [("case", "figure", "median", "spread", "bound", "holds", "against")]
    for result in results:
        if "error" in result:
            rows.append((result["name"], "failed", "", "", "", "", result["error"]))
        for figure in result.get("figures", ()):
            rows.append(
                (
                    result["name"],
                    figure["label"],
                    f"{_number(figure['median'])} {figure['unit']}",
                    f"{_number(figure['low'])} .. {_number(figure['high'])}",
                    "" if figure["bound"] is None else _number(figure["bound"]),
                    _verdict(figure),
                    figure["against"] or "",
                )
            )
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * min(100, max(map(len, lines))), *lines[1:]])


def _verdict(figure: Mapping[str, Any]) -> str:
    if figure["passed"] is None:
        return ""
    if figure["passed"]:
        return "yes"
    return f"no, +{100 * (figure['median'] / figure['bound'] - 1):.0f} %"


def _number(value: float) -> str:
    """Return a number with three digits, without an exponent.

    Examples
    --------
    >>> _number(1234.5), _number(0.87123), _number(12.0)
    ('1234', '0.871', '12.0')
    """
    size = abs(value)
    digits = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.9995 else 3
    return f"{value:.{digits}f}"
