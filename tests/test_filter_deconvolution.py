"""Filters that undo blur."""

from typing import Any

import numpy as np
import pytest
import scipy.ndimage as ndi
from contracts.filters import Array, Example, FilterContract
from hypothesis import strategies as st
from skimage.restoration import richardson_lucy

import gpublocks.block_processing as bp
from gpublocks import filters
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.filters import Filter


def a_psf(shape: tuple[int, ...], seed: int) -> Array:
    """Return a random point spread function, whose corners are not 0."""
    return np.random.default_rng(seed).random(shape) + 0.2


def plain(array: Array, psf: Array, iterations: int) -> Array:
    """Deconvolve by sums over the voxels of the function, one after the other."""
    kernel = psf / psf.sum()
    volume = np.maximum(array.astype(np.float64), 0)
    estimate = np.full(array.shape, 0.5)
    steps = [np.array(place) - (np.array(psf.shape) - 1) // 2 for place in np.ndindex(psf.shape)]
    for _ in range(iterations):
        blurred = sum(w * moved(estimate, s) for w, s in zip(kernel.flat, steps, strict=True))
        ratio = volume / (blurred + 1e-12)
        estimate *= sum(w * moved(ratio, -s) for w, s in zip(kernel.flat, steps, strict=True))
    return estimate


def moved(array: Array, by: Array) -> Array:
    """Return an array that is moved by some voxels, with zeros behind it."""
    found = np.zeros_like(array)
    pairs = [(max(0, -d), max(0, n - max(0, d))) for d, n in zip(by, array.shape, strict=True)]
    source = tuple([slice(start, stop) for start, stop in pairs])
    target = tuple([slice(s + d, max(e, s) + d) for (s, e), d in zip(pairs, by, strict=True)])
    if found[target].size and found[target].shape == array[source].shape:
        found[target] = array[source]
    return found


class TestRichardsonLucy(FilterContract):
    agreement = 2e-5
    across = 2e-5
    blindness = 1e-9
    modesty = 3.0
    small_bytes = 300_000

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        most = {1: 5, 2: 4, 3: 3}[ndim]
        shapes = st.lists(st.integers(1, most), min_size=ndim, max_size=ndim).map(tuple)
        return st.builds(
            self._example,
            st.builds(a_psf, shapes, st.integers(0, 99)),
            st.integers(1, 2),
        )

    @staticmethod
    def _example(psf: Array, iterations: int) -> Example:
        def expected(array: Array) -> Array:
            return plain(array, psf, iterations)

        return Example(filters.richardson_lucy(psf, iterations), expected)

    def _sees_the_end(
        self, filter_: Filter, array: Array, centre: tuple[int, ...], axis: int, halo: Any
    ) -> bool:
        """Tell whether it makes a difference where a block ends: zeros are beyond it."""
        if not halo[axis]:
            return False
        value = filter_(array)[centre]
        ends = []
        for less in (0, 1):
            first = centre[axis] - halo[axis] + less
            block = array[(slice(None),) * axis + (slice(first, None),)]
            place = (*centre[:axis], centre[axis] - first, *centre[axis + 1 :])
            ends.append(self._differ(filter_(block)[place], value))
        assert not ends[0], f"needs more than {halo}"
        return ends[1]


def test_is_that_of_scikit_image() -> None:
    rng = np.random.default_rng(0)
    psf = a_psf((3, 5, 7), 0)
    array = rng.random((20, 21, 22))
    made = filters.richardson_lucy(psf, 5)
    expected = richardson_lucy(array, psf / psf.sum(), 5, clip=False)
    np.testing.assert_allclose(made(array), expected, rtol=1e-9)
    bright = 3 * array
    clipped = filters.richardson_lucy(psf, 5, clip=True, filter_epsilon=0.1)(bright)
    expected = richardson_lucy(bright, psf / psf.sum(), 5, clip=True, filter_epsilon=0.1)
    np.testing.assert_allclose(clipped, expected, rtol=1e-9)


def test_what_was_blurred_is_sharper() -> None:
    rng = np.random.default_rng(0)
    truth = np.zeros((60, 60))
    truth[rng.integers(8, 52, 12), rng.integers(8, 52, 12)] = 1000
    psf = ndi.gaussian_filter(np.pad([[1.0]], 6), 2.0)
    blurred = ndi.convolve(truth, psf, mode="constant")
    for dtype in ("uint16", "float32"):
        found = filters.richardson_lucy(psf, 100)(blurred.round().astype(dtype))
        assert found.dtype == np.float32
        assert found.sum() == pytest.approx(truth.sum(), rel=0.02)
        assert np.abs(found - truth).sum() < 0.65 * np.abs(blurred - truth).sum()
        likeness = np.corrcoef(found.flat, truth.flat)[0, 1]
        assert likeness > 2 * np.corrcoef(blurred.flat, truth.flat)[0, 1]


def test_less_halo_is_wrong_at_borders_of_blocks_only() -> None:
    rng = np.random.default_rng(0)
    array = rng.random((90, 8)) + 1
    psf = np.ones((5, 1))
    whole = filters.richardson_lucy(psf, 6)(array)
    errors = []
    for halo in (2, 8, 24):
        made = filters.richardson_lucy(psf, 6, halo=(halo, 0))
        assert made.halo == (halo, 0)
        result = bp.process(made, array, axes=0, size_max=50, executor="serial", verbose=False)
        errors.append(np.abs(result - whole).max())
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-12


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -50.0])
def test_what_is_no_brightness_counts_as_none(value: float) -> None:
    array = np.random.default_rng(0).random((12, 13)).astype(np.float32)
    array[5, 6] = 0
    expected = filters.richardson_lucy(np.ones((3, 3)))(array)
    array[5, 6] = value
    assert np.array_equal(filters.richardson_lucy(np.ones((3, 3)))(array), expected)


@pytest.mark.parametrize("dtype", ["bool", "float16", "int64", "int8"])
def test_types(dtype: str) -> None:
    array = (np.random.default_rng(0).random((12, 13)) * 100).astype(dtype)
    found = filters.richardson_lucy(np.ones((3, 2)))(array)
    assert found.dtype == ("float64" if dtype == "int64" else "float32")
    doubles = filters.richardson_lucy(np.ones((3, 2)))(array.astype(np.float64))
    np.testing.assert_allclose(found, doubles, rtol=1e-4, atol=1e-4 * doubles.max())
    whole = filters.richardson_lucy(np.ones((3, 2)), dtype="uint8")(array)
    assert whole.dtype == np.uint8
    assert np.abs(whole - doubles.clip(0, 255)).max() < 0.51


@pytest.mark.parametrize("shape", [(0, 4), (1, 1, 1), (3, 4, 2, 5)])
def test_odd_shapes(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).random(shape)
    psf = a_psf((7,) * len(shape), 0)
    found = filters.richardson_lucy(psf, 2)(array)
    np.testing.assert_allclose(found, plain(array, psf, 2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: filters.richardson_lucy([[1]]), ArgumentTypeError, "psf is a list; give a NumPy"),
        (lambda: filters.richardson_lucy(np.ones(3, complex)), ArgumentTypeError, "complex128"),
        (lambda: filters.richardson_lucy(np.zeros((0, 3))), PlanError, r"the shape \(0, 3\)"),
        (lambda: filters.richardson_lucy(np.zeros(3)), PlanError, "none but 0"),
        (lambda: filters.richardson_lucy(np.array([1, -1, 1])), PlanError, "negative values"),
        (lambda: filters.richardson_lucy(np.array([1, np.nan])), PlanError, "undefined"),
        (lambda: filters.richardson_lucy(np.ones(3), 0), PlanError, "iterations is 0; give at"),
        (lambda: filters.richardson_lucy(np.ones(3), 1.5), ArgumentTypeError, "iterations is 1.5"),
        (lambda: filters.richardson_lucy(np.ones(3), clip=1), ArgumentTypeError, "clip is 1"),
        (lambda: filters.richardson_lucy(np.ones(3), filter_epsilon=0), PlanError, "more than 0"),
        (lambda: filters.richardson_lucy(np.ones(3), halo=-1), PlanError, "halo is -1"),
        (lambda: filters.richardson_lucy(np.ones(3), halo=(1, 2)), PlanError, "halo has 2 values"),
        (
            lambda: filters.richardson_lucy(np.ones(3))(np.ones((3, 3))),
            PlanError,
            "values for 1 axes, but the array has 2",
        ),
    ],
)
def test_parameters_that_make_no_sense(make: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()
