"""Pictures of who did what when. Touches matplotlib and one file."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpublocks.errors import GpublocksError, PlanError, SinkError
from gpublocks.gaps import TURN, gaps_of
from gpublocks.records import Record
from gpublocks.spans import DOING, STEPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

_COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677")
"""Of the steps: a palette that colour-blind people can tell apart (P. Tol, SRON/EPS/TN/09-002)."""
_NOBODY = "#bbbbbb"
_INCIDENT = "#aa3377"
_WAIT_COLOURS = {TURN: _NOBODY, **dict(enumerate(_COLOURS))}
_WIDTH, _LANE, _MARGIN = 14.0, 0.36, 1.9
"""Inches: the picture, a lane, what is above and below the lanes of a run."""
_MOST_LANES = 64
_MOST_RUNS = 20
_LONG = 300
"""Letters of a title."""
_PIXELS = 2000
"""Along the time: what is shorter than one of them is drawn together with what lies beside it."""


def draw(records: Sequence[Record], path: str | os.PathLike[str] | None = None) -> "Figure":
    """Draw runs below each other, each with a lane for whoever did something.

    Raises
    ------
    GpublocksError
        If matplotlib is not installed.
    PlanError
        If there is no run.
    SinkError
        If the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise GpublocksError("pictures need matplotlib: pip install 'gpublocks[plot]'") from error
    if not records:
        raise PlanError("no run was recorded, so that there is nothing to draw")
    left_out = len(records) - _MOST_RUNS
    records = records[:_MOST_RUNS]
    heights = [_MARGIN + _LANE * max(1, min(_MOST_LANES, len(r.spans.lanes))) for r in records]
    figure = Figure(figsize=(_WIDTH, sum(heights)), dpi=100, layout="constrained")
    axes = figure.subplots(len(heights), squeeze=False, gridspec_kw={"height_ratios": heights})
    for record, (ax,) in zip(records, axes, strict=True):
        _draw_run(ax, record)
    if left_out > 0:
        figure.suptitle(f"the first {_MOST_RUNS} runs; {left_out} more are not shown", fontsize=10)
    _draw_legend(figure)
    if path is not None:
        try:
            figure.savefig(os.fspath(path))
        except (OSError, ValueError) as error:
            raise SinkError(f"cannot write {os.fspath(path)}: {error}") from error
    return figure


def _draw_run(ax: "Axes", record: Record) -> None:
    """Draw the lanes of a run: spans as bars, and thinner ones for what is waited for."""
    table = record.spans.table
    lanes = record.spans.lanes[:_MOST_LANES]
    shown = max(record.seconds, 1e-9)
    gaps = gaps_of(record.spans)
    pixel = shown / _PIXELS
    for lane in range(len(lanes)):
        for step, colour in _WAIT_COLOURS.items():
            chosen = (gaps.lane == lane) & (gaps.step == step)
            bars = _bars(gaps.start[chosen], gaps.stop[chosen], pixel)
            ax.broken_barh(bars, (lane - 0.12, 0.24), facecolor=colour, alpha=0.45, linewidth=0)
        for step, colour in enumerate(_COLOURS):
            chosen = (table.lane == lane) & (table.step == step)
            bars = _bars(table.start[chosen], table.stop[chosen], pixel)
            ax.broken_barh(bars, (lane - 0.4, 0.8), facecolor=colour, linewidth=0)
    for incident in record.incidents:
        ax.axvline(incident.seconds, color=_INCIDENT, linewidth=0.8, linestyle=":")
    more = len(record.spans.lanes) - len(lanes)
    ax.set_yticks(range(len(lanes)), [_plain(lane) for lane in lanes])
    ax.set_ylim(len(lanes) - 0.5 if lanes else 0.5, -0.5)
    ax.set_xlim(0, shown)
    ax.set_xlabel("seconds" + (f"; {more} more lanes are not shown" if more > 0 else ""))
    sentence = record.sentence(record.verdict)
    ax.set_title(_plain(f"{record.function}: {sentence}"), loc="left", fontsize=10, wrap=True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _bars(
    starts: npt.NDArray[np.float64], stops: npt.NDArray[np.float64], pixel: float
) -> list[tuple[float, float]]:
    """Return start and length of bars, those closer than a pixel as one."""
    order = np.argsort(starts, kind="stable")
    starts, stops = starts[order], stops[order]
    if not len(starts):
        return []
    ends = np.maximum.accumulate(stops)
    first = np.concatenate([[True], starts[1:] - ends[:-1] > pixel / 2])
    last = np.concatenate([first[1:], [True]])
    return [(start, stop - start) for start, stop in zip(starts[first], ends[last], strict=True)]


def _draw_legend(figure: Any) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    patches: list[Any] = [
        Patch(facecolor=colour, label=DOING[step])
        for step, colour in zip(STEPS, _COLOURS, strict=True)
    ]
    patches += [
        Line2D([], [], color=_INCIDENT, linestyle=":", label="tried again, split or failed"),
        Patch(facecolor="#88aacc", alpha=0.45, label="thin: waiting for what has this colour"),
        Patch(facecolor=_NOBODY, alpha=0.45, label="thin: waiting for its turn"),
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8)


def _plain(text: str) -> str:
    """Return a text in which matplotlib sees no formula, and nothing that is no letter."""
    short = text if len(text) <= _LONG else f"{text[:_LONG]} ..."
    return short.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")
