"""Slicings are compared with NumPy itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpublocks.errors import PlanError
from gpublocks.slicing import (
    simplify,
    sliced_shape,
    sliced_slicing,
    slicing_text,
    slicing_within,
    unpack_slicing,
)

shapes = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


@st.composite
def slicings(draw, shape, *, array=False):
    """Any slicing of an array of a shape, at times with fewer indices, an Ellipsis, NumPy ints."""
    indices = []
    for n in shape:
        bound = st.none() | st.integers(-n - 2, n + 2)
        step = st.none() | st.integers(-3, 3).filter(bool)
        kinds = [st.builds(slice, bound, bound, step)]
        if n:
            kinds += [st.integers(-n, n - 1), st.integers(-n, n - 1).map(np.int64)]
        indices.append(draw(st.one_of(kinds)))
    if array and shape:
        axis = draw(st.integers(0, len(shape) - 1))
        n = shape[axis]
        positions = st.lists(st.integers(-n, n - 1), max_size=5) if n else st.just([])
        mask = st.lists(st.booleans(), min_size=n, max_size=n).map(np.array)
        mask = mask.map(lambda m: m.astype(bool))
        indices[axis] = draw(positions | positions.map(lambda p: np.array(p, int)) | mask)
    where = draw(st.none() | st.integers(0, len(indices)))
    if where is not None:
        until = draw(st.integers(where, len(indices)))
        indices[where:until] = [...]
    if len(indices) == 1 and draw(st.booleans()):
        return indices[0]
    return tuple(indices)


def volume(shape):
    return np.arange(np.prod(shape)).reshape(shape)


@settings(deadline=None)
@given(data=st.data(), shape=shapes)
def test_one_slicing_does_the_same_as_two(data, shape):
    a = volume(shape)
    first = data.draw(slicings(shape))
    second = data.draw(slicings(a[first].shape))
    both = sliced_slicing(second, first, shape)
    assert len(both) == a.ndim
    assert np.array_equal(a[both], a[first][second])


@settings(deadline=None)
@given(data=st.data(), shape=shapes, which=st.integers(0, 1))
def test_one_index_array_composes_or_is_refused(data, shape, which):
    a = volume(shape)
    first = data.draw(slicings(shape, array=which == 0))
    try:
        unpack_slicing(first, a.ndim)
    except PlanError:
        return
    second = data.draw(slicings(a[first].shape, array=which == 1))
    try:
        both = sliced_slicing(second, first, shape)
    except PlanError:
        return
    assert np.array_equal(a[both], a[first][second])


@settings(deadline=None)
@given(data=st.data(), shape=shapes)
def test_simplified_and_unpacked_slicings_show_the_same(data, shape):
    a = volume(shape)
    slicing = data.draw(slicings(shape))
    simple = simplify(slicing, shape)
    assert np.array_equal(a[simple], a[slicing])
    assert np.array_equal(a[unpack_slicing(slicing, a.ndim)], a[slicing])
    assert sliced_shape(slicing, shape) == a[slicing].shape
    assert simplify(simple, shape) == simple
    assert all(type(part) in (int, slice) for part in simple)


@settings(deadline=None)
@given(data=st.data(), shape=shapes)
def test_a_slicing_of_a_box_reaches_the_box_only(data, shape):
    a = volume(shape)
    ends = [sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n)))) for n in shape]
    box = tuple(slice(lo, hi) for lo, hi in ends)
    slicing = data.draw(slicings(shape))
    inside = np.isin(a[slicing], a[box]).all()
    try:
        moved = slicing_within(slicing, shape, box)
    except IndexError:
        # A slicing without voxels may still name rows outside of the box.
        assert not inside or np.size(a[slicing]) == 0
        return
    assert np.array_equal(a[box][moved], a[slicing])


def test_simplified_form():
    assert simplify(slice(0, 28), (50,)) == (slice(None, 28, None),)
    assert simplify((slice(0, 50, 1), slice(3, 9)), (50, 9)) == (slice(None), slice(3, None))
    assert simplify(slice(-1, None, -1), (7,)) == (slice(None, None, -1),)
    assert simplify(-1, (7,)) == (6,)


def test_text():
    assert slicing_text((slice(None), slice(None), slice(0, 38))) == "(:,:,0:38)"
    assert slicing_text((3, slice(5, None, -2), ...)) == "(3,5::-2,...)"
    assert slicing_text(np.array([1, 2])) == "([2 positions])"


@pytest.mark.parametrize("slicing", [5, (0, -6), (slice(None), 5)])
def test_an_int_outside_of_the_array(slicing):
    with pytest.raises(IndexError, match="out of bounds for an axis of 5"):
        sliced_slicing(slicing, ..., (5, 5))


@pytest.mark.parametrize("slicing", [(0, 0, 0), (..., ...), (0, ..., 0, 0)])
def test_too_many_indices(slicing):
    with pytest.raises(IndexError, match=r"indices for an array of 2 axes|one Ellipsis"):
        unpack_slicing(slicing, 2)


@pytest.mark.parametrize(
    ("slicing", "message"),
    [
        (None, "holds None"),
        (True, "holds True"),
        (1.5, "1.5 .float."),
        ("x", "'x' .str."),
        (np.zeros((2, 2), bool), "index array of shape .2, 2."),
        ([0.5], "float64"),
        (([0], [1]), "2 index arrays"),
        (([0], slice(None), 1), "not next to it"),
        ((0, [0], ..., 0), "not next to it"),
    ],
)
def test_what_is_no_slicing_is_refused(slicing, message):
    with pytest.raises(PlanError, match=message):
        unpack_slicing(slicing, 3)
