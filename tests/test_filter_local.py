"""Filters that compare voxels with what is around them."""

from typing import Any

import numpy as np
import pytest
import scipy.ndimage as ndi
import skimage.filters
from contracts.filters import Array, Example, FilterContract
from hypothesis import strategies as st

from gpublocks import filters
from gpublocks.errors import PlanError

PADDING = {"reflect": "symmetric", "mirror": "reflect", "nearest": "edge", "constant": "constant"}
MODES = st.sampled_from(sorted(PADDING))


def windows(array: Array, size: Any, mode: str, cval: float = 0.0) -> Array:
    """Return the windows of all voxels, as the last axis."""
    sizes = np.broadcast_to(size, array.ndim)
    around = [(length // 2, (length - 1) // 2) for length in sizes]
    constant = {"constant_values": cval} if mode == "constant" else {}
    padded = np.pad(array.astype(np.float64), around, PADDING[mode], **constant)
    found = np.lib.stride_tricks.sliding_window_view(padded, tuple(sizes))
    return found.reshape(*array.shape, -1)


def some_size(ndim: int) -> st.SearchStrategy[Any]:
    return st.integers(1, 5) | st.lists(st.integers(1, 5), min_size=ndim, max_size=ndim).map(tuple)


class TestNormalizeLocalContrast(FilterContract):
    agreement = 2e-5
    across = 1e-14
    scale = staticmethod(lambda array: 1.0)

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        sigmas = st.sampled_from([0.7, 1.0])
        return st.builds(
            self._boxes, some_size(ndim), MODES, st.sampled_from([1.0, 20.0])
        ) | st.builds(self._bells, sigmas, MODES)

    @staticmethod
    def _boxes(size: Any, mode: str, eps: float) -> Example:
        def plain(array: Array) -> Array:
            around = windows(array, size, mode, 9.5)
            return (array - around.mean(-1)) / np.maximum(around.std(-1), eps)

        made = filters.normalize_local_contrast(size, eps=eps, mode=mode, cval=9.5)
        return Example(made, plain)

    @staticmethod
    def _bells(sigma: float, mode: str) -> Example:
        def plain(array: Array) -> Array:
            doubles = array.astype(np.float64)
            mean = ndi.gaussian_filter(doubles, sigma, mode=mode)
            square = ndi.gaussian_filter(doubles**2, sigma, mode=mode)
            return (doubles - mean) / np.maximum(np.sqrt(np.maximum(square - mean**2, 0)), 1)

        return Example(filters.normalize_local_contrast(sigma=sigma, eps=1.0, mode=mode), plain)


class TestLocalThreshold(FilterContract):
    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        offsets = st.sampled_from([0.0, 2.5])
        sizes = st.sampled_from([2, 3, 5])
        return (
            st.builds(self._gaussian, sizes, offsets, MODES)
            | st.builds(self._mean, some_size(ndim), offsets, MODES)
            | st.builds(self._deviation, sizes, st.sampled_from([-0.3, 0.2]), st.booleans(), MODES)
        )

    @staticmethod
    def _gaussian(size: int, offset: float, mode: str) -> Example:
        def plain(array: Array) -> Array:
            short = array.dtype.itemsize <= 2 or array.dtype == np.float32
            floats = array.astype(np.float32 if short else np.float64)
            level = ndi.gaussian_filter(floats, (size - 1) / 6, mode=mode, cval=9.5)
            return array > level - offset

        made = filters.local_threshold(size, offset=offset, mode=mode, cval=9.5)
        return Example(made, plain)

    @staticmethod
    def _mean(size: Any, offset: float, mode: str) -> Example:
        def plain(array: Array) -> Array:
            sums = array.astype(np.float64)
            beyond = 9.5
            for axis, length in enumerate(np.broadcast_to(size, array.ndim)):
                sums = ndi.correlate1d(sums, np.ones(length), axis, mode=mode, cval=beyond)
                beyond *= length
            return array > sums / np.prod(np.broadcast_to(size, array.ndim)) - offset

        kwargs = {"method": "mean", "offset": offset, "mode": mode, "cval": 9.5}
        return Example(filters.local_threshold(size, **kwargs), plain)

    @staticmethod
    def _deviation(size: int, k: float, sauvola: bool, mode: str) -> Example:
        def plain(array: Array) -> Array:
            mean = square = array.astype(np.float64)
            square = square**2
            for axis in range(array.ndim):
                mean = ndi.correlate1d(mean, np.ones(size), axis, mode=mode)
                square = ndi.correlate1d(square, np.ones(size), axis, mode=mode)
            mean, square = mean / size**array.ndim, square / size**array.ndim
            deviation = np.sqrt(np.maximum(square - mean**2, 0))
            if sauvola:
                return array > mean * (1 + k * (deviation / 70 - 1))
            return array > mean - k * deviation

        method = "sauvola" if sauvola else "niblack"
        return Example(filters.local_threshold(size, method=method, k=k, r=70, mode=mode), plain)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float64"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_thresholds_are_those_of_scikit_image(dtype: str, ndim: int) -> None:
    rng = np.random.default_rng(0)
    array = rng.random((25, 24, 23)[:ndim])
    if dtype != "float64":
        array = (array * np.iinfo(dtype).max).astype(dtype)
    local = skimage.filters.threshold_local
    for made, level in (
        (filters.local_threshold(5), local(array, 5)),
        (filters.local_threshold(7, offset=0.1), local(array, 7, offset=0.1)),
        (filters.local_threshold(5, method="mean"), local(array, 5, "mean")),
        (
            filters.local_threshold(5, method="niblack", mode="mirror"),
            skimage.filters.threshold_niblack(array, 5),
        ),
        (
            filters.local_threshold(5, method="sauvola", mode="mirror"),
            skimage.filters.threshold_sauvola(array, 5),
        ),
    ):
        close = np.abs(array - level) < 1e-6 * np.abs(level)
        assert np.count_nonzero(close) < 0.01 * array.size
        assert np.array_equal(made(array)[~close], (array > level)[~close]), made


@pytest.mark.parametrize("method", ["gaussian", "mean", "niblack", "sauvola"])
@pytest.mark.parametrize("value", [3, 177, 65535])
def test_no_voxel_of_a_constant_is_brighter_than_it(method: str, value: int) -> None:
    array = np.full((12, 13, 14), value, np.uint16)
    assert not filters.local_threshold(7, method=method, k=0.0)(array).any()
    for made in (filters.normalize_local_contrast(7), filters.normalize_local_contrast(sigma=1.5)):
        assert not made(array).astype(np.int64).any()
    assert not filters.normalize_local_contrast(7)(array).any()


def test_a_small_deviation_of_a_large_mean_is_found() -> None:
    rng = np.random.default_rng(0)
    array = rng.normal(1e5, 0.1, (40, 40)).astype(np.float32)
    around = windows(array, 5, "reflect")
    expected = (array - around.mean(-1)) / around.std(-1)
    np.testing.assert_allclose(filters.normalize_local_contrast(5)(array), expected, atol=1e-3)


def test_what_is_no_number_stays_in_its_window() -> None:
    array = np.random.default_rng(0).random((20, 20))
    array[10, 10] = np.nan
    spread = np.argwhere(np.isnan(filters.normalize_local_contrast(5)(array)))
    assert np.abs(spread - 10).max() == 2
    assert not filters.local_threshold(5, method="mean", offset=9)(array)[8:13, 8:13].any()


@pytest.mark.parametrize("dtype", ["bool", "float16", "int64"])
def test_types(dtype: str) -> None:
    array = (np.random.default_rng(0).random((12, 13)) * 2).astype(dtype)
    doubles = array.astype(np.float64)
    contrast = filters.normalize_local_contrast(3)
    np.testing.assert_allclose(contrast(array), contrast(doubles), atol=1e-6)
    for method in ("gaussian", "mean", "niblack", "sauvola"):
        made = filters.local_threshold(3, method=method, r=0.5)
        assert made(array).dtype == bool
        assert np.array_equal(made(array), made(doubles)), method


@pytest.mark.parametrize("shape", [(0, 4), (1, 1, 1), (2, 3, 4, 5)])
def test_odd_shapes(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).random(shape)
    assert filters.normalize_local_contrast(9)(array).shape == shape
    assert filters.local_threshold(9, method="sauvola")(array).shape == shape


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: filters.normalize_local_contrast(), "give one of them"),
        (lambda: filters.normalize_local_contrast(3, sigma=2), "size is 3 and sigma 2"),
        (lambda: filters.normalize_local_contrast(3, eps=0), "eps is 0; give more than 0"),
        (lambda: filters.local_threshold(3, method="otsu"), "method is 'otsu'; use one of gaus"),
        (lambda: filters.local_threshold(0), "size is 0; give at least 1"),
        (lambda: filters.local_threshold(3, method="sauvola", r=0), "r is 0; give more"),
        (lambda: filters.local_threshold((3, 5))(np.zeros(4)), "values for 2 axes"),
    ],
)
def test_parameters_that_make_no_sense(make: Any, match: str) -> None:
    with pytest.raises(PlanError, match=match):
        make()
