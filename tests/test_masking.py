"""Masks at a fraction of the resolution, compared with the mask at full resolution."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.grid import Grid
from gpublocks.masking import Mask
from gpublocks.splitting import split_axis


@st.composite
def masks(draw):
    shape = tuple(draw(st.lists(st.integers(1, 14), min_size=1, max_size=3)))
    factors = [draw(st.integers(1, length)) for length in shape]
    coarse = [-(-length // factor) for length, factor in zip(shape, factors, strict=True)]
    bits = draw(st.integers(0, 2 ** min(60, int(np.prod(coarse))) - 1))
    array = np.zeros(coarse, bool)
    for n in range(array.size):
        array.flat[n] = bits >> (n % 60) & 1
    sizes = [draw(st.integers(1, length)) for length in shape]
    splits = [split_axis(n, size_max=size) for n, size in zip(shape, sizes, strict=True)]
    return array, factors, Grid(shape, tuple(range(len(shape))), tuple(splits))


@settings(max_examples=300, deadline=None)
@given(masks())
def test_cells_with_anything_inside_are_found(case):
    array, factors, grid = case
    mask = Mask.of(array, grid.shape)
    exact = all(fewest == most for fewest, most in mask.factors)
    fine = array
    for axis, (factor, length) in enumerate(zip(factors, grid.shape, strict=True)):
        assert mask.factors[axis][0] <= factor <= mask.factors[axis][1]
        fine = np.repeat(fine, factor, axis=axis).take(range(length), axis=axis)
    for cell in grid:
        inside = fine[cell.valid_in(grid.shape).slices].any()
        assert mask.holds(cell) == inside if exact else mask.holds(cell) >= inside


@pytest.mark.parametrize(
    ("shape", "coarse", "factors"),
    [
        ((10, 10), (10, 10), ((1, 1), (1, 1))),
        ((10, 10), (5, 1), ((2, 2), (10, 10))),
        ((10, 10), (4, 3), ((3, 3), (4, 4))),
        ((10, 0), (5, 0), ((2, 2), (1, 1))),
        ((1,), (1,), ((1, 1),)),
        ((2000,), (32,), ((63, 64),)),
    ],
)
def test_factors(shape, coarse, factors):
    assert Mask.of(np.zeros(coarse, bool), shape).factors == factors


@pytest.mark.parametrize(
    ("shape", "coarse"),
    [
        ((10, 10), (6, 10)),
        ((10, 10), (11, 10)),
        ((10, 10), (10,)),
        ((10, 10), (10, 10, 1)),
        ((10, 10), (0, 10)),
        ((0, 10), (1, 10)),
        ((10, 10), ()),
    ],
)
def test_other_shapes_are_refused(shape, coarse):
    expected = rf"shape {re.escape(str(coarse))} .*no integer fraction.*{re.escape(str(shape))}"
    with pytest.raises(PlanError, match=expected):
        Mask.of(np.zeros(coarse, bool), shape)


@pytest.mark.parametrize("dtype", [np.uint8, float, "U1", object])
def test_only_bools_are_a_mask(dtype):
    with pytest.raises(ArgumentTypeError, match=r"give an array of bool"):
        Mask.of(np.zeros((2, 2), dtype), (2, 2))
