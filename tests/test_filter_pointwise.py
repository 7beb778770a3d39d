"""Filters of single voxels: limits, ranges, thresholds, types."""

from typing import Any

import numpy as np
import pytest
from contracts.filters import Array, Example, FilterContract
from hypothesis import strategies as st
from skimage.exposure import rescale_intensity

from gpublocks import filters
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.filters.engines import choice

TYPES = ("uint8", "int16", "uint16", "float32", "float64", "bool")
VALUES = st.sampled_from([-700, -1.5, 0, 0.5, 1, 99.6, 255, 300, 1000])


class TestClip(FilterContract):
    dtypes = TYPES

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        ends = st.tuples(VALUES, VALUES).map(sorted).map(tuple)
        return (ends | VALUES.map(lambda low: (low, None))).map(self._example)

    @staticmethod
    def _example(ends: Any) -> Example:
        def plain(array: Array) -> Array:
            if array.dtype.kind == "f":
                return np.clip(array, *ends)
            info = np.iinfo(np.uint8 if array.dtype == bool else array.dtype)
            most = 1 if array.dtype == bool else int(info.max)
            held = [None if v is None else min(max(round(v), int(info.min)), most) for v in ends]
            return np.clip(array.astype(np.int64), *held).astype(array.dtype)

        return Example(filters.clip(*ends), plain)


class TestThreshold(FilterContract):
    dtypes = TYPES

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        return st.builds(self._example, VALUES, st.booleans())

    @staticmethod
    def _example(value: float, below: bool) -> Example:
        def plain(array: Array) -> Array:
            # float32 has all of these values but one, which an array of it is compared with as
            # float32.
            bound = array.dtype.type(value) if array.dtype.kind == "f" else value
            doubles = array.astype(np.float64)
            return doubles < bound if below else doubles > bound

        return Example(filters.threshold(value, below=below), plain)


class TestCast(FilterContract):
    dtypes = TYPES

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        def example(dtype: str) -> Example:
            def plain(array: Array) -> Array:
                doubles = array.astype(np.float64)
                if np.dtype(dtype).kind not in "iu":
                    return doubles.astype(dtype)
                info = np.iinfo(dtype)
                return np.rint(doubles).clip(info.min, info.max).astype(dtype)

            return Example(filters.cast(dtype), plain)

        return st.sampled_from(["uint8", "int16", "float32", "bool", "uint32"]).map(example)


class TestRescale(FilterContract):
    dtypes = TYPES
    agreement = 1e-7

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        inside = st.sampled_from([(0, 100), (-300.5, 1500), (0.25, 0.75)])
        outside = st.sampled_from([(0, 1), (10, 200), (1.0, -2.5)])
        return st.builds(
            self._example, inside, outside, st.sampled_from([None, "uint8", "float64"])
        )

    @staticmethod
    def _example(inside: Any, outside: Any, dtype: Any) -> Example:
        def plain(array: Array) -> Array:
            return rescale_intensity(array.astype(np.float64), inside, outside)

        return Example(filters.rescale(inside, outside, dtype=dtype), plain)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("below", [False, True])
def test_all_thresholds_of_short_integers(dtype: str, below: bool) -> None:
    info = np.iinfo(dtype)
    array = np.arange(info.min, info.max + 1).astype(dtype)
    for value in np.arange(info.min - 1, info.max + 1.5, 0.5).tolist():
        doubles = array.astype(np.float64)
        expected = doubles < value if below else doubles > value
        assert np.array_equal(filters.threshold(value, below=below)(array), expected), value


def test_ranges_are_those_of_the_type_by_default() -> None:
    array = np.array([0.0, 0.5, 1.0])
    assert filters.rescale((0, 1), dtype="uint8")(array).tolist() == [0, 128, 255]
    assert filters.rescale((0, 1), dtype="int16")(array).tolist() == [-32768, 0, 32767]
    assert filters.rescale((-1, 1))(array).tolist() == [0.5, 0.75, 1.0]
    assert filters.rescale((0, 3), (0, 0.1))(array * 3)[-1] == 0.1


@pytest.mark.parametrize("engine", ["numba", "scipy"])
def test_values_that_types_do_not_hold(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_numba_works", lambda: engine == "numba")
    odd = np.array([np.nan, np.inf, -np.inf, 0.5, 1.5, -0.6, 1e30])
    for dtype in ("float16", "float32", "float64"):
        with np.errstate(over="ignore"):
            array = odd.astype(dtype)
        assert filters.cast("uint8")(array).tolist() == [0, 255, 0, 0, 2, 0, 255]
        assert filters.cast("int16")(array)[:3].tolist() == [0, 32767, -32768]
        assert filters.cast("uint16")(array)[:3].tolist() == [0, 65535, 0]
        assert filters.clip(0, 1e6)(array)[3:6].tolist() == [0.5, 1.5, 0.0]
        assert np.isnan(filters.clip(0, 1)(array)[0])
        assert filters.threshold(1e6)(array)[:3].tolist() == [False, dtype != "float16", False]
        found = filters.rescale((0, 1))(array)
        assert np.isnan(found[0])
        assert found[1:].tolist() == [1.0, 0.0, 0.5, 1.0, 0.0, 1.0]
        assert filters.rescale((0, 1), dtype="uint8")(array)[0] == 0


def test_long_integers_are_exact() -> None:
    info = np.iinfo(np.int64)
    array = np.array([info.min, -1, 2**53 + 1, info.max])
    assert filters.cast("uint64")(array).tolist() == [0, 0, 2**53 + 1, info.max]
    assert filters.cast("int32")(array).tolist() == [-(2**31), -1, 2**31 - 1, 2**31 - 1]
    assert filters.clip(0, 2**53 + 1)(array).tolist() == [0, 0, 2**53 + 1, 2**53 + 1]
    assert filters.threshold(2**53)(array).tolist() == [False, False, True, True]
    assert filters.cast("int64")(np.array([1e300, -1e300, 3.5])).tolist() == [
        int(np.nextafter(2.0**63, 0)),
        info.min,
        4,
    ]


def test_nothing_is_returned_that_was_given() -> None:
    array = np.arange(4.0)
    for made in (filters.cast("float64"), filters.clip(-1, 9), filters.rescale((0, 9), (0, 9))):
        assert not np.shares_memory(made(array), array)
        assert np.array_equal(made(array), array)


@pytest.mark.parametrize("shape", [(0, 4), (), (3, 4, 5, 6)])
def test_odd_shapes(shape: tuple[int, ...]) -> None:
    array = np.full(shape, 7.4)
    for made in (
        filters.cast("uint8"),
        filters.clip(0, 7),
        filters.rescale((0, 7), (0, 7)),
        filters.threshold(7),
    ):
        result = made(array)
        assert result.shape == shape
        assert np.all(result == (True if result.dtype == bool else 7))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: filters.clip(), PlanError, "neither low nor high"),
        (lambda: filters.clip(3, 2), PlanError, "low is 3, above high, 2"),
        (lambda: filters.clip("a"), ArgumentTypeError, "low is 'a'"),
        (lambda: filters.threshold(float("nan")), PlanError, "value is nan"),
        (lambda: filters.threshold(1, below=2), ArgumentTypeError, "below is 2; give True"),
        (lambda: filters.cast(None), ArgumentTypeError, "dtype is None"),
        (lambda: filters.cast("text"), ArgumentTypeError, "give a NumPy type"),
        (lambda: filters.rescale((1, 1)), PlanError, "a larger one"),
        (lambda: filters.rescale(3), ArgumentTypeError, "in_range is 3; give two numbers"),
        (lambda: filters.rescale((0, np.inf)), PlanError, r"in_range\[1\] is inf"),
        (lambda: filters.rescale((0, 1), (0, 1, 2)), ArgumentTypeError, "out_range is .* two"),
    ],
)
def test_parameters_that_make_no_sense(make: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()
