"""Pictures of runs (before, after, the blocks) and of sources. Touches matplotlib and one file."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpublocks.errors import GpublocksError, PlanError, SinkError
from gpublocks.geometry import Cell, Range
from gpublocks.grid import Grid
from gpublocks.viewing import Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.patheffects import AbstractPathEffect

__all__ = [
    "aspect_of",
    "check_path",
    "draw_panel",
    "grey_limits",
    "new_figure",
    "place",
    "save_before_after",
    "save_panels",
]

Array = npt.NDArray[Any]

_DPI = 100
# Inches: the width of the picture, its margins, and where the colour bars and the legend are.
_WIDTH, _LEFT, _GAP, _TOP, _TITLE, _BOTTOM, _BAR = 18.0, 0.75, 0.55, 0.70, 0.45, 1.25, 0.42
_PANEL = (_WIDTH - 2 * _LEFT - 2 * _GAP) / 3
_LABELS, _COLOUR_BAR, _FLATTEST, _TALLEST = 0.7, 0.4, 0.15, 1.5
_SYMBOLS = {"um": "\N{MICRO SIGN}m", "micrometer": "\N{MICRO SIGN}m", "millimeter": "mm"}
_READ_COLOUR = "#ffb000"
_VALID_COLOUR = "#00d5ff"
_BORDER_COLOUR = "#b8b8b8"


def save_before_after(
    path: str | os.PathLike[str],
    before: Array,
    after: Array,
    grid: Grid,
    *,
    title: str = "",
    labels: tuple[str, str] = ("before", "after"),
    axes_names: Sequence[str] = "zyx",
    axis: int = 0,
    thickness: int = 1,
    block: int | None = None,
) -> None:
    """Save a PNG of three panels: the volume before, the result, and the blocks between them.

    Parameters
    ----------
    path : path
        File to write.
    before, after : array
        Three axes each, of one shape: that of the grid. Only the planes shown are read.
    grid : Grid
        Its valid borders are drawn, and of one block what it reads and what it writes.
    title : str
        Text over the panels.
    labels : (str, str)
        Titles of the first two panels.
    axes_names : sequence of str
        Names of the three axes.
    axis : int
        Axis that is looked along.
    thickness : int
        Planes in the middle of that axis over which the maximum is taken.
    block : int, optional
        Number of the block to show; by default one in the middle.

    Raises
    ------
    GpublocksError
        If matplotlib is not installed.
    PlanError
        If the shapes do not fit each other, or the block does not exist.
    """
    _check(before, after, grid, axis, block)
    rows, columns = [n for n in range(3) if n != axis]
    planes = _middle(grid.shape[axis], thickness)
    images = [_project(volume, axis, planes) for volume in (before, after)]
    cell = grid[_middle_block(grid) if block is None else block]
    aspect = min(2.0, max(0.3, grid.shape[rows] / grid.shape[columns]))
    top = _TOP + (_TITLE if title else 0)
    figure = new_figure(_WIDTH, _BOTTOM + _PANEL * aspect + top)
    where = f"{axes_names[axis]} = {planes[0]}"
    if planes[1] - planes[0] > 1:
        where = f"maximum over {axes_names[axis]} = {planes[0]} to {planes[1] - 1}"
    texts = [*[f"{label}\n{where}" for label in labels], _blocks_text(grid, cell)]
    for n, (image, text) in enumerate(zip((*images, images[0]), texts, strict=True)):
        left = _LEFT + n * (_PANEL + _GAP)
        ax = place(figure, left, _BOTTOM, _PANEL, _PANEL * aspect)
        shown = _show(ax, image)
        ax.set_title(text, fontsize=13)
        ax.set_xlabel(f"{axes_names[columns]} (voxels)", fontsize=12)
        ax.set_ylabel(f"{axes_names[rows]} (voxels)" if n == 0 else "", fontsize=12)
        if n < 2:
            bar = place(figure, left + 0.15 * _PANEL, _BAR, 0.7 * _PANEL, 0.11)
            figure.colorbar(shown, cax=bar, orientation="horizontal", extend="both")
        else:
            _draw_grid(figure, ax, grid, cell, rows, columns)
    if title:
        figure.text(0.5, 1 - 0.32 / figure.get_figheight(), title, ha="center", fontsize=17)
    figure.savefig(path, format="png")


def save_panels(
    path: str | os.PathLike[str], rows: Sequence[tuple[str, Sequence[Panel]]], *, title: str = ""
) -> None:
    """Save a PNG of panels in rows, with their axes, and a colour bar for each row.

    Intensities are shown from the 1st to the 99.5th percentile of a row. Where spacing is known
    along both axes of a panel they are shown in proportion; where its unit is known too there is a
    scale bar.

    Parameters
    ----------
    path : path
        File to write.
    rows : sequence of (str, sequence of Panel)
        A text and the panels of each row, which are as many in all rows.
    title : str
        Text over the panels.

    Raises
    ------
    GpublocksError
        If matplotlib is not installed.
    """
    columns = max(len(panels) for _, panels in rows)
    tallest = max(aspect_of(panel) for _, panels in rows for panel in panels)
    high = _PANEL * min(_TALLEST, max(_FLATTEST, tallest))
    row_high = high + _TOP + _LABELS
    width = 2 * _LEFT + columns * (_PANEL + _GAP) + _COLOUR_BAR
    figure = new_figure(width, _TITLE + len(rows) * row_high)
    for n, (text, panels) in enumerate(rows):
        bottom = (len(rows) - 1 - n) * row_high + _LABELS
        low_high = grey_limits([panel.image for panel in panels])
        for k, panel in enumerate(panels):
            left = _LEFT + k * (_PANEL + _GAP)
            ax = place(figure, left, bottom, _PANEL, high)
            shown = draw_panel(ax, panel, low_high)
            ax.set_title(", ".join(part for part in (text, panel.text) if part), fontsize=13)
        left = _LEFT + columns * (_PANEL + _GAP) - _GAP / 2
        bar = place(figure, left, bottom + 0.1 * high, 0.15, 0.8 * high)
        figure.colorbar(shown, cax=bar, extend="both")
    figure.text(0.5, 1 - 0.3 / figure.get_figheight(), title, ha="center", fontsize=15)
    figure.savefig(path, format="png")


def check_path(path: str) -> None:
    """Check that a picture can be saved there.

    Raises
    ------
    SinkError
        If it cannot.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise SinkError(f"cannot save {path}: it is a folder")
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise SinkError(f"cannot save {path}: {folder} is no folder that can be written to")


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of a size in inches."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise GpublocksError(
            "a picture needs matplotlib, which is not installed: pip install 'gpublocks[plot]'"
        ) from error
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def aspect_of(panel: Panel) -> float:
    """Return how much taller than wide a panel is."""
    return panel.lengths[0] * _proportion(panel) / panel.lengths[1]


def _proportion(panel: Panel) -> float:
    """Return how much taller than wide a voxel is; 1 where that is not known."""
    down, across = panel.spacing
    return down / across if down and across and panel.units[0] == panel.units[1] else 1.0


def grey_limits(images: Sequence[Array]) -> tuple[float, float]:
    """Return the 1st and the 99.5th percentile of images."""
    voxels = np.concatenate([image[np.isfinite(image)].ravel() for image in images])
    low, high = np.percentile(voxels.astype(np.float64), (1, 99.5)) if voxels.size else (0.0, 1.0)
    return float(low), float(high)


def draw_panel(ax: "Axes", panel: Panel, low_high: tuple[float, float]) -> "AxesImage":
    """Show a panel with its axes, and a scale bar where spacing and unit are known."""
    rows, columns = panel.image.shape
    (down, across), (row_step, column_step) = panel.lengths, panel.steps
    extent = (-0.5, columns * column_step - 0.5, rows * row_step - 0.5, -0.5)
    shown = ax.imshow(
        panel.image.astype(np.float64),
        cmap="gray",
        vmin=low_high[0],
        vmax=low_high[1],
        interpolation="nearest",
        extent=extent,
        aspect=_proportion(panel),
    )
    ax.set(xlim=(-0.5, across - 0.5), ylim=(down - 0.5, -0.5))
    ax.set_ylabel(f"{panel.names[0]} (voxels)", fontsize=12)
    ax.set_xlabel(f"{panel.names[1]} (voxels)", fontsize=12)
    if panel.spacing[1] and panel.units[1]:
        _draw_scale(ax, across, panel.spacing[1], panel.units[1])
    return shown


def _draw_scale(ax: "Axes", voxels: int, spacing: float, unit: str) -> None:
    """Draw a bar of a round length into the lower right corner."""
    most = voxels * spacing / 4
    power = 10.0 ** np.floor(np.log10(most))
    length = power * max(n for n in (1, 2, 5) if n * power <= most)
    # Across in voxels, and down in parts of the panel, so that flat panels have room for it.
    where = ax.get_xaxis_transform()
    right = 0.96 * voxels
    line = ax.plot([right - length / spacing, right], [0.07, 0.07], transform=where)[0]
    line.set(color="white", linewidth=4, solid_capstyle="butt")
    text = f"{length:g} {_SYMBOLS.get(unit, unit)}"
    label = ax.text(right - length / spacing / 2, 0.09, text, transform=where, color="white")
    label.set(ha="center", va="bottom", fontsize=12)
    for one in (line, label):
        one.set_path_effects(_outline())


def _outline() -> "list[AbstractPathEffect]":
    """Return what makes white shapes stand out from white images."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=6, foreground="black", alpha=0.6)]


def _check(before: Array, after: Array, grid: Grid, axis: int, block: int | None) -> None:
    if len(grid.shape) != 3 or axis not in (0, 1, 2):
        raise PlanError(
            f"a picture looks along axis 0, 1 or 2 of three; given are axis {axis} "
            f"and a grid of shape {grid.shape}"
        )
    for name, volume in (("before", before), ("after", after)):
        if volume.shape != grid.shape:
            raise PlanError(
                f"{name} has shape {volume.shape}; give an array of the grid's shape {grid.shape}"
            )
    if block is not None and not 0 <= block < len(grid):
        raise PlanError(f"block is {block}; give a number from 0 to {len(grid) - 1}")


def _middle(size: int, thickness: int) -> Range:
    thickness = min(max(1, thickness), size)
    start = (size - thickness) // 2
    return start, start + thickness


def _middle_block(grid: Grid) -> int:
    return grid.number([count // 2 for count in grid.counts])


def _project(volume: Array, axis: int, planes: Range) -> Array:
    slab = volume[(slice(None),) * axis + (slice(*planes),)]
    projection: Array = np.asarray(slab).max(axis=axis).astype(np.float64)
    return projection


def place(figure: "Figure", left: float, bottom: float, width: float, height: float) -> "Axes":
    """Add axes at a place given in inches."""
    wide, high = figure.get_size_inches()
    return figure.add_axes((left / wide, bottom / high, width / wide, height / high))


def _show(ax: "Axes", image: Array) -> "AxesImage":
    """Show an image in grey, from its 1st to its 99.5th percentile."""
    finite = image[np.isfinite(image)]
    low, high = np.percentile(finite, (1, 99.5)) if finite.size else (0, 1)
    return ax.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")


def _blocks_text(grid: Grid, cell: Cell) -> str:
    split = " x ".join(str(count) for count in grid.counts)
    read = cell.read_in(grid.shape).shape
    return f"{len(grid)} blocks ({split})\nblock {cell.number} reads {read} voxels"


def _draw_grid(
    figure: "Figure", ax: "Axes", grid: Grid, cell: Cell, rows: int, columns: int
) -> None:
    """Draw the borders of all valid regions, and both regions of one block."""
    from matplotlib.patches import Rectangle

    for axis, split in zip(grid.axes, grid.splits, strict=True):
        if axis in (rows, columns):
            line = ax.axhline if axis == rows else ax.axvline
            for k in range(1, split.count):
                line(split.border(k) - 0.5, color=_BORDER_COLOUR, linewidth=1.2)
    regions = (
        (cell.read_in(grid.shape), "read (with overlap)", _READ_COLOUR, 0.25),
        (cell.valid_in(grid.shape), "valid (written)", _VALID_COLOUR, 0.0),
    )
    for region, label, colour, shade in regions:
        corner = region.start[columns] - 0.5, region.start[rows] - 0.5
        size = region.shape[columns], region.shape[rows]
        box = Rectangle(corner, *size, facecolor=(colour, shade), edgecolor=colour, linewidth=2.2)
        box.set(label=label, zorder=3)
        ax.add_patch(box)
    ax.plot([], [], color=_BORDER_COLOUR, linewidth=1.2, label="borders of valid regions")
    ax.legend(
        loc="center",
        bbox_to_anchor=(_LEFT + 2.5 * _PANEL + 2 * _GAP, _BAR + 0.05),
        bbox_transform=figure.dpi_scale_trans,
        ncols=3,
        columnspacing=1.2,
        fontsize=10.5,
        frameon=False,
    )
