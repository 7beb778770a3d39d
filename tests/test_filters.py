"""Filters as values: chains, functions of users that join, what plans and runs take from them."""

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage as ndi
from hypothesis import given
from hypothesis import strategies as st

import gpublocks.block_processing as bp
from gpublocks import filters
from gpublocks.errors import ArgumentTypeError, BudgetError, PlanError
from gpublocks.filters import Filter, gaussian
from gpublocks.filters.dtypes import converted
from gpublocks.filters.parameters import sigmas, sizes

IMAGE = np.random.default_rng(5).integers(0, 60_000, (30, 24, 20), dtype=np.uint16)

# --- chains ----------------------------------------------------------------------------------


@filters.filter(halo=1)
def lowest(array: Any) -> Any:
    return ndi.minimum_filter(array, 3)


@filters.filter(halo=lambda size: size // 2, dtype="float32", memory=12)
def highest(array: Any, size: int = 3) -> Any:
    return ndi.maximum_filter(array, size)


def test_halos_of_a_chain_add_up() -> None:
    assert (gaussian(1) | lowest).halo == 5
    assert (gaussian((1, 0, 2)) | lowest | gaussian(1)).halo == (9, 5, 13)
    assert gaussian(1).then(lowest).halo == 5


def test_a_chain_is_one_filter_after_the_other() -> None:
    chain = gaussian(1) | highest(5) | lowest
    expected = lowest(highest(5)(gaussian(1)(IMAGE)))
    assert np.array_equal(chain(IMAGE), expected)
    assert repr(chain) == "gaussian(sigma=1) | highest(size=5) | lowest()"


def test_types_follow_each_other_through_a_chain() -> None:
    u2 = np.dtype(np.uint16)
    assert (gaussian(1) | gaussian(1, order=1)).result_dtype(u2) == np.float32
    assert (gaussian(1, dtype="float64") | gaussian(1)).result_dtype(u2) == np.float64
    assert (highest(3) | gaussian(1)).result_dtype(u2) == np.float32
    # What a user's function returns is not known before it is called.
    assert (gaussian(1) | lowest).result_dtype(u2) is None


def test_memory_of_a_chain_is_that_of_its_hungriest_step_and_what_that_is_given() -> None:
    u2 = np.dtype(np.uint16)
    smooth = gaussian(1).memory(u2)
    assert smooth is not None
    assert (gaussian(1) | gaussian(1)).memory(u2) == smooth + 2
    assert (highest(3) | gaussian(1)).memory(u2) == max(
        12, 4 + (gaussian(1).memory(np.dtype("f4")) or 0)
    )
    assert (lowest | gaussian(1)).memory(u2) is None


def test_only_filters_are_chained() -> None:
    with pytest.raises(ArgumentTypeError, match=r"followed by a ufunc.*filter\(halo"):
        gaussian(1) | np.sqrt  # type: ignore[operator]
    with pytest.raises(PlanError, match=r"numbers of axes: .* has 2 and .* has 3"):
        gaussian((1, 2)) | gaussian((1, 2, 3))


# --- functions of users -------------------------------------------------------------------------


def test_a_function_of_an_array_alone_becomes_a_filter() -> None:
    assert isinstance(lowest, Filter)
    assert np.array_equal(lowest(IMAGE), ndi.minimum_filter(IMAGE, 3))


def test_a_function_with_parameters_becomes_a_maker_of_filters() -> None:
    assert highest().halo == 1
    assert highest(7).halo == highest(size=7).halo == 3
    assert highest(7)(IMAGE).dtype == np.float32
    assert np.array_equal(highest(7)(IMAGE), ndi.maximum_filter(IMAGE, 7))
    with pytest.raises(TypeError, match="sizes"):
        highest(sizes=3)


def test_results_are_rounded_to_the_type_that_is_declared() -> None:
    @filters.filter(halo=0, dtype=np.uint8)
    def shifted(array: Any) -> Any:
        return array * 1.25 - 10

    array = np.array([0.0, 8.0, 10.0, 14.0, 1000.0, np.nan, np.inf])
    assert shifted(array).tolist() == [0, 0, 2, 8, 255, 0, 255]


@pytest.mark.parametrize("halo", [-1, 2.5, "3", True, (1, -1), lambda: -1])
def test_a_halo_is_a_number_of_voxels(halo: Any) -> None:
    with pytest.raises((PlanError, ArgumentTypeError), match="halo"):
        filters.filter(halo=halo)(lambda array: array)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"dtype": "foo"}, ArgumentTypeError, "dtype is 'foo'; give a NumPy type"),
        ({"dtype": complex}, ArgumentTypeError, "filters are for truth values"),
        ({"memory": "a"}, ArgumentTypeError, "memory is 'a' .* give a number"),
        ({"memory": -5}, PlanError, "memory is -5; give at least 0"),
    ],
)
def test_what_a_filter_is_said_to_take_makes_sense(
    given: dict[str, Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        filters.filter(halo=0, **given)(lambda array: array)


def test_a_halo_depends_on_parameters_of_the_function() -> None:
    @filters.filter(halo=lambda radius: radius)
    def ball(array: Any, size: int = 3) -> Any:
        return array

    with pytest.raises(PlanError, match=r"depends on radius, but the function has .* size"):
        ball()


def test_a_function_without_an_array_is_none_for_a_filter() -> None:
    with pytest.raises(ArgumentTypeError, match="takes no array"):
        filters.filter(halo=0)(lambda: 1)


def test_foreign_bytes_become_native_ones() -> None:
    array = np.arange(5, dtype=">u2")
    smooth = filters.gaussian(1)
    assert smooth.result_dtype(array.dtype) == smooth(array).dtype == np.dtype("=u2")
    assert smooth.memory(array.dtype) == smooth.memory(np.dtype("=u2")) + 2


def test_filters_of_users_pickle_by_reference_or_value() -> None:
    import cloudpickle

    again = pickle.loads(cloudpickle.dumps(highest(5) | lowest))
    assert np.array_equal(again(IMAGE), (highest(5) | lowest)(IMAGE))


# --- arrays that filters refuse -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        ([1, 2, 3], ArgumentTypeError, "give a numpy.ndarray or a cupy.ndarray"),
        (np.zeros(3, complex), ArgumentTypeError, "gaussian got complex128; filters are for"),
        (np.zeros(3, "M8[s]"), ArgumentTypeError, "gaussian got datetime64"),
        (np.zeros(3, np.longdouble), ArgumentTypeError, "gaussian got float128"),
        (np.zeros((3, 3)), PlanError, "values for 3 axes, but the array has 2"),
    ],
)
def test_arrays_that_make_no_sense(array: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        gaussian((1, 1, 1))(array)


def test_foreign_byte_orders_are_read() -> None:
    swapped = IMAGE.astype(">u2")
    assert gaussian(1)(swapped).dtype == np.dtype(np.uint16)
    assert np.array_equal(gaussian(1)(swapped), gaussian(1)(IMAGE))


# --- parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gaussian(-1), "sigma is -1; give at least 0"),
        (lambda: gaussian(float("nan")), "sigma is nan; give a finite number"),
        (lambda: gaussian("2"), r"sigma is '2' \(str\); give a number"),
        (lambda: gaussian(True), r"sigma is True \(bool\); give a number"),
        (lambda: gaussian((1, -2)), r"sigma\[1\] is -2"),
        (lambda: gaussian(()), "sigma is empty"),
        (lambda: gaussian(IMAGE), r"sigma is an array .*gaussian\(sigma=2\)\(array\)"),
        (lambda: gaussian(1, order=0.5), "order is 0.5 .*whole number"),
        (lambda: gaussian((1, 2), order=(0, 1, 2)), "values of sigma for 2 and order for 3 axes"),
        (lambda: gaussian(1, mode="wrap"), "mode='wrap' takes voxels of the far side"),
        (lambda: gaussian(1, mode="grid-wrap"), "mode='grid-wrap' takes voxels of the far side"),
        (lambda: gaussian(1, mode="edge"), "mode is 'edge'; use one of reflect"),
        (lambda: gaussian(1, mode=3), "mode is 3; give one of"),
        (lambda: gaussian(1, cval="x"), "cval is 'x'"),
        (lambda: gaussian(1, voxel_size=0), "voxel_size is 0; give the length of a voxel"),
        (lambda: gaussian((1, 2), voxel_size=(1, 1, 1)), "sigma for 2 and voxel_size for 3 axes"),
        (lambda: gaussian(1, dtype="nonsense"), "dtype is 'nonsense'"),
        (lambda: gaussian(1, dtype=complex), "dtype= got complex128"),
        (lambda: gaussian(1, sgima=2), "unexpected keyword argument 'sgima'"),
    ],
)
def test_parameters_that_make_no_sense(make: Callable[[], Filter], message: str) -> None:
    with pytest.raises((PlanError, TypeError), match=message):
        make()


def test_lengths_may_be_in_physical_units() -> None:
    assert sigmas(8.0, (4.0, 1.6, 2)) == (2.0, 5.0, 4.0)
    assert sigmas((8, 4), 4) == (2.0, 1.0)
    assert sizes(10.0, (2.0, 10.0, 100.0)) == (5, 1, 1)
    assert [sizes(length, 1.0) for length in (1, 1.9, 2.1, 3, 4.1, 20)] == [1, 1, 3, 3, 5, 21]
    physical = gaussian(8.0, voxel_size=(4.0, 1.6, 2))
    assert np.array_equal(physical(IMAGE), gaussian((2.0, 5.0, 4.0))(IMAGE))


@given(
    st.sampled_from(["u1", "i2", "u4", "i8", "u8", "f4", "f8", "?"]),
    st.sampled_from(["u1", "i2", "u4", "i8", "u8"]),
    st.lists(st.integers(-(2**63), 2**64 - 1) | st.floats(), min_size=1, max_size=8),
)
def test_values_become_the_nearest_that_a_type_holds(
    before: str, after: str, values: list[Any]
) -> None:
    with np.errstate(all="ignore"):
        array = np.array([np.float64(v) for v in values]).astype(before)
        result = converted(array, np.dtype(after))
    info = np.iinfo(after)
    for value, found in zip(array.tolist(), result.tolist(), strict=True):
        if value != value:
            assert found == 0
        elif abs(value) == float("inf"):
            assert abs(found - (info.max if value > 0 else info.min)) <= info.max // 2**50
        else:
            wanted = min(max(round(value), info.min), info.max)
            # The greatest float64 below the end of a type of 64 bits is not that end.
            assert abs(found - wanted) <= info.max // 2**52


# --- runs ---------------------------------------------------------------------------------------


def test_process_needs_nothing_but_a_filter(tmp_path: Path, executor: str) -> None:
    np.save(tmp_path / "in.npy", IMAGE)
    os.chdir(tmp_path)
    chain = gaussian((1, 0.5, 0)) | lowest
    result = bp.process(chain, "in.npy", "out.npy", executor=executor)
    assert result == "out.npy"
    assert np.array_equal(np.load("out.npy"), chain(IMAGE))


def test_a_plan_knows_halo_memory_and_type_of_a_filter() -> None:
    planned = bp.plan(gaussian((1, 2, 0)), IMAGE, processes=2, memory="200kB")
    splits = dict(zip(planned.grid.axes, planned.grid.splits, strict=True))
    assert len(planned.grid) > 1
    assert all(split.overlap == (8, 16, 0)[axis] for axis, split in splits.items())
    assert planned.need.origin == "filter"
    assert planned.need.per_voxel == gaussian((1, 2, 0)).memory(IMAGE.dtype)


def test_a_filter_of_a_user_may_not_say_what_it_takes() -> None:
    assert bp.plan(lowest, IMAGE, processes=2).need.origin == "default"
    assert bp.plan(highest(3), IMAGE, processes=2).need.per_voxel == 12


def test_a_filter_for_other_axes_is_refused_before_anything_is_created(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"gaussian\(sigma=\(1, 2\)\).* halo for 2 axes, \(4, 8\)"):
        bp.process(gaussian((1, 2)), IMAGE, tmp_path / "out.npy")
    assert not list(tmp_path.iterdir())


def test_filters_take_no_keywords_of_a_run() -> None:
    with pytest.raises(ArgumentTypeError, match="unknown keyword 'sigma'"):
        bp.process(gaussian(2), IMAGE, sigma=3)


def test_unknown_filters_are_no_attributes() -> None:
    handed_on = [name for names in filters._HOMES.values() for name in names]
    assert sorted(handed_on) == sorted(filters.__all__) == sorted(dir(filters))
    assert all(getattr(filters, name).__name__ == name for name in handed_on)
    with pytest.raises(AttributeError, match="gauss"):
        filters.gauss  # noqa: B018


# --- chains that had better be two passes -------------------------------------------------------

VOLUME = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint16), (1024,) * 3, (0, 0, 0))
"""Two gigabytes of one voxel: nothing is read of it."""


def advice(function: Any, volume: Any = VOLUME, **options: Any) -> str:
    return bp.plan(function, volume, processes=2, **options).advice


def test_a_plan_says_when_two_passes_would_move_less() -> None:
    wide = gaussian(10) | gaussian(9.8) | gaussian(0.5)
    told = advice(wide, memory="800MB")
    found = re.fullmatch(
        r"one pass reads (.*) B for each voxel; gaussian\(sigma=10\), and then "
        r"gaussian\(sigma=9.8\) \| gaussian\(sigma=0.5\), would move (.*) B, .*",
        told,
    )
    assert found, told
    before, after = map(float, found.groups())
    assert before == pytest.approx(
        2 * bp.plan(wide, VOLUME, processes=2, memory="800MB").over_read, 0.01
    )
    first, second = (
        bp.plan(part, VOLUME, processes=2, memory="800MB").over_read for part in wide.cut(1)
    )
    assert after == pytest.approx(2 * first + 2 + 2 * second, 0.1)
    assert "advice" in str(bp.plan(wide, VOLUME, processes=2, memory="800MB"))


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (gaussian(1) | gaussian(1), {}),
        (gaussian(10) | gaussian(10), {"overlap": 400}),
        (gaussian(10) | gaussian(10), {"volume": VOLUME[:99, :99, :99], "size_max": "full"}),
        (gaussian(20), {"memory": "800MB"}),
        (gaussian(20), {"size_max": 400}),
    ],
)
def test_a_plan_says_nothing_where_one_pass_is_as_good(function: Any, options: Any) -> None:
    assert advice(function, **options) == ""


def test_sizes_that_are_given_are_those_of_both_passes() -> None:
    assert "would move" in advice(
        gaussian(10) | gaussian(10), size_max=200, axes="all", memory="20GB"
    )


def test_two_passes_are_named_where_one_does_not_fit() -> None:
    chain = filters.white_tophat(61) | filters.median(61) | filters.gaussian(10)
    with pytest.raises(BudgetError) as caught:
        bp.plan(chain, VOLUME, memory="40MB", processes=2)
    assert str(caught.value).endswith(
        "more memory, or two passes: white_tophat(size=61), and then median(size=61) | "
        "gaussian(sigma=10)"
    )
