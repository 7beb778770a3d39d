"""Pictures of plans: what is drawn is what the plan says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle

import gpublocks.block_processing as bp
from gpublocks import io
from gpublocks.errors import PlanError, SinkError
from gpublocks.sample import brain

IMAGE = brain((40, 60, 50))
SIZES = {"size_max": 20, "overlap": 4, "axes": "all", "optimization": False, "processes": 1}


def boxes(ax: Any, colour: str) -> list[tuple[float, ...]]:
    """Return left, bottom, width and height of the boxes with an edge of some colour."""
    from matplotlib.colors import to_rgb

    found = [p for p in ax.patches if isinstance(p, Rectangle)]
    found = [p for p in found if p.get_edgecolor()[:3] == to_rgb(colour)]
    return [(*p.get_xy(), p.get_width(), p.get_height()) for p in found]


def test_both_regions_of_a_block_are_where_the_plan_has_them() -> None:
    planned = bp.plan(np.negative, IMAGE, **SIZES)
    cell = planned.grid[11]
    figure = planned.plot(block=11)
    read, valid = (region(IMAGE.shape) for region in (cell.read_in, cell.valid_in))
    for ax, (down, across) in zip(figure.axes, ((1, 2), (0, 2), (0, 1)), strict=True):
        for region, colour in ((read, "#ffb000"), (valid, "#00d5ff")):
            (box,) = boxes(ax, colour)
            assert box == (
                region.start[across] - 0.5,
                region.start[down] - 0.5,
                region.shape[across],
                region.shape[down],
            )
        horizontal = {line.get_ydata()[0] for line in ax.lines if len(set(line.get_ydata())) == 1}
        assert horizontal == {
            planned.grid.splits[down].border(k) - 0.5 for k in range(1, planned.grid.counts[down])
        }
    middle = [(lo + hi) // 2 for lo, hi in zip(valid.start, valid.stop, strict=True)]
    assert [ax.get_title() for ax in figure.axes] == [
        f"{name} = {at}" for name, at in zip("zyx", middle, strict=True)
    ]
    assert np.array_equal(figure.axes[0].images[0].get_array(), IMAGE[middle[0]])


def test_blocks_outside_the_mask_are_hatched() -> None:
    mask = np.zeros((40, 60, 50), bool)
    mask[:10] = True
    mask[:, :10] = True
    planned = bp.plan(np.negative, IMAGE, mask=mask, **SIZES)
    figure = planned.plot(block=0)
    for ax, shown in zip(figure.axes, ((1, 2), (0, 2), (0, 1)), strict=True):
        first = planned.grid[0]
        skipped = [
            (valid.start[shown[1]] - 0.5, valid.start[shown[0]] - 0.5)
            for cell in planned.grid
            if all(a in shown or cell.index[a] == first.index[a] for a in range(3))
            and not mask[(valid := cell.valid_in(IMAGE.shape)).slices].any()
        ]
        patches = [p.get_path().vertices for p in ax.patches if p.get_hatch()]
        assert len(patches) == bool(skipped)
        hatched = np.reshape(patches, (-1, 5, 2))
        assert sorted(map(tuple, hatched[:, 0])) == sorted(skipped)
        for box, (across, down) in zip(hatched, hatched[:, 0], strict=True):
            n = [int(down + 0.5), int(across + 0.5)]
            (inside,) = [
                cell.valid_in(IMAGE.shape)
                for cell in planned.grid
                if all(a in shown or cell.index[a] == first.index[a] for a in range(3))
                and [cell.valid_in(IMAGE.shape).start[a] for a in shown] == n
            ]
            assert tuple(box[2] + 0.5) == (inside.stop[shown[1]], inside.stop[shown[0]])


def test_many_skipped_blocks_are_one_patch() -> None:
    mask = np.zeros((300, 300), bool)
    mask[0, 0] = True
    planned = bp.plan(
        np.negative, mask, mask=mask, size_max=1, overlap=0, axes="all", optimization=False
    )
    figure = planned.plot()
    (patch,) = [p for p in figure.axes[0].patches if p.get_hatch()]
    assert len(patch.get_path().vertices) == 5 * (300 * 300 - 1)


def test_write_units_are_drawn_within_the_block(tmp_path: Path) -> None:
    sink = io.zarr.Sink(tmp_path / "a.zarr", chunks=(4, 8, 8))
    planned = bp.plan(np.negative, IMAGE, sink, **SIZES)
    valid = planned.grid[0].valid_in(IMAGE.shape)
    ax = planned.plot(block=0).axes[0]
    units = [c for c in ax.collections if len(c.get_segments()) > 0]
    ends = {tuple(map(tuple, segment)) for c in units for segment in c.get_segments()}
    for axis, position in ((1, 1), (2, 0)):
        at = {start[position] for start, stop in ends if start[position] == stop[position]}
        assert at == {n - 0.5 for n in range(8, valid.stop[axis], 8)}


def test_the_maximum_is_shown_where_that_is_asked_for() -> None:
    figure = bp.plan(np.negative, IMAGE, **SIZES).plot(maximum=True)
    for ax, axis in zip(figure.axes, range(3), strict=True):
        assert np.array_equal(ax.images[0].get_array(), IMAGE.max(axis))


@pytest.mark.parametrize("name", ["plan.png", "plan.pdf"])
def test_pictures_are_saved(tmp_path: Path, name: str) -> None:
    bp.plan(np.negative, IMAGE[0], **SIZES).plot(tmp_path / name)
    assert (tmp_path / name).stat().st_size > 1000


def test_a_million_blocks_are_drawn_at_once() -> None:
    zeros = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (1000, 1000, 100), (0, 0, 0))
    planned = bp.plan(np.negative, zeros, size_max=5, overlap=0, axes="all", optimization=False)
    assert len(planned.grid) == 800_000
    assert planned.plot().axes


@pytest.mark.parametrize(
    ("image", "options", "error", "message"),
    [
        (IMAGE, {"block": 999}, PlanError, "block is 999; give a number from 0 to"),
        (IMAGE, {"block": -1}, PlanError, "block is -1"),
        (IMAGE, {"path": "no/such/folder.png"}, SinkError, "cannot save"),
        (IMAGE[0, 0], {}, PlanError, "at least two axes"),
        (IMAGE[:0], {}, PlanError, "no voxels|no blocks"),
    ],
)
def test_what_cannot_be_drawn(image: Any, options: Any, error: type, message: str) -> None:
    planned = bp.plan(np.negative, image, overlap=0, processes=1)
    with pytest.raises(error, match=message):
        planned.plot(**options)
