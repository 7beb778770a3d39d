"""Filters of windows: minima, maxima and means, morphology, and what is made of them."""

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import fake_cupy
import numpy as np
import pytest
import scipy.ndimage as ndi
from contracts.filters import Array, Example, FilterContract
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from gpublocks import filters
from gpublocks.block_processing import process
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.filters.engines import choice
from gpublocks.filters.engines.differences import difference

MODES = ("reflect", "mirror", "nearest", "constant")

ENGINES = ("numba", "scipy", "cuda")


def limited(array: Array, dtype: Any) -> Array:
    """Return the nearest numbers that a type holds."""
    dtype = np.dtype(dtype)
    if array.dtype.kind == "b" or dtype.kind not in "iu":
        return array
    info = np.iinfo(dtype)
    return np.rint(array).clip(info.min, info.max).astype(dtype)


@st.composite
def shapes(draw: st.DrawFn, ndim: int, around: bool = False) -> Array:
    """Return footprints of even and odd sizes, with holes; off the middle, or with it."""
    longest = {1: 9, 2: 5}.get(ndim, 4)
    shape = draw(st.lists(st.integers(1, longest), min_size=ndim, max_size=ndim))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    footprint = rng.random(shape) < draw(st.sampled_from([0.2, 0.8]))
    own = tuple(length // 2 for length in shape)
    footprint[own if around else tuple(rng.integers(0, length) for length in shape)] = True
    return footprint


def boxes(ndim: int) -> st.SearchStrategy[Any]:
    size = st.integers(1, 6)
    return size | st.lists(size, min_size=ndim, max_size=ndim).map(tuple)


class InPieces(FilterContract):
    """Filters that do arrays in pieces of 1 or 2 MB."""

    large = {2: (1500, 1400), 3: (130, 128, 127), 4: (10, 13, 128, 127)}  # noqa: RUF012
    small_bytes = 3_300_000


class WindowContract(InPieces):
    """Filters of SciPy's names and parameters, on float64, rounded and limited at the end."""

    pairs: tuple[tuple[Callable[..., Any], Callable[..., Array]], ...]
    """Filters, and SciPy's."""
    around = True
    """Whether windows have their own voxel; others may be done in blocks, but look less far."""

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        windows = boxes(ndim).map(lambda size: {"size": size})
        windows |= shapes(ndim, self.around).map(lambda footprint: {"footprint": footprint})
        borders = st.tuples(st.sampled_from(MODES), st.sampled_from([0.0, 7.0, -3.0]))
        return st.builds(self._example, st.sampled_from(self.pairs), windows, borders)

    @staticmethod
    def _example(pair: Any, window: dict[str, Any], border: tuple[str, float]) -> Example:
        make, scipys = pair
        mode, cval = border

        def plain(array: Array) -> Array:
            beyond = float(limited(np.array(cval), array.dtype))
            wide = array.astype(np.float64)
            return limited(scipys(wide, **window, mode=mode, cval=beyond), array.dtype)

        return Example(make(**window, mode=mode, cval=cval), plain)

    def _noise(self, rng: np.random.Generator, shape: tuple[int, ...], attempt: int) -> Array:
        return super()._noise(rng, shape, attempt) + 500 * slope(rng, shape, attempt)


def slope(rng: np.random.Generator, shape: tuple[int, ...], attempt: int) -> Array:
    """Return what rises along one axis or the other, or falls: openings look up it, and far."""
    axis = attempt // 2 % len(shape)
    values = np.linspace(0, 1, shape[axis])[:: 1 if attempt % 2 else -1]
    rising = values.reshape((-1,) + (1,) * (len(shape) - 1 - axis))
    return np.broadcast_to(rising, shape)


class TestExtremes(WindowContract):
    pairs = (
        (filters.minimum, ndi.minimum_filter),
        (filters.maximum, ndi.maximum_filter),
        (filters.grey_erosion, ndi.grey_erosion),
        (filters.grey_dilation, ndi.grey_dilation),
    )
    axes = (1, 2, 3, 4)
    around = False


class TestOpenings(WindowContract):
    pairs = (
        (filters.grey_opening, ndi.grey_opening),
        (filters.grey_closing, ndi.grey_closing),
    )


def background(array: Array, method: str, **kwargs: Any) -> Array:
    low = {"opening": ndi.grey_opening, "minimum": ndi.grey_erosion}[method](array, **kwargs)
    return np.maximum(array - low, 0)


class TestTophats(WindowContract):
    agreement = 2e-7
    pairs = (
        (filters.white_tophat, ndi.white_tophat),
        (filters.black_tophat, ndi.black_tophat),
        (filters.morphological_gradient, ndi.morphological_gradient),
        (filters.subtract_background, partial(background, method="opening")),
        (
            partial(filters.subtract_background, method="minimum"),
            partial(background, method="minimum"),
        ),
    )


def maxima(array: Array, **kwargs: Any) -> Array:
    return array >= ndi.maximum_filter(array, **kwargs)


class TestLocalMaxima(WindowContract):
    pairs = ((filters.local_maxima, maxima),)
    around = False
    _noise = FilterContract._noise


class TestBinary(InPieces):
    pairs = (
        (filters.binary_erosion, ndi.binary_erosion),
        (filters.binary_dilation, ndi.binary_dilation),
        (filters.binary_opening, ndi.binary_opening),
        (filters.binary_closing, ndi.binary_closing),
    )
    dtypes = ("bool", "uint8", "float32")

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        structures = st.none() | shapes(ndim, around=True)
        pairs = st.sampled_from(self.pairs)
        return st.builds(self._example, pairs, structures, st.integers(1, 3), st.booleans())

    @staticmethod
    def _example(pair: Any, structure: Any, iterations: int, border_value: bool) -> Example:
        make, scipys = pair
        kwargs = {"iterations": iterations, "border_value": border_value}
        plain = partial(scipys, structure=structure, brute_force=True, **kwargs)
        return Example(make(structure, **kwargs), plain)

    def _noise(self, rng: np.random.Generator, shape: tuple[int, ...], attempt: int) -> Array:
        kind = attempt // (2 * len(shape)) % 3
        if kind == 2:
            return np.full(shape, attempt % 2 * 100.0)
        # The voxel in the middle is the last one of a half, or the first one beyond it.
        half = slope(rng, shape, attempt) - 0.5
        return 100.0 * (half >= 0 if kind else half > 0)


class TestUniform(InPieces):
    agreement = 1e-6

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        return st.builds(
            self._example, boxes(ndim), st.sampled_from(MODES), st.sampled_from([0.0, 7.0])
        )

    @staticmethod
    def _example(size: Any, mode: str, cval: float) -> Example:
        def plain(array: Array) -> Array:
            return ndi.uniform_filter(array.astype(np.float64), size, mode=mode, cval=cval)

        return Example(filters.uniform(size, mode=mode, cval=cval), plain)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Array]:
    """Return what applies a filter with one of the engines."""
    cupy = fake_cupy.install(monkeypatch).cupy

    def apply(engine: str, filter_: Any, array: Array) -> Array:
        monkeypatch.setattr(choice, "_numba_works", lambda: engine != "scipy")
        if engine == "cuda":
            result: Array = filter_(cupy.asarray(array)).get()
            return result
        return np.asarray(filter_(array))

    return apply


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("window", [{"size": 5}, {"footprint": np.eye(5)}], ids=["box", "shape"])
def test_nan_and_infinities_stay_in_their_windows(
    on: Any, engine: str, dtype: str, window: dict[str, Any]
) -> None:
    rng = np.random.default_rng(1)
    array = rng.random((23, 24)).astype(dtype)
    array[4, 5], array[15, 16], array[11, 2] = np.nan, np.inf, -np.inf
    inside = ndi.maximum_filter(np.isnan(array), **window)
    rest_of = np.nan_to_num(array.astype(float), nan=0.5, posinf=np.inf, neginf=-np.inf)
    for make, plain in (
        (filters.minimum, ndi.minimum_filter),
        (filters.maximum, ndi.maximum_filter),
    ):
        result = on(engine, make(**window), array)
        assert_array_equal(np.isnan(result), inside)
        rest = plain(rest_of, **window)
        assert_array_equal(result[~inside], rest[~inside])
    if "size" in window:
        mean = on(engine, filters.uniform(5), array)
        assert_array_equal(np.isfinite(mean), ~ndi.maximum_filter(~np.isfinite(array), 5))


@pytest.mark.parametrize("engine", ENGINES)
def test_differences_are_limited_and_do_not_wrap(on: Any, engine: str) -> None:
    array = np.array([-120, 127, -128, 127, -128, -128, 0, 5], np.int16) * np.int16(256)
    wide = array.astype(int)
    high, low = ndi.grey_dilation(wide, 3), ndi.grey_erosion(wide, 3)
    gradient = on(engine, filters.morphological_gradient(3), array)
    assert_array_equal(gradient, (high - low).clip(-(2**15), 2**15 - 1))
    bright = {"mode": "constant", "cval": 2.0**15 - 1}
    for make, plain in (
        (filters.white_tophat, ndi.white_tophat),
        (filters.black_tophat, ndi.black_tophat),
    ):
        result = on(engine, make(3, **bright), array)
        assert_array_equal(result, plain(wide, 3, **bright).clip(-(2**15), 2**15 - 1))
    dark = np.array([3, 0, 0, 7], np.uint8)
    assert_array_equal(on(engine, filters.white_tophat(3, **bright), dark), [0, 0, 0, 0])
    assert filters.subtract_background(3, **bright)(array).min() == 0
    mask = np.array([0, 0, 1, 0, 1, 1, 1, 0, 0], bool)
    assert_array_equal(on(engine, filters.white_tophat(3), mask), [0, 0, 1, 0, 0, 0, 0, 0, 0])
    assert_array_equal(on(engine, filters.black_tophat(3), mask), [0, 0, 0, 1, 0, 0, 0, 0, 0])


def test_all_differences_of_bytes_are_the_nearest_that_the_type_holds() -> None:
    for dtype in ("int8", "uint8"):
        info = np.iinfo(dtype)
        values = np.arange(info.min, info.max + 1)
        first, second = np.meshgrid(values.astype(dtype), values.astype(dtype))
        expected = (values - values[:, None]).clip(info.min, info.max)
        for place in (0, 1):
            both = [first.copy(), second.copy()]
            result = difference(*both, both[place])
            assert result is both[place]
            assert_array_equal(result, expected)
            assert_array_equal(both[1 - place], (first, second)[1 - place])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", ["bool", "uint32", "uint64", "float16"])
def test_all_types_are_taken(on: Any, engine: str, dtype: str) -> None:
    rng = np.random.default_rng(2)
    high = rng.random((6, 7, 8)) < 0.5
    ends = (0, 1)
    if np.dtype(dtype).kind in "iu":
        ends = (np.iinfo(dtype).min, np.iinfo(dtype).max)
    array = np.where(high, *np.array(ends[::-1], dtype))
    for make, plain in (
        (filters.minimum, ndi.minimum_filter),
        (filters.maximum, ndi.maximum_filter),
    ):
        for window in ({"size": (2, 1, 3)}, {"footprint": rng.random((2, 3, 3)) < 0.5}):
            result = on(engine, make(**window), array)
            assert result.dtype == array.dtype
            assert_array_equal(result == np.array(ends[1], dtype), plain(high, **window))
    mean = on(engine, filters.uniform((2, 1, 3), dtype=np.float64), array)
    expected = ndi.uniform_filter(array.astype(np.float64), (2, 1, 3))
    allowed = 1e-7 if dtype == "float16" else 1e-14
    assert np.abs(mean - expected).max() <= allowed * max(map(abs, ends))


@pytest.mark.parametrize("engine", ENGINES)
def test_means_of_integers_are_exact_and_rounded_once(on: Any, engine: str) -> None:
    @given(
        st.sampled_from(
            [
                ("uint8", "reflect", 0.0),
                ("uint8", "constant", -1.0),
                ("uint8", "constant", 7.5),
                ("int16", "reflect", 0.0),
                ("uint32", "constant", 2.0**40),
            ]
        ),
        st.integers(1, 40),
        st.integers(1, 12),
        st.integers(0, 2**32 - 1),
    )
    @settings(max_examples=25)
    def check(kind: tuple[str, str, float], size: int, other: int, seed: int) -> None:
        dtype, mode, cval = kind
        info, rng = np.iinfo(dtype), np.random.default_rng(seed)
        array = rng.integers(info.min, info.max, (5, 9), dtype, endpoint=True)
        if seed % 3 == 0:
            array = np.full_like(array, info.max) - array % 2
        sums = array.astype(object)
        for axis, length in enumerate((other, size)):
            before, after = length // 2, length - 1 - length // 2
            pad = [(before, after) if each == axis else (0, 0) for each in range(2)]
            ends = Fraction(cval) * (other if axis else 1)
            kwargs = {"constant_values": ends} if mode == "constant" else {}
            known = {"reflect": "symmetric", "constant": "constant"}[mode]
            padded = np.pad(sums, pad, known, **kwargs)
            sums = np.lib.stride_tricks.sliding_window_view(padded, length, axis).sum(-1)
        count = size * other
        expected = [[_nearest(value, count) for value in line] for line in sums]
        result = on(engine, filters.uniform((other, size), mode=mode, cval=cval), array)
        assert_array_equal(result, np.array(expected, object).clip(info.min, info.max))

    check()


def _nearest(value: Fraction | int, count: int) -> int:
    whole, rest = divmod(2 * value + count, 2 * count)
    return whole - (rest == 0 and whole % 2)


@pytest.mark.parametrize("engine", ENGINES)
def test_sums_of_floats_are_taken_in_the_order_that_is_told(on: Any, engine: str) -> None:
    array = np.random.default_rng(9).normal(size=90)
    for size in range(1, 70):
        pad = np.pad(array, (size // 2, size - 1 - size // 2), "symmetric")
        expected = [_tree(pad[start : start + size]) / size for start in range(len(array))]
        assert_array_equal(on(engine, filters.uniform(size), array), expected)
        rows = on(engine, filters.uniform((size, 1)), np.stack([array, -array], 1))
        assert_array_equal(rows[:, 1], np.negative(expected))


def _tree(values: Array) -> float:
    """Sum stretches of powers of two, the shortest first, and each by its halves."""
    size, total = len(values), 0.0
    for power in range(size.bit_length()):
        if size >> power & 1:
            part, values = values[: 1 << power], values[1 << power :]
            while len(part) > 1:
                part = part[::2] + part[1::2]
            total += part[0]
    return total


def test_means_keep_what_is_the_same_everywhere() -> None:
    for dtype in ("uint8", "float32"):
        array = np.full((11, 12, 13), 0.1 * (dtype == "float32") + 200, dtype)
        assert_array_equal(filters.uniform((5, 7, 15))(array), array)


def test_sums_do_not_depend_on_what_is_far_away() -> None:
    rng = np.random.default_rng(3)
    for dtype in ("float32", "float64"):
        array = rng.normal(size=(40, 41)).astype(dtype)
        far = array.copy()
        far[:10], far[:, 30:] = 1e30, -1e30
        for size in range(1, 20):
            near = (slice(20, 30), slice(10, 20))
            mean = filters.uniform(size)
            assert_array_equal(mean(array)[near], mean(far)[near])


@pytest.mark.parametrize("engine", ENGINES)
def test_windows_may_be_larger_than_the_array(on: Any, engine: str) -> None:
    array = np.random.default_rng(4).integers(0, 255, (1, 3, 2)).astype(np.uint8)
    for mode in MODES:
        kwargs = {"mode": mode, "cval": 9.0}
        for size in (1, 7, 70):
            result = on(engine, filters.minimum(size, **kwargs), array)
            assert_array_equal(result, ndi.minimum_filter(array, size, **kwargs))
        shape = np.random.default_rng(5).random((3, 9, 70)) < 0.7
        result = on(engine, filters.maximum(footprint=shape, **kwargs), array)
        assert_array_equal(result, ndi.maximum_filter(array, footprint=shape, **kwargs))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("shape", [(0,), (4, 0, 3), ()])
def test_arrays_of_no_voxels_or_axes_are_taken(on: Any, engine: str, shape: Any) -> None:
    array = np.zeros(shape, np.uint16)
    makers = [filters.minimum, filters.uniform, filters.white_tophat, filters.local_maxima]
    for make in [*makers, filters.median, filters.difference_of_gaussians, filters.gaussian]:
        assert on(engine, make(3), array).shape == shape
    if shape:
        line = np.ones((3,) + (1,) * (len(shape) - 1))
        line[1] = 0
        assert on(engine, filters.maximum(footprint=line), array).shape == shape
        assert on(engine, filters.binary_closing(), array).dtype == bool


def test_openings_by_windows_off_the_middle_are_done_in_blocks() -> None:
    array = np.random.default_rng(8).integers(0, 255, (30, 9)).astype(np.uint8)
    for footprint in ([[1], [1], [0], [0], [0]], [[0], [0], [0], [1]]):
        filter_ = filters.grey_opening(footprint=footprint)
        blocks = process(filter_, array, axes=0, size_max=9, executor="serial")
        assert_array_equal(blocks, filter_(array))
        filter_ = filters.binary_closing(footprint, iterations=2)
        blocks = process(filter_, array > 99, axes=0, size_max=13, executor="serial")
        assert_array_equal(blocks, filter_(array > 99))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mode", MODES)
def test_shapes_may_have_many_axes(on: Any, engine: str, mode: str) -> None:
    rng = np.random.default_rng(10)
    array = rng.integers(50, 200, (2, 3, 4, 3, 5)).astype(np.uint8)
    shape = rng.random((3, 2, 1, 3, 2)) < 0.3
    for cval in (0.0, 255.0):
        kwargs = {"footprint": shape, "mode": mode, "cval": cval}
        result = on(engine, filters.minimum(**kwargs), array)
        assert_array_equal(result, ndi.minimum_filter(array, **kwargs))


def test_large_shapes_are_done_in_pieces() -> None:
    away = np.indices((15, 15, 15)) - 7
    ball = (away**2).sum(0) <= 49
    rng = np.random.default_rng(6)
    array = rng.integers(0, 60000, (24, 25, 700)).astype(np.uint16)
    result = filters.minimum(footprint=ball)(array)
    assert_array_equal(result, ndi.minimum_filter(array, footprint=ball))
    disk = ball[7]
    flat = array[:3].reshape(70, 750)
    assert_array_equal(
        filters.maximum(footprint=disk)(flat), ndi.maximum_filter(flat, footprint=disk)
    )


def test_long_axes_are_done_in_pieces() -> None:
    rng = np.random.default_rng(7)
    array = rng.integers(0, 60000, (9, 3000)).astype(np.uint16)
    for each in (array, array.T.copy(), array[:, ::2], array[None, :, :, None]):
        result = filters.minimum(15)(each)
        assert_array_equal(result, ndi.minimum_filter(each, 15))
        expected = ndi.uniform_filter(each.astype(float), 15)
        assert np.abs(filters.uniform(15)(each) - expected).max() <= 0.5 + 1e-6


def test_only_whole_windows_of_masks_are_eroded() -> None:
    mask = np.ones((7, 8), bool)
    assert_array_equal(filters.binary_erosion()(mask), ndi.binary_erosion(mask))
    assert filters.binary_erosion(border_value=True)(mask).all()
    assert filters.binary_erosion(border_value=True)(np.full(5, np.nan)).all()


def test_local_maxima_are_above_the_threshold() -> None:
    array = np.array([[0, 7, 0, 3], [0, 0, 0, 0], [2, 2, 0, np.nan]])
    found = filters.local_maxima(3, threshold=2)(array)
    assert_array_equal(np.argwhere(found), [(0, 1), (0, 3)])
    assert filters.local_maxima(3, threshold=1.5)(array)[2, :2].all()


@pytest.mark.parametrize(
    ("make", "args", "kwargs", "error", "message"),
    [
        (filters.minimum, (0,), {}, PlanError, "size is 0; give at least 1"),
        (filters.maximum, (2.5,), {}, ArgumentTypeError, "give a whole number"),
        (filters.minimum, ((3, 0),), {}, PlanError, r"size\[1\] is 0"),
        (filters.uniform, (-1,), {}, PlanError, "give at least 1"),
        (filters.uniform, (3,), {"mode": "wrap"}, PlanError, "no block has"),
        (filters.uniform, (3,), {"dtype": complex}, ArgumentTypeError, "dtype= got complex"),
        (filters.grey_opening, (5,), {"footprint": [1, 1]}, PlanError, "give one of them"),
        (
            filters.grey_opening,
            (),
            {"footprint": [1, 1], "voxel_size": 2},
            PlanError,
            "in voxels, and voxel_size",
        ),
        (filters.minimum, (), {"footprint": [[0, 0]]}, PlanError, "no voxel that is not 0"),
        (filters.minimum, (), {"footprint": True}, PlanError, "footprint has no"),
        (filters.minimum, (), {"footprint": [[1], [1, 2]]}, ArgumentTypeError, "is no array"),
        (filters.minimum, (), {"footprint": "ball"}, ArgumentTypeError, "footprint is"),
        (filters.binary_erosion, ([[0]],), {}, PlanError, "structure has no voxel"),
        (filters.binary_erosion, (), {"iterations": 0}, PlanError, "iterations is 0"),
        (filters.binary_closing, (), {"iterations": 1.5}, ArgumentTypeError, "iterations is 1.5"),
        (filters.binary_opening, (), {"border_value": 2}, ArgumentTypeError, "True or False"),
        (filters.local_maxima, (3,), {"threshold": "high"}, ArgumentTypeError, "threshold is"),
        (filters.subtract_background, (), {}, PlanError, "there is no size"),
        (filters.subtract_background, (3,), {"method": "mean"}, PlanError, "opening, minimum"),
        (filters.subtract_background, (3,), {"method": 1}, ArgumentTypeError, "method is 1"),
    ],
)
def test_bad_parameters_are_refused(
    make: Any, args: Any, kwargs: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(*args, **kwargs)


def test_shapes_need_arrays_of_as_many_axes() -> None:
    with pytest.raises(PlanError, match="has values for 2 axes, but the array has 3"):
        filters.minimum(footprint=np.eye(3))(np.zeros((3, 4, 5)))
    with pytest.raises(PlanError, match="has values for 1 axes"):
        filters.binary_erosion([1, 1])(np.zeros((3, 4, 5)))
