"""Regions and cells: boxes of voxels as NumPy sees them."""

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from gpublocks.geometry import Cell, Region

SHAPE = (4, 5, 6)


@st.composite
def regions(draw, shape=SHAPE):
    pairs = [sorted(draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    return Region(tuple(lo for lo, _ in pairs), tuple(hi for _, hi in pairs))


@given(array_shapes(min_dims=1, max_dims=4, min_side=0))
def test_the_whole_region_is_the_whole_array(shape):
    whole = Region.whole(list(shape))
    array = np.arange(np.prod(shape)).reshape(shape)
    assert np.array_equal(array[whole.slices], array)
    assert (whole.shape, whole.size, whole.ndim) == (array.shape, array.size, array.ndim)


@given(regions())
def test_a_region_is_what_its_slices_cut_out(region):
    cut = np.zeros(SHAPE)[region.slices]
    assert region.shape == cut.shape
    assert region.size == cut.size
    assert all(s.step is None for s in region.slices)


@given(regions(), regions())
def test_a_region_within_another_is_the_same_voxels(outer, inner):
    voxels = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    if not outer.contains(inner):
        return
    found = voxels[outer.slices][inner.within(outer).slices]
    assert np.array_equal(found, voxels[inner.slices])
    assert inner.within(outer).shape == inner.shape


@given(regions(), regions())
def test_a_region_contains_what_it_covers(outer, inner):
    covered = np.zeros(SHAPE, bool)
    covered[outer.slices] = True
    if inner.size:
        assert outer.contains(inner) == covered[inner.slices].all()
    assert outer.contains(outer)


def test_a_cell_completes_its_ranges_for_any_array():
    cell = Cell(5, (1, 0, 2), (0, 2), ((2, 9), (10, 20)), ((3, 8), (12, 20)))
    assert cell.read_in((12, 7, 30)) == Region((2, 0, 10), (9, 7, 20))
    assert cell.valid_in((12, 7, 30)) == Region((3, 0, 12), (8, 7, 20))
    assert cell.valid_in((12, 1, 30, 2)) == Region((3, 0, 12, 0), (8, 1, 20, 2))


@given(st.data())
def test_the_crop_of_what_is_read_is_what_is_valid(data):
    axes = data.draw(st.sampled_from([(0,), (1,), (0, 2), (0, 1, 2)]))
    read, valid = [], []
    for axis in axes:
        edges = data.draw(st.lists(st.integers(0, SHAPE[axis]), min_size=4, max_size=4))
        lower, lo, hi, upper = sorted(edges)
        read.append((lower, upper))
        valid.append((lo, hi))
    cell = Cell(0, (0, 0, 0), axes, tuple(read), tuple(valid))
    voxels = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    block = voxels[cell.read_in(SHAPE).slices]
    assert np.array_equal(block[cell.crop(3)], voxels[cell.valid_in(SHAPE).slices])


def test_regions_and_cells_are_values():
    cell = Cell(0, (0,), (0,), ((0, 2),), ((0, 1),))
    assert pickle.loads(pickle.dumps(cell)) == cell
    assert len({Region.whole((2, 3)), Region((0, 0), (2, 3))}) == 1
