"""A picture of how gpublocks compares with its peers. Touches matplotlib and one file."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpublocks.bench.standings import Standing, ideal_seconds, standings
from gpublocks.errors import PlanError
from gpublocks.picture import check_path, new_figure, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_chart", "save_chart"]

_OURS, _PEER, _IDEAL = "#ee6677", "#4477aa", "#228833"
_COLUMNS = 2
_BAR, _PANEL, _BETWEEN = 0.24, 4.6, 0.95
_LEFT, _GAP, _RIGHT, _TOP, _BOTTOM = 1.7, 2.0, 0.8, 0.9, 0.5
"""Inches: a bar, a panel, what is around and between panels."""
_NOTHING = "no case with peers is measured, so that there is nothing to draw"
_LOG = 10.0
"""Times that differ by more are drawn on a logarithmic scale."""


def check_chart(path: Path, groups: Iterable[str]) -> None:
    """Raise `GpublocksError` if cases of these groups cannot be drawn, and saved there."""
    check_path(str(path))
    if "peers" not in groups:
        raise PlanError(_NOTHING)
    new_figure(1, 1)


def save_chart(results: Mapping[str, Any], path: Path) -> None:
    """Save a panel for each case with peers: their times as bars, with spread, the fastest first.

    Raises
    ------
    PlanError
        If there is no such case.
    SinkError
        If the file cannot be written.
    """
    cases = [case for case in results["cases"] if case.get("group") == "peers" and "raw" in case]
    if not cases:
        raise PlanError(_NOTHING)
    floors = results.get("floors", {})
    found = [standings(case, floors) for case in cases]
    rows = [range(n, min(n + _COLUMNS, len(cases))) for n in range(0, len(cases), _COLUMNS)]
    heights = [_BAR * max(len(found[n]) for n in row) + _BAR for row in rows]
    columns = min(_COLUMNS, len(cases))
    width = _LEFT + columns * _PANEL + (columns - 1) * _GAP + _RIGHT
    height = _TOP + sum(heights) + (len(rows) - 1) * _BETWEEN + _BOTTOM + 0.3
    figure = new_figure(width, height)
    top = height - _TOP
    for row, high in zip(rows, heights, strict=True):
        for column, n in enumerate(row):
            ax = place(figure, _LEFT + column * (_PANEL + _GAP), top - high, _PANEL, high)
            _draw(ax, cases[n], found[n], ideal_seconds(cases[n], floors))
        top -= high + _BETWEEN
    machine = results.get("machine", {})
    date = str(results.get("date", ""))[:10]
    text = f"{machine.get('cpu', '')}, {machine.get('cpus', '?')} CPUs, {date}"
    figure.text(0.5, 1 - 0.3 / height, text, ha="center", fontsize=11)
    figure.savefig(path)


def _scale_by_logarithms(ax: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_xscale("log")
    # Labels such as 2 x 10^-1 for each line would run into each other.
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _draw(
    ax: "Axes", case: Mapping[str, Any], found: Sequence[Standing], ideal: float | None
) -> None:
    places = range(len(found))
    seconds = [one.seconds for one in found]
    spread = [[one.seconds - one.low for one in found], [one.high - one.seconds for one in found]]
    colours = [_OURS if one.way.startswith("gpublocks") else _PEER for one in found]
    ax.barh(places, seconds, color=colours, height=0.7)
    ax.errorbar(seconds, places, xerr=spread, fmt="none", ecolor="black", elinewidth=1, capsize=2)
    longest = max(one.high for one in found)
    if longest > _LOG * min(seconds):
        _scale_by_logarithms(ax)
        ax.set_xlim(0.5 * min([*seconds, *([ideal] if ideal else [])]), 2.5 * longest)
    else:
        ax.set_xlim(0, 1.2 * longest)
    for n, one in enumerate(found):
        ax.annotate(
            f" {one.seconds:.3g}", (one.high, n), xytext=(3, 0), textcoords="offset points",
            va="center", fontsize=8,
        )  # fmt: skip
    if ideal:
        ax.axvline(ideal, color=_IDEAL, linestyle="--", linewidth=1)
        ax.annotate("ideal", (ideal, 1), xycoords=("data", "axes fraction"), xytext=(2, 1),
                    textcoords="offset points", color=_IDEAL, fontsize=8, va="bottom")  # fmt: skip
    ax.set_yticks(places, [one.way for one in found], fontsize=9)
    ax.invert_yaxis()
    shape = " x ".join(map(str, case["parameters"]["shape"]))
    ax.set_title(f"{case['name']}  ({shape})", fontsize=10, loc="right", pad=10)
    ax.set_xlabel("seconds", fontsize=8, labelpad=1)
    ax.tick_params(axis="x", labelsize=8)
