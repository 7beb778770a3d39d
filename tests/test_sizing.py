"""Choosing blocks: the documented sizes for each axis, and the automatic ones within a budget."""

import warnings
from dataclasses import replace
from itertools import pairwise
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpublocks import block_axes, split_into_blocks
from gpublocks.budget import Budget
from gpublocks.errors import ArgumentTypeError, BudgetError, PlanError
from gpublocks.sizing import Layout, Sizes, automatic_grid, documented_grid, normalise_axes

many = settings(max_examples=150, deadline=None)


@st.composite
def layouts(draw, units=(1, 1, 4, 7)):
    shape = tuple(draw(st.lists(st.integers(1, 200), min_size=1, max_size=3)))
    axes = draw(st.permutations(range(len(shape))))[: draw(st.integers(1, len(shape)))]
    return Layout(
        shape=shape,
        itemsize=draw(st.sampled_from([1, 2, 4, 8])),
        order=draw(st.sampled_from(["C", "F"])),
        axes=tuple(axes),
        overlap=tuple(min(draw(st.integers(0, 30)), shape[axis] - 1) for axis in axes),
        unit=tuple(draw(st.sampled_from(units)) for _ in shape),
        bytes_per_voxel=draw(st.sampled_from([8.0, 33.5])),
        fixed_bytes=draw(st.sampled_from([0, 100])),
    )


budgets = st.builds(
    Budget,
    host_bytes=st.sampled_from([1 << 16, 1 << 20, 1 << 34]),
    workers=st.integers(1, 9),
    core_cache_bytes=st.just(1 << 16),
    cache_bytes=st.just(1 << 18),
)


@many
@given(layouts(), budgets)
def test_automatic_blocks(layout, budget):
    try:
        grid = automatic_grid(layout, budget)
    except BudgetError as error:
        message = str(error)
    else:
        check_budget(grid, layout, budget)
        check_ranges(grid, layout)
        assert automatic_grid(layout, budget) == grid
        return
    assert budget.reason in message
    assert "use a smaller overlap or more memory" in message
    small = list(layout.shape)
    for axis, overlap in zip(layout.axes, layout.overlap, strict=True):
        small[axis] = min(small[axis], 2 * overlap + 3 * layout.unit[axis])
    assert prod(small) * layout.bytes_per_voxel + layout.fixed_bytes > budget.host_bytes


def check_budget(grid, layout, budget):
    block_bytes = max(cell.read_in(grid.shape).size for cell in grid) * layout.bytes_per_voxel
    worker_bytes = block_bytes + layout.fixed_bytes
    assert worker_bytes <= budget.host_bytes
    if worker_bytes * min(budget.workers, len(grid)) > budget.host_bytes:
        fewer = int(budget.host_bytes // worker_bytes)
        assert automatic_grid(layout, replace(budget, workers=fewer)) == grid


def check_ranges(grid, layout):
    assert grid.shape == layout.shape
    assert list(grid.axes) == sorted(set(grid.axes) & set(layout.axes))
    assert all(count >= 1 for count in grid.counts)
    overlaps = dict(zip(layout.axes, layout.overlap, strict=True))
    for axis, split in zip(grid.axes, grid.splits, strict=True):
        halo = overlaps[axis] // 2
        valid = [split.valid(k) for k in range(split.count)]
        assert [valid[0][0], valid[-1][1]] == [0, grid.shape[axis]]
        assert all(before[1] == after[0] for before, after in pairwise(valid))
        assert all(lo % layout.unit[axis] == 0 for lo, _ in valid)
        for k, (lo, hi) in enumerate(valid):
            lower, upper = split.block(k)
            assert lo < hi
            assert lower <= max(0, lo - halo)
            assert upper >= min(grid.shape[axis], hi + halo)


@many
@given(layouts(units=(1,)), budgets)
def test_blocks_without_context_are_contiguous(layout, budget):
    shape = layout.shape
    layout = Layout(
        shape, layout.itemsize, layout.order, tuple(range(len(shape))), (0,) * len(shape),
        layout.unit, layout.bytes_per_voxel,
    )  # fmt: skip
    try:
        grid = automatic_grid(layout, budget)
    except BudgetError:
        return
    voxels = np.zeros(shape, order=layout.order)
    flag = "C_CONTIGUOUS" if layout.order == "C" else "F_CONTIGUOUS"
    assert all(voxels[cell.read_in(shape).slices].flags[flag] for cell in grid)


def volume(**changes):
    given = {
        "shape": (64, 64, 64),
        "itemsize": 4,
        "order": "C",
        "axes": (0, 1, 2),
        "overlap": (8, 8, 8),
        "unit": (1, 1, 1),
        "bytes_per_voxel": 20.0,
    }
    return Layout(**{**given, **changes})


@pytest.mark.parametrize("overlap", [0, 8])
@pytest.mark.parametrize("workers", range(1, 17))
def test_every_worker_is_busy_to_the_end(workers, overlap):
    layout = volume(shape=(256, 256, 256), overlap=(overlap,) * 3)
    cells = len(automatic_grid(layout, Budget(1 << 40, workers)))
    assert cells >= 0.9 * workers * -(-cells // workers)


def test_less_memory_makes_smaller_blocks():
    sizes = []
    for host_bytes in (1 << 24, 1 << 20, 1 << 18, 1 << 16):
        layout = volume(shape=(256, 256, 256))
        sizes.append(prod(automatic_grid(layout, Budget(host_bytes, 2)).largest))
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 2


def test_long_halos_make_long_blocks():
    lengths = automatic_grid(volume(shape=(512, 512, 512), overlap=(2, 4, 32)), Budget(1 << 24, 2))
    assert list(lengths.largest) == sorted(lengths.largest)


def test_axes_in_any_order_are_the_same_axes():
    forth = volume(axes=(0, 2), overlap=(2, 16))
    back = volume(axes=(2, 0), overlap=(16, 2))
    assert automatic_grid(forth, Budget(1 << 22, 2)) == automatic_grid(back, Budget(1 << 22, 2))


def test_a_block_that_does_not_fit_is_refused_with_numbers():
    budget = Budget(500_000, 3, reason="memory=500kB")
    with pytest.raises(BudgetError) as caught:
        automatic_grid(volume(overlap=(0, 0, 0), fixed_bytes=600_000), budget)
    assert isinstance(caught.value, MemoryError)
    for part in ("memory=500kB", "500 kB", "600 kB", "smaller overlap or more memory"):
        assert part in str(caught.value)


def test_fewer_workers_where_the_blocks_of_all_do_not_fit():
    layout = volume(overlap=(0, 0, 0), fixed_bytes=600_000)
    grid = automatic_grid(layout, Budget(1_000_000, 3))
    assert prod(grid.largest) * layout.bytes_per_voxel <= 400_000


@pytest.mark.parametrize(
    ("axes", "ndim", "order", "unit", "expected"),
    [
        (None, 3, "C", (), [0]),
        (None, 3, "F", (), [2]),
        (None, 3, "F", (1, 1, 1), [2]),
        (None, 3, "C", (64, 16, 32), [1]),
        (None, 1, "F", (), [0]),
        ("all", 3, "C", (), [0, 1, 2]),
        (1, 3, "C", (), [1]),
        (-1, 3, "C", (), [2]),
        (np.int64(1), 3, "C", (), [1]),
        ([2, 0], 3, "C", (), [2, 0]),
        ((0, -1), 3, "C", (), [0, 2]),
        (np.array([1, 2]), 3, "C", (), [1, 2]),
        (range(2), 3, "C", (), [0, 1]),
    ],
)
def test_axes(axes, ndim, order, unit, expected):
    found = normalise_axes(axes, ndim, order, unit)
    assert found == expected
    assert {type(axis) for axis in found} == {int}


@pytest.mark.parametrize(
    ("axes", "error", "parts"),
    [
        (3, PlanError, ["axis 3", "axes 0..2"]),
        (-4, PlanError, ["axis", "-4", "-3"]),
        ([0, 5], PlanError, ["axis 5", "axes 0..2"]),
        ([0, 0], PlanError, ["axis 0", "twice"]),
        ([0, -3], PlanError, ["axis 0", "twice", "[0, -3]"]),
        ("q", PlanError, ["'q'", "'all'"]),
        ("z", PlanError, ["'z'"]),
        ([], PlanError, ["empty"]),
        ([None], PlanError, ["axis None"]),
        (1.0, ArgumentTypeError, ["axis", "1.0"]),
        (True, ArgumentTypeError, ["axis", "True"]),
        (["z"], ArgumentTypeError, ["axis", "'z'"]),
        ({"z": 1}, ArgumentTypeError, ["axis", "dict"]),
    ],
)
def test_axes_that_are_not_there(axes, error, parts):
    with pytest.raises(error) as caught:
        block_axes(np.zeros((2, 3, 4)), axes)
    assert isinstance(caught.value, ValueError | TypeError)
    assert all(part in str(caught.value) for part in parts)


def test_a_scalar_has_no_axes():
    with pytest.raises(PlanError, match="scalar"):
        normalise_axes(None, 0, "C")


def test_the_builtin_all_is_deprecated():
    with pytest.warns(DeprecationWarning, match="axes='all'") as caught:
        assert block_axes(np.zeros((2, 3)), all) == [0, 1]
    assert caught[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="all") as caught:
        assert len(split_into_blocks(np.zeros((2, 3)), axes=all, size_max=1, processes=1)) == 6
    assert caught[0].filename == __file__
    with warnings.catch_warnings(action="error"):
        block_axes(np.zeros((2, 3)), "all")


def test_each_axis_has_its_own_sizes():
    sizes = Sizes(
        size_max=[10, np.int64(20)],
        size_min=(8, "fixed"),
        overlap=np.array([2, 4]),
        optimization=[True, False],
        optimization_fix=["decrease", None],
        processes=4,
    )
    grid = documented_grid((30, 7, 50), [2, 0], sizes)
    assert grid.axes == (0, 2)
    assert grid.splits[0].overlap == 4
    assert grid.splits[0].width == 20
    assert grid.splits[1].overlap == 2
    assert grid.counts == (2, 1, 8)


@pytest.mark.parametrize("name", ["size_max", "overlap", "size_min", "size_multiple_of"])
def test_a_value_for_each_axis(name):
    with pytest.raises(PlanError, match=f"{name.replace('size_mul', '.*mul')} has 3 values, .* 2 "):
        documented_grid((30, 40, 50), [0, 1], Sizes(**{name: [1, 2, 3]}))


def test_errors_name_the_axis():
    with pytest.raises(PlanError, match="size_max of axis 2 is 0"):
        documented_grid((30, 40, 50), [0, 2], Sizes(size_max=[10, 0]))


@many
@given(
    st.integers(2, 200),
    st.integers(2, 32),
    st.integers(1, 60),
    st.integers(0, 20),
    st.integers(1, 9),
    st.sampled_from([None, "fixed"]),
)
def test_documented_sizes_on_units_of_a_sink(size, unit, size_max, overlap, processes, size_min):
    sizes = Sizes(size_max, size_min, None, min(overlap, size_max - 1), processes=processes)
    shape, units = (5, size), (1, unit)
    try:
        grid = documented_grid(shape, [1], sizes, units)
    except PlanError as error:
        message = str(error)
        larger, *smaller = map(int, message.rpartition("size_max of ")[2].split(" or "))
        assert "axis 1" in message
        assert str(unit) in message
        assert all(advised < size_max for advised in smaller)
        plain = replace(sizes, size_max=larger - 1, optimization=False)
        if larger - 1 > size_max:
            with pytest.raises(PlanError):
                documented_grid(shape, [1], plain, units)
        for advised in (*smaller, larger):
            grid = documented_grid(shape, [1], replace(sizes, size_max=advised), units)
            assert grid.largest[1] <= advised or len(grid) == 1
        size_max = larger
    valid = [cell.valid[0] for cell in grid]
    assert all(lo % unit == 0 for lo, _ in valid)
    assert all(before[1] == after[0] for before, after in pairwise(valid))
    assert grid.largest[1] <= size_max or len(grid) == 1


def test_optimising_is_given_up_where_the_unit_of_the_sink_does_not_allow_it():
    sizes = Sizes(size_max=50, processes=16, optimization_fix="decrease")
    assert documented_grid((100,), [0], sizes).counts == (16,)
    grid = documented_grid((100,), [0], sizes, (25,))
    assert [cell.valid[0] for cell in grid] == [(0, 50), (50, 100)]
