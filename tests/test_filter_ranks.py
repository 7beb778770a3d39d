"""Filters that pick voxels by rank: networks, histograms, SciPy and CUDA find the same ones."""

from collections.abc import Callable
from typing import Any

import fake_cupy
import numpy as np
import pytest
import scipy.ndimage as ndi
from contracts.filters import Array, Example, FilterContract
from hypothesis import strategies as st

from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.filters import Filter, lightsheet, median, percentile, rank
from gpublocks.filters.engines import choice, counting, ranking, sorting

MODES = ("reflect", "mirror", "nearest", "constant")


def scipy_rank(array: Array, rank: int, mask: Array, mode: str, cval: float = 0.0) -> Array:
    """Return SciPy's voxels; its own way for lines overlooks what a footprint leaves out."""
    found: Array = ndi.rank_filter(array[None], rank, footprint=mask[None], mode=mode, cval=cval)
    return found[0]


def masks(ndim: int, longest: int = 4) -> st.SearchStrategy[Array]:
    """Return footprints, boxes among them."""
    lengths = st.lists(st.integers(1, longest), min_size=ndim, max_size=ndim)
    seeds = st.none() | st.integers(0, 2**32 - 1)
    return st.builds(_mask, lengths, seeds)


def _mask(lengths: list[int], seed: int | None) -> Array:
    if seed is None:
        return np.ones(lengths, bool)
    mask = np.random.default_rng(seed).random(lengths) < 0.6
    mask[tuple(n // 2 for n in lengths)] = True
    return mask


class RankContract(FilterContract):
    """In small pieces of an array, so that there are several of one."""

    small_bytes = 400_000  # The rows of a network.

    @pytest.fixture(autouse=True)
    def _cut(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ranking, "_PIECE", 1000)

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        return st.builds(
            self._example,
            masks(ndim),
            st.floats(0, 1),
            st.sampled_from(MODES),
            st.sampled_from([0.0, 7.5]),
        )

    @staticmethod
    def _example(mask: Array, part: float, mode: str, cval: float) -> Example:
        wanted = round(part * (mask.sum() - 1))
        window: dict[str, Any] = {"size": mask.shape} if mask.all() else {"footprint": mask}

        def plain(array: Array) -> Array:
            return scipy_rank(array.astype(np.float64), wanted, mask, mode, cval)

        return Example(rank(wanted, mode=mode, cval=cval, **window), plain)


class TestSorted(RankContract):
    """Networks."""


class TestCountedAlongLines(RankContract):
    """Histograms that slide along an axis."""

    @pytest.fixture(autouse=True)
    def _count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sorting, "_COMPARISON", 1e9)
        monkeypatch.setattr(counting, "_columns_cost", lambda footprint, bins: float("inf"))


class TestCountedByColumns(RankContract):
    """Histograms of columns."""

    @pytest.fixture(autouse=True)
    def _count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sorting, "_COMPARISON", 1e9)
        monkeypatch.setattr(counting, "_lines_cost", lambda footprint: 1e6)


class TestLightsheet(FilterContract):
    agreement = 1e-6
    small_bytes = 400_000

    @pytest.fixture(autouse=True)
    def _cut(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ranking, "_PIECE", 1000)

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        return st.builds(
            self._example,
            st.sampled_from([0.0, 20.0, 40.0]),
            st.integers(3, 6),
            st.integers(-ndim, ndim - 1),
            st.lists(st.integers(1, 4), min_size=ndim, max_size=ndim).map(tuple),
            st.sampled_from([0.5, 1.3, 2.0]),
            st.sampled_from(MODES),
        )

    @staticmethod
    def _example(
        part: float, length: int, axis: int, window: Any, factor: float, mode: str
    ) -> Example:
        line = np.ones(len(window), int)
        line[axis] = length

        def plain(array: Array) -> Array:
            voxels = array.astype(np.float64)
            along, around = (
                ndi.percentile_filter(voxels[None], part, (1, *size), mode=mode, cval=3)[0]
                for size in (line, window)
            )
            return np.maximum(voxels - np.minimum(along, factor * around), 0)

        filter_ = lightsheet(
            part, length=length, axis=axis, background=window, factor=factor, mode=mode, cval=3
        )
        return Example(filter_, plain)


ENGINES = ("numba", "scipy", "cuda")


@pytest.fixture
def apply(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Filter, Array], Array]:
    """Return what filters an array by one of the engines."""
    fake_cupy.install(monkeypatch)

    def on(engine: str, filter_: Filter, array: Array) -> Array:
        import cupy

        monkeypatch.setattr(choice, "_numba_works", lambda: engine != "scipy")
        if engine != "cuda":
            return filter_(array)
        return filter_(cupy.asarray(array)).get()

    return on


def test_medians_and_percentiles_are_those_of_scipy() -> None:
    array = np.random.default_rng(0).integers(0, 1000, (9, 10, 11)).astype(np.uint16)
    ball = np.hypot(*np.ogrid[-2:3, -2:3])[None] + np.abs(np.ogrid[-2:3])[:, None, None] <= 2
    for size in (3, (2, 4, 1), (1, 1, 6)):
        assert np.array_equal(median(size)(array), ndi.median_filter(array, size))
        for part in (0, 10, 33.4, 50.0, 99.9, 100, -0.5, -30, -100):
            found = percentile(part, size)(array)
            assert np.array_equal(found, ndi.percentile_filter(array, part, size))
        for place in (0, 1, -1, -2):
            assert np.array_equal(rank(place, size)(array), ndi.rank_filter(array, place, size))
    assert np.array_equal(median()(array), ndi.median_filter(array, 3))
    assert np.array_equal(median(footprint=ball)(array), ndi.median_filter(array, footprint=ball))
    found = percentile(20, footprint=ball.tolist())(array)
    assert np.array_equal(found, ndi.percentile_filter(array, 20, footprint=ball))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_nan_is_larger_than_everything(
    engine: str, dtype: str, apply: Callable[[str, Filter, Array], Array]
) -> None:
    rng = np.random.default_rng(3)
    values = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -2.5], dtype)
    array = rng.choice(values, (6, 7, 5))
    padded = np.pad(array, ((1, 0), (1, 1), (1, 0)), "symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 3, 2))
    in_order = np.sort(windows.reshape(*array.shape, 12), axis=-1)
    for place in range(12):
        found = apply(engine, rank(place, (2, 3, 2)), array)
        assert np.array_equal(found, in_order[..., place], equal_nan=True)
    both = np.array([0.0, -0.0, 0.0, -0.0], dtype)
    assert np.signbit(apply(engine, rank(0, 2), both)).tolist() == [False, True, True, True]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", ["int8", "uint32", "int32", "int64", "uint64", "bool"])
def test_all_integers_are_told_apart(
    engine: str, dtype: str, apply: Callable[[str, Filter, Array], Array]
) -> None:
    low, high = (0, 1) if dtype == "bool" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    values = np.array([low, low + 1, high - 1, high], dtype)
    array = np.random.default_rng(4).choice(values, (8, 9))
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(array, 1, "edge"), (3, 3))
    in_order = np.sort(windows.reshape(8, 9, 9), axis=-1)
    for place in (0, 1, 4, 7, 8):
        found = apply(engine, rank(place, mode="nearest"), array)
        assert found.dtype == dtype
        assert np.array_equal(found, in_order[..., place])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1,), 5),
        ((1, 7, 1), (3, 4, 2)),
        ((2, 3), (9, 8)),
        ((3, 4, 3, 5), 3),
        ((2, 1, 40), (1, 1, 31)),
    ],
)
def test_windows_longer_than_axes_and_any_number_of_axes(
    engine: str, shape: Any, size: Any, apply: Callable[[str, Filter, Array], Array]
) -> None:
    array = np.random.default_rng(5).integers(-500, 500, shape).astype(np.int16)
    lengths = size if isinstance(size, tuple) else (size,) * len(shape)
    mask = np.ones(lengths, bool)
    for mode in MODES:
        found = apply(engine, percentile(30, size, mode=mode, cval=-7), array)
        assert np.array_equal(found, scipy_rank(array, int(mask.sum() * 0.3), mask, mode, -7))


@pytest.mark.parametrize("engine", ENGINES)
def test_arrays_without_voxels_and_strided_ones(
    engine: str, apply: Callable[[str, Filter, Array], Array]
) -> None:
    assert apply(engine, median(), np.zeros((3, 0, 4), np.float32)).shape == (3, 0, 4)
    array = np.random.default_rng(6).integers(0, 9, (8, 12, 10)).astype(np.uint8)
    for view in (array[::2, ::-1], array.transpose(1, 0, 2)):
        assert np.array_equal(apply(engine, median(), view), ndi.median_filter(view, 3))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_networks_and_histograms_over_several_pieces(dtype: str) -> None:
    """Pieces of their real size, lines and columns of histograms, numbers beyond 16 bits."""
    array = (np.random.default_rng(7).random((24, 100, 130)) * 255).astype(dtype)
    assert np.array_equal(median((3, 2, 5))(array), ndi.median_filter(array, (3, 2, 5)))
    for size in ((1, 25, 28), (9, 9, 9), (23, 1, 29)):
        found = percentile(10, size)(array)[5:7]
        part = ndi.percentile_filter(array[:, :18, :50], 10, size)[5:7, :4, :35]
        assert np.array_equal(found[:, :4, :35], part)


def test_a_window_of_more_voxels_than_16_bits_count() -> None:
    array = np.random.default_rng(8).integers(0, 200, (2, 30, 40)).astype(np.uint8)
    found = median((5, 120, 111), mode="nearest")(array)
    for z, y, x in ((0, 0, 0), (1, 29, 39), (0, 12, 25)):
        index = [
            np.arange(i - n // 2, i - n // 2 + n).clip(0, m - 1)
            for i, n, m in zip((z, y, x), (5, 120, 111), array.shape, strict=True)
        ]
        assert found[z, y, x] == np.sort(array[np.ix_(*index)], axis=None)[5 * 120 * 111 // 2]


def test_constant_beyond_the_border_is_one_that_a_voxel_may_have() -> None:
    array = np.array([100, 100], np.uint8)
    assert rank(-1, 3, mode="constant", cval=300)(array).tolist() == [255, 255]
    assert rank(0, 3, mode="constant", cval=-5)(array).tolist() == [0, 0]
    assert rank(0, 3, mode="constant", cval=7.6)(array).tolist() == [8, 8]


def test_a_light_sheet_in_micrometres() -> None:
    """Lengths are those of voxels along their own axes."""
    one = lightsheet(length=62, axis=1, background=(8, 50, 50), voxel_size=(4, 2, 2))
    assert one.halo == (0, 15, 12)


def test_stripes_go_and_what_lies_across_them_stays() -> None:
    rng = np.random.default_rng(9)
    clean = np.zeros((3, 60, 90), np.uint16)
    clean[:, 10:14, 20:24] = 3000
    clean[1, 40:43, 60] = 5000
    lit = clean + 100 + 400 * (rng.random((3, 60, 1)) < 0.2).astype(np.uint16)
    corrected = lightsheet(length=61, axis=2, background=(1, 41, 41), factor=10)(lit)
    assert np.array_equal(corrected, clean)


def light(**changed: Any) -> Filter:
    return lightsheet(**{"length": 5, "axis": 0, "background": (3, 4, 5), **changed})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: median(0), PlanError, r"size is 0; give at least 1"),
        (lambda: median(2.5), ArgumentTypeError, r"size is 2.5 \(float\); give a whole number"),
        (lambda: median((3, 3.5)), ArgumentTypeError, r"size\[1\] is 3.5"),
        (lambda: median(3, footprint=np.ones(3)), PlanError, "give one of the two"),
        (lambda: median(footprint=np.zeros((2, 3))), PlanError, r"shape \(2, 3\) has no voxel"),
        (lambda: median(footprint=[[1], [1, 1]]), ArgumentTypeError, "array of truth values"),
        (lambda: median(mode="wrap"), PlanError, "far side"),
        (lambda: percentile(101), PlanError, "percentile is 101; give at most 100"),
        (lambda: percentile(-101), PlanError, "percentile is -101; give at least -100"),
        (lambda: percentile("low"), ArgumentTypeError, "percentile is 'low'"),
        (lambda: rank(0.5), ArgumentTypeError, "rank is 0.5"),
        (lambda: rank(12, (2, 6)), PlanError, r"rank is 12; a window of 12 voxels has -12 to 11"),
        (lambda: rank(-3, footprint=[1, 1]), PlanError, "rank is -3; a window of 2 voxels"),
        (lambda: rank(9)(np.zeros((4, 4))), PlanError, "rank is 9; a window of 9 voxels"),
        (lambda: light(background=9), ArgumentTypeError, "give a length for each axis"),
        (lambda: light(axis=3), PlanError, "axis is 3, but background has values for 3 axes"),
        (lambda: light(length=0), PlanError, "length is 0; give at least 1"),
        (lambda: light(factor=-1), PlanError, "factor is -1; give at least 0"),
        (lambda: light(percentile=-25), PlanError, "percentile is -25; give at least 0"),
        (lambda: light()(np.zeros((4, 4))), PlanError, "values for 3 axes"),
        (lambda: median((3, 3))(np.zeros(4)), PlanError, "values for 2 axes"),
    ],
)
def test_bad_parameters(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
