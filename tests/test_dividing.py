"""Halves of cells and pieces of regions: nothing twice, nothing left out, nothing out of step."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import ndimage

from gpublocks.dividing import common_unit, halves, pieces
from gpublocks.errors import PlanError
from gpublocks.geometry import Cell, Region
from gpublocks.grid import Grid
from gpublocks.splitting import aligned, split_axis


@st.composite
def cells(draw):
    """Return a cell of a random grid, the context of its axes, and the write unit."""
    shape = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    splits, unit = [], []
    for size in shape:
        overlap = draw(st.integers(0, min(6, size - 1)))
        size_max = draw(st.integers(overlap + 1, size))
        split = split_axis(size, size_max=size_max, overlap=overlap, optimization=False)
        unit.append(draw(st.integers(1, 4)))
        try:
            splits.append(aligned(split, unit[-1], None))
        except PlanError:
            unit[-1] = 1
            splits.append(split)
    grid = Grid(tuple(shape), tuple(range(len(shape))), tuple(splits))
    cell = grid[draw(st.integers(0, len(grid) - 1))]
    context = {axis: (split.overlap + 1) // 2 for axis, split in enumerate(splits)}
    return grid, cell, context, unit


def all_parts(cell, context, unit):
    found = halves(cell, context, unit)
    if found is None:
        return [cell]
    return [part for half in found for part in all_parts(half, context, unit)]


@given(cells())
def test_parts_tile_the_cell_on_units(drawn):
    grid, cell, context, unit = drawn
    count = np.zeros(grid.shape, int)
    for part in all_parts(cell, context, unit):
        assert part.number == cell.number
        count[part.valid_in(grid.shape).slices] += 1
        for axis, (lo, hi) in enumerate(part.valid):
            assert lo in (cell.valid[axis][0], lo // unit[axis] * unit[axis])
            assert hi in (cell.valid[axis][1], hi // unit[axis] * unit[axis])
    valid = np.zeros(grid.shape, int)
    valid[cell.valid_in(grid.shape).slices] = 1
    np.testing.assert_array_equal(count, valid)


@given(cells())
def test_parts_read_less_and_keep_the_context(drawn):
    grid, cell, context, unit = drawn
    found = halves(cell, context, unit)
    assume(found is not None)
    for part in found:
        whole, read = cell.read_in(grid.shape), part.read_in(grid.shape)
        assert whole.contains(read)
        assert read.size < whole.size
        for axis, ((lo, hi), (a, b)) in enumerate(zip(part.read, part.valid, strict=True)):
            assert lo <= max(cell.read[axis][0], a - context[axis])
            assert hi >= min(cell.read[axis][1], b + context[axis])


@given(cells(), st.data())
def test_parts_have_the_voxels_of_the_whole(drawn, data):
    grid, cell, context, unit = drawn
    size = [2 * (split.overlap // 2) + 1 for split in grid.splits]
    image = np.random.default_rng(0).integers(0, 100, grid.shape)
    expected = ndimage.maximum_filter(image, size)
    for part in all_parts(cell, context, unit):
        block = ndimage.maximum_filter(image[part.read_in(grid.shape).slices], size)
        np.testing.assert_array_equal(
            block[part.crop(image.ndim)], expected[part.valid_in(grid.shape).slices]
        )


def test_a_cell_that_cannot_be_cut_has_no_halves():
    assert halves(Cell(0, (0,), (0,), ((0, 1),), ((0, 1),)), {0: 0}, [1]) is None
    assert halves(Cell(0, (0,), (0,), ((0, 8),), ((2, 6),)), {0: 4}, [1]) is None
    assert halves(Cell(0, (0,), (0,), ((0, 8),), ((0, 8),)), {0: 0}, [8]) is None
    assert halves(Cell(0, (0, 0), (), (), ()), {}, [1, 1]) is None


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(1, 3)), min_size=1, max_size=3
    ),
    st.integers(1, 60),
    st.sampled_from("CF"),
)
def test_pieces_tile_the_region_on_units(axes, size, order):
    unit = [u for _, _, u in axes]
    region = Region(tuple(lo * u for lo, _, u in axes), tuple(lo * u + n for lo, n, u in axes))
    count = np.zeros([max(1, stop) for stop in region.stop], int)
    found = pieces(region, size, order, unit)
    for piece in found:
        count[piece.slices] += 1
        for axis, start in enumerate(piece.start):
            assert start == region.start[axis] or start % unit[axis] == 0
    assert count.sum() == region.size == count[region.slices].sum()
    assert count.max(initial=0) <= 1
    slowest = region.shape[0 if order == "C" else -1]
    if unit == [1] * len(unit) and slowest >= region.size / size:
        assert max(piece.size for piece in found) <= 2 * size + region.size // max(1, slowest)


@given(st.lists(st.lists(st.integers(1, 6), min_size=2, max_size=3), max_size=3))
def test_common_unit_is_a_multiple_of_all(units):
    common = common_unit(units, 2)
    for unit in units:
        assert all(a % b == 0 for a, b in zip(common, unit, strict=False))
    assert common == tuple(np.lcm.reduce([1, *(u[n] for u in units)]) for n in range(2))
