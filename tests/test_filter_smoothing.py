"""Filters that smooth: Gaussians and their derivatives, means over windows."""

from typing import Any

import numpy as np
import scipy.ndimage as ndi
from contracts.filters import Array, Example, FilterContract
from hypothesis import strategies as st

from gpublocks.filters import gaussian

MODES = ("reflect", "mirror", "nearest", "constant")


def per_axis(values: st.SearchStrategy[Any], ndim: int) -> st.SearchStrategy[Any]:
    """Return one value for all axes, or one for each."""
    return values | st.lists(values, min_size=ndim, max_size=ndim).map(tuple)


class TestGaussian(FilterContract):
    agreement = 1e-6

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        return st.builds(
            self._example,
            per_axis(st.sampled_from([0, 0.4, 0.7, 1, 1.25]), ndim),
            per_axis(st.integers(0, 2), ndim),
            st.sampled_from(MODES),
            st.sampled_from([0.0, 7.5]),
            st.sampled_from([2.0, 4.0]),
        )

    @staticmethod
    def _example(sigma: Any, order: Any, mode: str, cval: float, truncate: float) -> Example:
        kwargs = {"order": order, "mode": mode, "cval": cval, "truncate": truncate}

        def plain(array: Array) -> Array:
            return ndi.gaussian_filter(array.astype(np.float64), sigma, **kwargs)

        return Example(gaussian(sigma, **kwargs), plain)


def test_floats_are_those_of_scipy_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    for dtype in ("float32", "float64"):
        array = rng.normal(size=(20, 21, 22)).astype(dtype)
        for order in (0, 1, 2, (0, 1, 3)):
            expected = ndi.gaussian_filter(array, (1, 2, 0.7), order=order)
            assert np.array_equal(gaussian((1, 2, 0.7), order=order)(array), expected)
