"""The grid: a lazy sequence of cells whose valid regions tile the volume."""

import pickle
import tracemalloc
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpublocks.grid import Grid
from gpublocks.splitting import aligned, even_split, split_axis

some = settings(max_examples=200, deadline=None)


@st.composite
def grids(draw):
    shape = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=3)))
    axes = tuple(sorted(draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    splits = []
    for axis in axes:
        overlap = draw(st.integers(0, shape[axis] - 1))
        size_max = draw(st.integers(overlap + 1, shape[axis]))
        fixed = draw(st.sampled_from([None, "fixed"]))
        splits.append(split_axis(shape[axis], size_max=size_max, overlap=overlap, size_min=fixed))
    return Grid(shape, axes, tuple(splits))


@some
@given(grids())
def test_valid_regions_tile_the_volume(grid):
    seen = np.zeros(grid.shape, int)
    for cell in grid:
        read, valid = cell.read_in(grid.shape), cell.valid_in(grid.shape)
        assert read.contains(valid)
        assert valid.size > 0
        seen[valid.slices] += 1
    assert (seen == 1).all()


@some
@given(grids())
def test_cells_come_in_c_order(grid):
    cells = list(grid)
    assert len(cells) == len(grid) == prod(grid.counts)
    assert [cell.index for cell in cells] == list(np.ndindex(*grid.counts))
    assert [cell.number for cell in cells] == list(range(len(grid)))
    assert [grid[n] for n in range(len(grid))] == cells
    assert [grid.number(cell.index) for cell in cells] == list(range(len(grid)))


@some
@given(grids(), st.integers(-100, 100), st.slices(40))
def test_a_grid_is_indexed_like_a_list(grid, number, slicing):
    cells = list(grid)
    assert list(grid[slicing]) == cells[slicing]
    assert list(reversed(grid)) == cells[::-1]
    if -len(cells) <= number < len(cells):
        assert grid[number] == cells[number]
        assert grid[np.int64(number)] == cells[number]
    else:
        with pytest.raises(IndexError):
            grid[number]


@some
@given(grids())
def test_sums_over_all_cells(grid):
    shapes = [cell.read_in(grid.shape).shape for cell in grid]
    assert grid.read_voxels == sum(prod(shape) for shape in shapes)
    assert grid.largest == tuple(max(lengths) for lengths in zip(*shapes, strict=True))


@pytest.mark.parametrize(
    "splits",
    [
        {0: split_axis(2_000_010, size_max=12, overlap=10)},
        {0: aligned(split_axis(16_000_010, size_max=26, overlap=10), 8, None)},
        {0: even_split(100, 100, 0), 1: even_split(120, 100, 20), 2: even_split(300, 100, 1)},
    ],
)
def test_a_million_cells_are_never_all_there(splits):
    shape = tuple(splits[axis].size if axis in splits else 7 for axis in range(3))
    tracemalloc.start()
    try:
        grid = Grid(shape, tuple(splits), tuple(splits.values()))
        assert len(grid) == 1_000_000
        assert grid[-1].number == 999_999
        assert grid.number(grid[123_456].index) == 123_456
        assert grid.read_voxels > prod(shape)
        assert prod(grid.largest) < prod(shape)
        assert next(iter(grid)).number == 0
        assert len(pickle.dumps(grid)) < 2000
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_numbers_are_plain_integers():
    grid = Grid((10, 3), (0,), (split_axis(np.int64(10), size_max=np.int32(4), overlap=1),))
    cell = grid[np.uint8(1)]
    numbers = [cell.number, *cell.index, *cell.read[0], *cell.valid[0], *grid.counts]
    assert {type(number) for number in numbers} == {int}
