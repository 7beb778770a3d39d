"""Pictures of plans: blocks over planes of the volume. Touches the source, matplotlib, one file."""

import os
from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

from gpublocks.contracts import Source
from gpublocks.errors import PlanError
from gpublocks.geometry import Cell
from gpublocks.grid import Grid
from gpublocks.masking import Mask
from gpublocks.picture import (
    aspect_of,
    check_path,
    draw_panel,
    grey_limits,
    new_figure,
    place,
)
from gpublocks.viewing import maximum_panels, plane_panels, scene_of, views_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_grid"]

_PANEL, _GAP, _LEFT, _TOP, _BOTTOM = 5.2, 0.8, 0.8, 0.9, 1.3
"""Inches: a panel, what is between and around panels."""
_TALLEST, _FLATTEST = 1.5, 0.15
_READ, _VALID, _BORDER, _UNIT, _SKIPPED = "#ffb000", "#00d5ff", "#b8b8b8", "#ee6677", "#cc3311"
_MOST_LINES = 400
"""More borders or units than that make a panel grey, and are not drawn."""


def draw_grid(
    grid: Grid,
    source: Source,
    *,
    mask: Mask | None = None,
    unit: Sequence[int] = (),
    block: int | None = None,
    maximum: bool = False,
    path: str | os.PathLike[str] | None = None,
) -> Any:
    """Draw blocks over the planes in which one of them lies, or over the maximum of the volume.

    Parameters
    ----------
    grid : Grid
    source : Source
    mask : Mask, optional
        Blocks with nothing inside are hatched.
    unit : sequence of int
        Write unit of the sinks for each axis, drawn within the block.
    block : int, optional
        Number of the block of which it is shown what is read and what is written; by default one
        in the middle.
    maximum : bool
        Whether the maximum along each axis is shown, for which all of the source is read.
    path : path, optional
        File to write.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    GpublocksError
        If matplotlib is not installed.
    PlanError
        If there is no such block, or the source has no two axes.
    SinkError
        If the file cannot be written.
    """
    if path is not None:
        check_path(os.fspath(path))
    cell = _chosen(grid, block)
    valid = cell.valid_in(grid.shape)
    middles: dict[int | str, int] = {
        axis: (lo + hi) // 2
        for axis, (lo, hi) in enumerate(zip(valid.start, valid.stop, strict=True))
    }
    scene = scene_of(source, middles)
    panels = maximum_panels(scene) if maximum else plane_panels(scene)
    aspects = [min(_TALLEST, max(_FLATTEST, aspect_of(panel))) for panel in panels]
    high = _PANEL * max(aspects)
    figure = new_figure(2 * _LEFT + len(panels) * (_PANEL + _GAP) - _GAP, _BOTTOM + high + _TOP)
    limits = grey_limits([panel.image for panel in panels])
    for n, (panel, (_, down, across)) in enumerate(zip(panels, views_of(scene), strict=True)):
        ax = place(figure, _LEFT + n * (_PANEL + _GAP), _BOTTOM, _PANEL, high)
        draw_panel(ax, panel, limits)
        ax.set_title(panel.text, fontsize=12)
        _draw_borders(ax, grid, down, across)
        _draw_skipped(ax, grid, cell, mask, (down, across))
        _draw_units(ax, cell, grid.shape, unit, (down, across))
        _draw_block(ax, cell, grid.shape, (down, across))
        if n == 0:
            handles, labels = ax.get_legend_handles_labels()
    counts, read = (" x ".join(map(str, n)) for n in (grid.counts, cell.read_in(grid.shape).shape))
    title = f"{len(grid)} blocks ({counts}); block {cell.number} reads {read} voxels"
    figure.text(0.5, 1 - 0.32 / figure.get_figheight(), title, ha="center", fontsize=14)
    figure.legend(handles, labels, loc="lower center", ncols=5, frameon=False)
    if path is not None:
        figure.savefig(path)
    return figure


def _chosen(grid: Grid, block: int | None) -> Cell:
    if not len(grid):
        raise PlanError(f"a grid of shape {grid.shape} has no blocks to draw")
    number = grid.number([count // 2 for count in grid.counts]) if block is None else block
    if not 0 <= number < len(grid):
        raise PlanError(f"block is {block}; give a number from 0 to {len(grid) - 1}")
    return grid[number]


def _draw_borders(ax: "Axes", grid: Grid, down: int, across: int) -> None:
    for axis, split in zip(grid.axes, grid.splits, strict=True):
        if axis in (down, across) and split.count <= _MOST_LINES:
            line = ax.axhline if axis == down else ax.axvline
            for k in range(1, split.count):
                line(split.border(k) - 0.5, color=_BORDER, linewidth=1.0)
    ax.plot([], [], color=_BORDER, linewidth=1.0, label="borders of valid regions")


def _draw_skipped(
    ax: "Axes", grid: Grid, cell: Cell, mask: Mask | None, shown: tuple[int, int]
) -> None:
    """Hatch the blocks in the planes of a block that have nothing inside the mask."""
    if mask is None:
        return
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    look: dict[str, Any] = {"facecolor": "none", "edgecolor": _SKIPPED, "hatch": "///"}
    skipped = [
        other.valid_in(grid.shape) for other in _beside(grid, cell, shown) if not mask.holds(other)
    ]
    if skipped:
        # One patch: each is hatched by itself, which takes long for many.
        corners = [_corners(region, shown) for region in skipped]
        codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(skipped)
        path = Path([corner for box in corners for corner in (*box, box[0])], codes)
        # Above the borders; an artist, since the limits of a patch are sought corner by corner.
        ax.add_artist(PathPatch(path, linewidth=0, alpha=0.6, zorder=2.5, **look))
    ax.fill_between([], [], label="skipped: nothing in the mask", **look)


def _beside(grid: Grid, cell: Cell, shown: tuple[int, int]) -> Iterator[Cell]:
    """Yield the blocks that lie in the same planes as one, if they are not too many."""
    ranges = [
        range(count) if axis in shown else [at]
        for axis, (count, at) in enumerate(zip(grid.counts, cell.index, strict=True))
    ]
    if prod(map(len, ranges)) <= _MOST_LINES**2:
        yield from (grid[grid.number(index)] for index in product(*ranges))


def _draw_units(
    ax: "Axes", cell: Cell, shape: Sequence[int], unit: Sequence[int], shown: tuple[int, int]
) -> None:
    """Draw the borders of the write units within what a block writes."""
    if not any(length > 1 for length in unit):
        return
    valid = cell.valid_in(shape)
    down, across = shown
    for axis in shown:
        lo, hi = valid.start[axis], valid.stop[axis]
        inside = range((lo // unit[axis] + 1) * unit[axis], hi, unit[axis])
        other = across if axis == down else down
        ends = (valid.start[other] - 0.5, valid.stop[other] - 0.5)
        if len(inside) <= _MOST_LINES:
            lines = ax.hlines if axis == down else ax.vlines
            lines([at - 0.5 for at in inside], *ends, color=_UNIT, linewidth=0.8, zorder=4)
    ax.plot([], [], color=_UNIT, linewidth=0.8, label="units that are written as one")


def _draw_block(ax: "Axes", cell: Cell, shape: Sequence[int], shown: tuple[int, int]) -> None:
    for region, label, colour, shade in (
        (cell.read_in(shape), "read, with context", _READ, 0.25),
        (cell.valid_in(shape), "valid: written", _VALID, 0.0),
    ):
        look: dict[str, Any] = {
            "facecolor": (colour, shade),
            "edgecolor": colour,
            "linewidth": 2.0,
            "zorder": 3,
        }
        ax.add_patch(_box(region, shown, label=label, **look))


def _corners(region: Any, shown: tuple[int, int]) -> list[tuple[float, float]]:
    down, across = shown
    (top, bottom), (left, right) = (
        (region.start[axis] - 0.5, region.stop[axis] - 0.5) for axis in (down, across)
    )
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _box(region: Any, shown: tuple[int, int], **look: Any) -> Any:
    from matplotlib.patches import Rectangle

    down, across = shown
    corner = region.start[across] - 0.5, region.start[down] - 0.5
    return Rectangle(corner, region.shape[across], region.shape[down], **look)
