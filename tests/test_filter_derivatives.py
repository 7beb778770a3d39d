"""Filters that find edges and blobs: Laplacians, gradients, differences of Gaussians."""

from typing import Any

import numpy as np
import pytest
import scipy.ndimage as ndi
from contracts.filters import Array, Example, FilterContract
from hypothesis import strategies as st
from skimage import filters as peer

from gpublocks import filters
from gpublocks.errors import ArgumentTypeError, PlanError

MODES = ("reflect", "mirror", "nearest", "constant")
RESULTS = (None, "uint8", "float32")


def borders() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"mode": st.sampled_from(MODES), "cval": st.sampled_from([0.0, 7.5])}
    )


def some_sigma(ndim: int) -> st.SearchStrategy[Any]:
    """Return sigmas of which one is more than 0."""
    values = st.sampled_from([0, 0.4, 0.7, 1, 1.25])
    each = st.lists(values, min_size=ndim, max_size=ndim).map(tuple)
    return (values | each).filter(lambda sigma: np.any(np.asarray(sigma) > 0))


class TestLaplace(FilterContract):
    agreement = 1e-6

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        def example(border: dict[str, Any], dtype: Any) -> Example:
            return Example(
                filters.laplace(**border, dtype=dtype),
                lambda array: ndi.laplace(array.astype(np.float64), **border),
            )

        return st.builds(example, borders(), st.sampled_from(RESULTS))


class TestGaussianLaplace(FilterContract):
    agreement = 1e-6

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        return st.builds(self._example, some_sigma(ndim), borders(), st.sampled_from([2.0, 4.0]))

    @staticmethod
    def _example(sigma: Any, border: dict[str, Any], truncate: float) -> Example:
        def plain(array: Array) -> Array:
            lengths = np.broadcast_to(sigma, array.ndim)
            total = np.zeros(array.shape)
            for axis in np.flatnonzero(lengths):
                order = [2 if axis == along else 0 for along in range(array.ndim)]
                kwargs = {**border, "order": order, "truncate": truncate}
                total += ndi.gaussian_filter(array.astype(np.float64), lengths, **kwargs)
            return total

        return Example(filters.gaussian_laplace(sigma, **border, truncate=truncate), plain)


class TestGaussianGradientMagnitude(FilterContract):
    agreement = 1e-6

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        return st.builds(self._example, some_sigma(ndim), borders(), st.sampled_from(RESULTS))

    @staticmethod
    def _example(sigma: Any, border: dict[str, Any], dtype: Any) -> Example:
        def plain(array: Array) -> Array:
            lengths = np.broadcast_to(sigma, array.ndim)
            squares = np.zeros(array.shape)
            for axis in np.flatnonzero(lengths):
                order = [int(axis == along) for along in range(array.ndim)]
                doubles = array.astype(np.float64)
                squares += ndi.gaussian_filter(doubles, lengths, order, **border) ** 2
            return np.sqrt(squares)

        made = filters.gaussian_gradient_magnitude(sigma, **border, dtype=dtype)
        return Example(made, plain)


class TestDifferenceOfGaussians(FilterContract):
    agreement = 1e-6

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        low = st.sampled_from([0, 0.4, 0.7])
        high = st.sampled_from([0.8, 1, 1.2])
        each = st.lists(high, min_size=ndim, max_size=ndim).map(tuple)
        return st.builds(self._example, low, high | each, borders())

    @staticmethod
    def _example(low: Any, high: Any, border: dict[str, Any]) -> Example:
        def plain(array: Array) -> Array:
            return peer.difference_of_gaussians(array.astype(np.float64), low, high, **border)

        return Example(filters.difference_of_gaussians(low, high, **border), plain)


class TestSobelAndPrewitt(FilterContract):
    agreement = 1e-6

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        axes = st.none() | st.integers(-ndim, ndim - 1)
        return st.builds(self._example, st.sampled_from(["sobel", "prewitt"]), axes, borders())

    @staticmethod
    def _example(name: str, axis: int | None, border: dict[str, Any]) -> Example:
        definition = getattr(ndi, name)

        def plain(array: Array) -> Array:
            doubles = array.astype(np.float64)
            if axis is None:
                return ndi.generic_gradient_magnitude(doubles, definition, **border)
            return definition(doubles, axis, **border)

        return Example(getattr(filters, name)(axis, **border), plain)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_are_those_of_scipy_bit_for_bit(dtype: str) -> None:
    array = np.random.default_rng(0).normal(size=(20, 21, 22)).astype(dtype)
    sigma = (1, 2, 0.7)
    for found, expected in (
        (filters.laplace(), ndi.laplace(array)),
        (filters.gaussian_laplace(sigma), ndi.gaussian_laplace(array, sigma)),
        (
            filters.gaussian_gradient_magnitude(sigma),
            ndi.gaussian_gradient_magnitude(array, sigma),
        ),
        (
            filters.difference_of_gaussians(1, 2, mode="reflect"),
            ndi.gaussian_filter(array, 1) - ndi.gaussian_filter(array, 2),
        ),
        (filters.sobel(1), ndi.sobel(array, 1)),
        (filters.sobel(None), ndi.generic_gradient_magnitude(array, ndi.sobel)),
        (filters.prewitt(), ndi.prewitt(array)),
    ):
        result = found(array)
        assert result.dtype == dtype
        assert np.array_equal(result, expected), found


@pytest.mark.parametrize("name", ["sobel", "prewitt"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_magnitudes_are_those_of_scikit_image_but_for_a_factor(name: str, ndim: int) -> None:
    array = np.random.default_rng(0).random((12,) * ndim)
    factor = {"sobel": 4, "prewitt": 3}[name] ** (ndim - 1) * np.sqrt(ndim)
    found = getattr(filters, name)(axis=None)(array)
    np.testing.assert_allclose(found / factor, getattr(peer, name)(array), atol=1e-12)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "bool", "float16"])
def test_short_types_lose_nothing(dtype: str) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 2, (9, 9, 9)).astype(dtype)
    if dtype not in ("bool", "float16"):
        info = np.iinfo(dtype)
        array = np.where(array, info.max, info.min).astype(dtype)
    for made, plain in ((filters.laplace(), ndi.laplace), (filters.sobel(), ndi.sobel)):
        result = made(array)
        assert result.dtype == np.float32
        assert np.array_equal(result, plain(array.astype(np.float64)))


def test_a_difference_is_not_rounded_in_between() -> None:
    array = np.zeros((13, 13), np.uint8)
    array[6, 6] = 1
    assert np.count_nonzero(filters.difference_of_gaussians(1)(array)) > 100
    assert filters.difference_of_gaussians(1)(array).sum() == pytest.approx(0, abs=1e-4)


def test_what_is_no_number_stays_where_it_is() -> None:
    array = np.zeros((30, 30), np.float32)
    array[15, 15] = np.nan
    for made in (filters.laplace(), filters.sobel(None), filters.difference_of_gaussians(1, 2)):
        spread = np.argwhere(np.isnan(made(array)))
        assert 0 < np.abs(spread - 15).max() <= made.halo
    array[15, 15] = np.inf
    with np.errstate(invalid="ignore"):
        assert np.array_equal(filters.laplace()(array), ndi.laplace(array), equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 4), (1, 1, 1), (3, 4, 5, 6)])
def test_odd_shapes(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).random(shape)
    for made, plain in (
        (filters.laplace(), ndi.laplace),
        (filters.gaussian_laplace(1.0), lambda x: ndi.gaussian_laplace(x, 1.0)),
        (filters.sobel(None), lambda x: ndi.generic_gradient_magnitude(x, ndi.sobel)),
    ):
        result = made(array)
        assert result.shape == shape
        if array.size:
            assert np.array_equal(result, plain(array))


def test_strided_arrays_are_taken_as_they_are() -> None:
    array = np.random.default_rng(0).random((12, 11, 10))[::2, ::-1, 1:]
    assert np.array_equal(filters.gaussian_laplace(1)(array), ndi.gaussian_laplace(array, 1))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: filters.gaussian_laplace(0), PlanError, "sigma is 0; a derivative needs"),
        (lambda: filters.gaussian_gradient_magnitude((0, 0)), PlanError, "one axis with more"),
        (lambda: filters.gaussian_laplace(-1), PlanError, "sigma is -1; give at least 0"),
        (lambda: filters.difference_of_gaussians(2, 1), PlanError, "less than low_sigma, 2"),
        (lambda: filters.difference_of_gaussians((1, 3), 2), PlanError, "give the larger one"),
        (lambda: filters.difference_of_gaussians(2, 2), PlanError, "leaves nothing"),
        (lambda: filters.difference_of_gaussians((1, 2), (2, 3, 4)), PlanError, "2 and high"),
        (lambda: filters.difference_of_gaussians("1"), ArgumentTypeError, "low_sigma is '1'"),
        (lambda: filters.sobel(1.5), ArgumentTypeError, "axis is 1.5 .* whole number"),
        (lambda: filters.sobel(2)(np.zeros((3, 3))), PlanError, "axis is 2, .*give -2 to 1"),
        (lambda: filters.laplace(mode="wrap"), PlanError, "far side"),
        (lambda: filters.laplace(dtype="complex64"), ArgumentTypeError, "complex64"),
    ],
)
def test_parameters_that_make_no_sense(make: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()
