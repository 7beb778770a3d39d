"""Filters that smooth and keep edges."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from contracts.filters import Array, Example, FilterContract
from hypothesis import strategies as st
from skimage.restoration import denoise_bilateral

from gpublocks import filters
from gpublocks.errors import PlanError
from gpublocks.filters.engines import choice

PADDING = {"reflect": "symmetric", "mirror": "reflect", "nearest": "edge", "constant": "constant"}


def plain_bilateral(array: Array, colour: float, sigma: Any, size: Any, mode: str) -> Array:
    """Return the weighted mean of each window, one place of it after the other."""
    sigmas, sizes = np.broadcast_to(sigma, array.ndim), np.broadcast_to(size, array.ndim)
    centre = array.astype(np.float64)
    constant = {"constant_values": 9.5} if mode == "constant" else {}
    around = [(n // 2, (n - 1) // 2) for n in sizes]
    padded = np.pad(centre, around, PADDING[mode], **constant)
    total, weights = np.zeros(array.shape), np.zeros(array.shape)
    for place in product(*map(range, sizes)):
        box = tuple([slice(p, p + n) for p, n in zip(place, array.shape, strict=True)])
        distances = (np.array(place) - sizes // 2) / np.where(sigmas > 0, sigmas, 1)
        difference = (padded[box] - centre) / colour
        weight = np.exp(-0.5 * (distances**2).sum()) * np.exp(-0.5 * difference**2)
        total += weight * padded[box]
        weights += weight
    return total / weights


class TestBilateral(FilterContract):
    agreement = 1e-7
    across = 1e-14

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        sigmas = st.sampled_from([0.5, 1.0, 1.5])
        each = st.lists(sigmas | st.just(0), min_size=ndim, max_size=ndim).map(tuple)
        return st.builds(
            self._example,
            st.sampled_from([8.0, 40.0, 5000.0]),
            sigmas | each,
            st.sampled_from([None, 2, 3]),
            st.sampled_from(sorted(PADDING)),
        )

    @staticmethod
    def _example(colour: float, sigma: Any, size: Any, mode: str) -> Example:
        if isinstance(sigma, tuple) and size is not None:
            size = tuple([size if length else 1 for length in sigma])
        default = np.where(
            np.asarray(sigma) > 0, np.maximum(5, 2 * np.ceil(3 * np.asarray(sigma)) + 1), 1
        )
        window = default.astype(int) if size is None else size

        def plain(array: Array) -> Array:
            return plain_bilateral(array, colour, sigma, window, mode)

        return Example(filters.bilateral(colour, sigma, size=size, mode=mode, cval=9.5), plain)

    def _noise(self, rng: np.random.Generator, shape: tuple[int, ...], attempt: int) -> Array:
        return rng.random(shape) * 10


def test_is_that_of_scikit_image() -> None:
    # Of distances all weights are the same: its table of them is one row and column too large.
    array = np.random.default_rng(0).random((40, 41))
    expected = denoise_bilateral(array, 7, 0.2, 1e6, bins=1_000_000, mode="edge")
    found = filters.bilateral(0.2, 1e6, size=7, mode="nearest")(array)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_edges_stay_and_noise_goes() -> None:
    rng = np.random.default_rng(0)
    edge = np.where(np.arange(40) < 20, 100.0, 200.0)[:, None] * np.ones((40, 40))
    found = filters.bilateral(30, 2)(edge + rng.normal(0, 5, edge.shape))
    assert np.abs(found - edge).std() < 1.5
    np.testing.assert_allclose(filters.bilateral(1, 2)(edge), edge, rtol=1e-13)


@pytest.mark.parametrize("engine", ["numba", "scipy"])
def test_what_is_no_number_has_no_weight(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_numba_works", lambda: engine == "numba")
    array = np.full((9, 9), 3.0, np.float32)
    array[4, 4], array[0, 0] = np.nan, np.inf
    found = filters.bilateral(1)(array)
    assert np.isnan(found[4, 4])
    found[4, 4] = found[0, 0] = 3
    assert np.all(found == 3)


@pytest.mark.parametrize("dtype", ["bool", "float16", "int64", "uint8", "int8"])
def test_types(dtype: str) -> None:
    array = (np.random.default_rng(0).random((12, 13)) * 100).astype(dtype)
    found = filters.bilateral(20)(array)
    assert found.dtype == ("float32" if dtype == "bool" else dtype)
    doubles = filters.bilateral(20)(array.astype(np.float64))
    np.testing.assert_allclose(found, doubles, atol=0.51 if found.dtype.kind in "iu" else 0.05)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 4, 5), (2,) * 8])
def test_odd_shapes(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).random(shape)
    found = filters.bilateral(0.3, size=3)(array)
    assert filters.bilateral(0.3)(array[:0]).shape == (0, *shape[1:])
    np.testing.assert_allclose(found, plain_bilateral(array, 0.3, 1.0, 3, "reflect"), atol=1e-7)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: filters.bilateral(0), "sigma_color is 0; give more than 0"),
        (lambda: filters.bilateral(1, -1), "sigma_spatial is -1; give at least 0"),
        (lambda: filters.bilateral(1, (1, 0), size=3), "give size 1 where sigma is 0"),
        (lambda: filters.bilateral(1, (1, 1), size=(3, 3, 3)), "for 2 and size for 3 axes"),
        (lambda: filters.bilateral(1, mode="wrap"), "far side"),
        (lambda: filters.bilateral(1)(np.zeros((1,) * 9)), "has 9 axes; this filter is for 1 to 8"),
    ],
)
def test_parameters_that_make_no_sense(make: Any, match: str) -> None:
    with pytest.raises(PlanError, match=match):
        make()
