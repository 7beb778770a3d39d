"""Numbers of whole volumes: those of NumPy, whatever the blocks and whoever computes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_cupy
import numpy as np
import pytest
from contracts.filters import arrays
from hypothesis import assume, given
from hypothesis import strategies as st

from gpublocks import filters
from gpublocks.errors import ArgumentTypeError, PlanError
from gpublocks.filters import histogram, minmax, percentiles
from gpublocks.filters.statistics import _Bins, _Count, _extremes, _Keys

TYPES = ("?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", ">i2", ">f4")
SPECIAL = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0]

Array = np.ndarray[Any, Any]


@st.composite
def volumes(draw: st.DrawFn, types: tuple[str, ...] = TYPES) -> Array:
    """Return arrays of any type, those of floats with what is no number, but not with that only."""
    kind = np.dtype(draw(st.sampled_from(types)))
    array = draw(arrays(("bool" if kind.kind == "b" else "float64",)))
    if kind.kind in "iu":
        info = np.iinfo(kind)
        array = (array + 500) / 2000 * (float(info.max) * 0.9 - info.min) + info.min
    array = array.astype(kind)
    if kind.kind == "f":
        count = draw(st.integers(0, min(6, array.size - 1)))
        array.ravel("K")[:count] = SPECIAL[:count]
        assume(not np.isnan(array).all())
    return array


def wide(array: Array) -> Array:
    """Return floats in which NumPy interpolates without overflow."""
    return array.astype("u1" if array.dtype.kind == "b" else array.dtype).astype(np.float64)


@given(volumes(), st.lists(st.floats(0, 100), min_size=1, max_size=4), st.integers(1, 9))
def test_percentiles_are_those_of_numpy(array: Array, q: list[float], size_max: int) -> None:
    found = percentiles(array, q, size_max=size_max, processes="serial")
    with np.errstate(invalid="ignore"):
        expected = np.nanpercentile(wide(array), q)
    # NumPy finds no number where infinity is the next one, though it is not asked for that.
    right = (found == expected) | (np.isnan(expected) & np.isinf(array).any())
    assert right.all(), (found, expected)


@given(volumes(), st.integers(1, 9))
def test_extremes_are_those_of_numpy(array: Array, size_max: int) -> None:
    found = minmax(array, size_max=size_max, processes="serial")
    assert found == (np.nanmin(array), np.nanmax(array))
    assert {type(value) for value in found} == {array.dtype.type(0).item().__class__}


@given(volumes(), st.integers(1, 9))
def test_histograms_are_those_of_numpy(array: Array, size_max: int) -> None:
    options = {"size_max": size_max, "processes": "serial"}
    for bins, limits in ((7, (-100.0, 1000.0)), ([-5.0, 0.0, 1.0, 700.0], None)):
        counts, edges = histogram(array, bins, limits, **options)
        expected, expected_edges = np.histogram(wide(array), bins, limits)
        assert np.array_equal(edges, expected_edges)
        assert np.array_equal(counts, expected)
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
    # NumPy makes no bins between two numbers that it cannot tell apart.
    assume(finite.size and (finite.min() < finite.max() or abs(float(finite.min())) < 2**40))
    counts, edges = histogram(finite, **options)
    assert counts.sum() == finite.size
    assert counts.dtype == np.int64
    if array.dtype.kind in "biu" and array.dtype.itemsize <= 2:
        assert np.array_equal(edges, np.arange(edges[0], edges[0] + len(counts) + 1))
        assert all(counts[int(value) - edges[0]] for value in finite.flat)


def test_values_of_short_integers_have_a_bin_each() -> None:
    counts, edges = histogram(np.array([-128, -128, 127], np.int8))
    assert (counts[0], counts[-1], len(counts)) == (2, 1, 256)
    assert (edges[0], edges[-1]) == (-128, 128)
    counts, edges = histogram(np.array([True, False, True]))
    assert (counts.tolist(), edges.tolist()) == ([1, 2], [0, 1, 2])


def test_any_executor_and_any_source_will_do(executor: str, tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(40, 30, 20)).astype(np.float32)
    np.save(tmp_path / "a.npy", array)
    options = {"executor": executor, "size_max": 7, "axes": "all"}
    path = tmp_path / "a.npy"
    assert percentiles(path, 12.5, **options) == np.percentile(array.astype(float), 12.5)
    assert minmax(path, **options) == (array.min(), array.max())
    assert np.array_equal(histogram(path, 9, **options)[0], np.histogram(array, 9)[0])


def test_numbers_serve_a_second_pass() -> None:
    array = np.random.default_rng(0).integers(0, 1000, (30, 30), dtype=np.uint16)
    low, high = percentiles(array, (10, 90))

    @filters.filter(halo=0, dtype="u1")
    def stretch(block: Any, low: float, high: float) -> Any:
        return (block - low) / (high - low) * 255

    assert minmax(stretch(low, high)(array)) == (0, 255)


def test_blocks_take_what_they_say() -> None:
    import tracemalloc

    for kind in ("u1", "u2", "f4", "f8"):
        array = np.ones((60, 60, 60), kind)
        keys = _Keys.of(array.dtype)
        last = _Count(keys, (0, 5, int(keys.bits_of(array[:1, :1, :1])[0]) >> 16), 0)
        for count in (_Count(keys, (0,), max(0, keys.bits - 16)), last):
            tracemalloc.start()
            count(array)
            taken = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert taken <= count.memory(array.dtype) * array.size + 3 * 2**19 * 4


@given(volumes(tuple(kind for kind in TYPES if kind[0] != ">")))
def test_gpus_count_alike(array: Array) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fake_cupy.install(patch)
        on_device = fake_cupy.asarray(array)
        keys = _Keys.of(array.dtype)
        shift = max(0, keys.bits - 16)
        for count in (_Count(keys, (0,), shift), _Count(keys, (0, 3), 0), _Bins(5, (0.0, 99.0))):
            found = count(on_device)
            assert isinstance(found, fake_cupy.ndarray)
            assert np.array_equal(found.get(), count(array))
        extremes = [value.get() for value in _extremes(on_device)]
        assert np.array_equal(extremes, _extremes(array))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: minmax(np.zeros((0, 3))), PlanError, r"shape \(0, 3\), which has no voxels"),
        (lambda: percentiles(np.zeros(0), 5), PlanError, "percentiles of a source .* no voxels"),
        (lambda: histogram(np.zeros(3, complex)), ArgumentTypeError, "histogram got complex128"),
        (lambda: percentiles(np.zeros(3), 101), PlanError, "q is 101; give at most 100"),
        (lambda: percentiles(np.zeros(3), [5, "a"]), ArgumentTypeError, "q is 'a'"),
        (lambda: histogram(np.zeros(3), 0), PlanError, "bins=0 .* make no bins"),
        (lambda: histogram(np.zeros(3), [3, 1]), PlanError, r"bins=\[3, 1\]"),
        (lambda: histogram(np.zeros(3), 5, (2, 1)), PlanError, r"range=\(2, 1\) make no bins"),
        (lambda: minmax(np.zeros(3), memry="1GB"), ArgumentTypeError, "did you mean 'memory'"),
    ],
)
def test_what_makes_no_sense(call: Callable[[], Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_volumes_without_numbers_have_none() -> None:
    nothing = np.full((4, 5), np.nan, np.float32)
    assert np.isnan(percentiles(nothing, [0, 50])).all()
    assert np.isnan(minmax(nothing)).all()
