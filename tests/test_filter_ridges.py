"""Filters that find ridges and vessels by the eigenvalues of Hessian matrices."""

from collections.abc import Callable
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import pytest
import scipy.ndimage as ndi
import skimage.feature
import skimage.filters
from contracts.filters import Array, Example, FilterContract
from hypothesis import given, settings
from hypothesis import strategies as st

from gpublocks import filters
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.filters.engines import choice, hessians

MODES = st.sampled_from(["reflect", "mirror", "nearest", "constant"])


def eigenvalues(array: Array, sigma: Any, mode: str, unit: Any = 1.0) -> Array:
    """Return the eigenvalues of all matrices, in decreasing order along the first axis."""
    lengths = np.broadcast_to(sigma, array.ndim)
    units = np.broadcast_to(unit, array.ndim)
    axes = [axis for axis in range(array.ndim) if lengths[axis]]
    matrices = np.empty((*array.shape, len(axes), len(axes)))
    doubles = array.astype(np.float64)
    for row, column in combinations_with_replacement(range(len(axes)), 2):
        found = doubles
        for axis in axes:
            order = (axis == axes[row]) + (axis == axes[column])
            length = lengths[axis]
            one = {"order": order, "mode": mode}
            derived = ndi.gaussian_filter1d(found, length, axis, **one)
            if order == 2:
                # What a constant is taken for, less.
                point = np.zeros(2 * int(4 * length + 0.5) + 1)
                point[len(point) // 2] = 1
                excess = ndi.gaussian_filter1d(point, length, order=2, mode="constant").sum()
                derived -= excess * ndi.gaussian_filter1d(found, length, axis, mode=mode)
            found = derived / units[axis] ** order
        matrices[..., row, column] = matrices[..., column, row] = found
    return np.moveaxis(np.linalg.eigvalsh(matrices)[..., ::-1], -1, 0)


def undecided(array: Array, sigmas: Any, mode: str, modified: bool = False) -> Array:
    """Return where two eigenvalues are as large as each other: either may count as the larger."""
    found = np.zeros(array.shape, bool)
    near = 1e-5 * max(1.0, float(np.abs(array.astype(np.float64)).max(initial=0)))
    for sigma in sigmas:
        values = eigenvalues(array, sigma, mode)
        sizes = np.abs(neuriteness(values) if modified else values)
        found |= (np.diff(np.sort(sizes, axis=0), axis=0) < near).any(0) | (sizes < near).any(0)
    return found


def neuriteness(values: Array) -> Array:
    """Return the modified eigenvalues of Meijering."""
    return values - (values.sum(0) - values) / (len(values) + 1)


class TestHessianEigenvalue(FilterContract):
    axes = (2, 3)
    agreement = 2e-6
    across = 1e-14

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        lengths = st.sampled_from([0.7, 1, 1.25])
        each = st.lists(lengths, min_size=ndim, max_size=ndim).map(tuple)
        planes = st.just((0, 1, 0.8)) if ndim == 3 else st.just((1, 0.6))
        return st.builds(
            self._example, lengths | each | planes, st.integers(-2, 1), MODES, st.just(1)
        ) | st.builds(self._example, lengths, st.just(0), MODES, st.sampled_from([1, 0.8]))

    @staticmethod
    def _example(sigma: Any, index: int, mode: str, voxel: float) -> Example:
        size = None if voxel == 1 else voxel

        def plain(array: Array) -> Array:
            return eigenvalues(array, np.divide(sigma, voxel), mode, voxel)[index]

        return Example(filters.hessian_eigenvalue(sigma, index, mode=mode, voxel_size=size), plain)


class MeasureContract(FilterContract):
    axes = (2, 3)
    sigmas = st.sampled_from([(1,), (0.8, 1.2)])


class TestFrangi(MeasureContract):
    agreement = 2e-5
    across = 1e-6
    scale = staticmethod(lambda array: 1.0)
    dtypes = ("uint8", "int16", "float32", "float64")

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        return st.builds(
            self._example, self.sigmas, st.sampled_from([5.0, 50.0]), MODES, st.booleans()
        )

    @staticmethod
    def _example(sigmas: Any, gamma: float, mode: str, black: bool) -> Example:
        def plain(array: Array) -> Array:
            doubles = array.astype(np.float64) * (1 if black else -1)
            return np.max([one(eigenvalues(doubles, s, mode), gamma) for s in sigmas], axis=0)

        def one(values: Array, gamma: float) -> Array:
            values = np.take_along_axis(values, np.abs(values).argsort(0), 0)
            positive = np.all(values[1:] > 0, axis=0)
            first, second, third = np.abs(values[0]), values[-2], values[-1]
            with np.errstate(all="ignore"):
                blob = first / (np.sqrt(second * third) if len(values) == 3 else third)
                plate = second / third if len(values) == 3 else np.inf
                found = (1 - np.exp(-(plate**2) / 0.5)) * np.exp(-(blob**2) / 0.5)
                found *= 1 - np.exp(-(values**2).sum(0) / (2 * gamma**2))
            return np.where(positive, found, 0)

        made = filters.frangi(sigmas, gamma=gamma, mode=mode, black_ridges=black)
        return Example(made, plain, lambda array: undecided(array, sigmas, mode))


class TestSatoAndMeijering(MeasureContract):
    agreement = 2e-6
    across = 1e-14

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        return st.builds(
            self._example, self.sigmas, st.sampled_from(["sato", "meijering"]), MODES, st.booleans()
        )

    @staticmethod
    def _example(sigmas: Any, name: str, mode: str, black: bool) -> Example:
        def plain(array: Array) -> Array:
            doubles = array.astype(np.float64) * (1 if black else -1)
            measure = {"sato": sato, "meijering": meijering}[name]
            found = [s**2 * measure(eigenvalues(doubles, s, mode)) for s in sigmas]
            return np.max(found, axis=0)

        def sato(values: Array) -> Array:
            return np.prod(np.maximum(values[:-1], 0), 0) ** (1 / (len(values) - 1))

        def meijering(values: Array) -> Array:
            modified = neuriteness(values)
            place = np.abs(modified).argmax(0)[None]
            return np.maximum(np.take_along_axis(modified, place, 0)[0], 0)

        def jumps(array: Array) -> Array:
            return undecided(array, sigmas, mode, modified=True) & (name == "meijering")

        made = getattr(filters, name)(sigmas, mode=mode, black_ridges=black)
        return Example(made, plain, jumps)


@pytest.mark.parametrize("engine", ["numba", "scipy"])
@given(data=st.data())
@settings(max_examples=30)
def test_eigenvalues_of_all_matrices(engine: str, data: st.DataObject) -> None:
    numbers = st.sampled_from([0.0, 1.0, -1.0, 3.0, 1e-9]) | st.floats(
        -1e3, 1e3, allow_subnormal=False
    )
    elements = [np.array([data.draw(numbers)]) for _ in range(6)]
    a, d, e, b, f, c = (float(element[0]) for element in elements)
    expected = np.linalg.eigvalsh([[a, d, e], [d, b, f], [e, f, c]])[::-1]
    largest = np.abs(expected).max()
    found = []
    for index in range(3):
        given_ = [element.copy() for element in elements]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(choice, "_numba_works", lambda: engine == "numba")
            hessians._measure(given_, 3, hessians.Measure("eigenvalue", (index, 0, 0)), 1.0)
        found.append(given_[0][0])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * largest + 1e-150)


def vessels(ndim: int) -> Array:
    """Return bright tubes, a plate and blobs on a background with noise."""
    rng = np.random.default_rng(0)
    shape = {2: (90, 80), 3: (44, 42, 40)}[ndim]
    array = np.zeros(shape)
    array[(..., *[size // 3 for size in shape[1:]])] = 400
    array[(shape[0] // 4 * 3,)] = 60
    array[rng.random(shape) < 0.002] = 500
    return ndi.gaussian_filter(array, 1.5) + rng.normal(0, 0.1, shape) + 1000


@pytest.mark.parametrize("ndim", [2, 3])
def test_is_close_to_scikit_image(ndim: int) -> None:
    array = vessels(ndim)
    inside = (slice(14, -14),) * ndim
    elements = skimage.feature.hessian_matrix(array, 2.0, use_gaussian_derivatives=True)
    for index, expected in enumerate(skimage.feature.hessian_matrix_eigvals(elements)):
        found = filters.hessian_eigenvalue(2.0, index)(array)
        most = np.abs(expected[inside]).max()
        np.testing.assert_allclose(found[inside], expected[inside], rtol=0, atol=0.01 * most)
    pairs: list[tuple[Callable[[Array], Array], Array, float]] = [
        (
            filters.frangi([2, 3], gamma=2, black_ridges=False),
            skimage.filters.frangi(array, [2, 3], gamma=2, black_ridges=False),
            0.05,
        ),
        (
            filters.sato([2, 3], black_ridges=False),
            skimage.filters.sato(array, [2, 3], black_ridges=False),
            0.01,
        ),
        (
            filters.meijering([2], alpha=1 / (ndim + 1), black_ridges=False),
            skimage.filters.meijering(array, [2], black_ridges=False),
            0.02,
        ),
    ]
    for made, expected, allowed in pairs:
        found = made(array)
        if "meijering" in repr(made):
            found /= found.max()
            expected /= expected.max()
        most = expected[inside].max()
        assert most > 0
        differences = np.abs(found[inside] - expected[inside])
        assert np.quantile(differences, 0.999) <= allowed * most, made


def test_a_constant_is_no_ridge() -> None:
    array = np.full((24, 24, 24), 60_000, np.uint16)
    for made in (filters.hessian_eigenvalue(1.5), filters.sato([1, 2]), filters.meijering([2])):
        assert np.abs(made(array)).max() < 0.05


def test_what_is_no_number_stays_so() -> None:
    array = np.zeros((30, 30), np.float32)
    array[15, 15] = np.nan
    for made in (
        filters.hessian_eigenvalue(1),
        filters.frangi([1], gamma=1),
        filters.sato([1]),
        filters.meijering([1]),
    ):
        spread = np.argwhere(np.isnan(made(array)))
        assert np.abs(spread - 15).max() == made.halo


@pytest.mark.parametrize("dtype", ["bool", "float16", "int64", "uint8"])
def test_types(dtype: str) -> None:
    array = (np.random.default_rng(0).random((12, 13)) * 2).astype(dtype)
    result = filters.sato([1])(array)
    assert result.dtype == ("float64" if dtype == "int64" else "float32")
    np.testing.assert_allclose(result, filters.sato([1])(array.astype(np.float64)), atol=1e-5)
    whole = filters.frangi([1], gamma=1, dtype="uint8")(array)
    assert whole.dtype == "uint8"


def test_looks_as_far_as_the_largest_scale_does() -> None:
    assert filters.sato([1, 3], voxel_size=(1, 2)).halo == (12, 6)
    assert filters.meijering([3, 1]).halo == 12
    for made in (filters.sato([1, 2], voxel_size=(1, 2)), filters.sato([2, 1])):
        reach, _ = made.halo if isinstance(made.halo, tuple) else (made.halo, 0)
        array = np.zeros((40, 9))
        array[20] = 1
        assert np.flatnonzero(made(array).any(1)).min() >= 20 - reach


def test_odd_shapes() -> None:
    assert filters.sato([1])(np.zeros((0, 4))).shape == (0, 4)
    assert filters.sato([1])(np.ones((1, 1, 5))).shape == (1, 1, 5)
    array = np.random.default_rng(0).random((3, 4, 12, 13))
    planes = filters.hessian_eigenvalue((0, 0, 1, 1.5))(array)
    alone = filters.hessian_eigenvalue((1, 1.5))(array[2, 1])
    assert np.array_equal(planes[2, 1], alone)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: filters.frangi([1]), TypeError, "gamma"),
        (lambda: filters.frangi([1], gamma=0), PlanError, "gamma is 0; give more than 0"),
        (lambda: filters.frangi([], gamma=1), PlanError, "sigmas is empty"),
        (lambda: filters.sato([1, 0]), PlanError, r"sigmas\[1\] is 0; give more than 0"),
        (lambda: filters.sato("12"), ArgumentTypeError, "sigmas is '12'"),
        (lambda: filters.sato(black_ridges=1), ArgumentTypeError, "black_ridges is 1"),
        (lambda: filters.meijering(alpha=2), PlanError, "alpha is 2; give at most 1"),
        (lambda: filters.hessian_eigenvalue(0), PlanError, "two or three axes"),
        (lambda: filters.hessian_eigenvalue((1, 0)), PlanError, "two or three axes"),
        (lambda: filters.hessian_eigenvalue(1, 3), PlanError, "index is 3; give at most 2"),
        (lambda: filters.hessian_eigenvalue(1, 2)(np.zeros((9, 9))), PlanError, "give 0 to 1"),
        (lambda: filters.sato([1])(np.zeros(9)), PlanError, "the array has 1 axes"),
        (lambda: filters.sato([1])(np.zeros((2, 2, 2, 2))), PlanError, "has 4 axes"),
    ],
)
def test_parameters_that_make_no_sense(make: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()
