"""Numbers of whole volumes: those of NumPy, whatever the blocks and whoever computes them."""

import tracemalloc
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
from gpublocks.filters.engines.block_counts import BinCounts, Extremes, Inside, KeyCounts, Keys

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


def binned(array: Array) -> Array:
    """Return voxels as NumPy puts them into bins: it has none for truth values, and few for f2."""
    return array.astype({"?": "u1", "e": "f4"}.get(array.dtype.char, array.dtype))


BINS = ((7, (-100.0, 1000.0)), ([-5.0, 0.0, 0.0, 1.0, 700.0, np.inf], None), ([-3, 2, 9], None))
"""Bins of any volume: even ones, edges, and edges that are whole numbers."""


@given(volumes(), st.integers(1, 9))
def test_histograms_are_those_of_numpy(array: Array, size_max: int) -> None:
    options = {"size_max": size_max, "processes": "serial"}
    for bins, limits in BINS:
        counts, edges = histogram(array, bins, limits, **options)
        expected, expected_edges = np.histogram(binned(array), bins, limits)
        assert np.array_equal(edges, expected_edges)
        assert edges.dtype == expected_edges.dtype
        assert np.array_equal(counts, expected)
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
    # NumPy makes no bins between two numbers that it cannot tell apart.
    assume(finite.size and (finite.min() < finite.max() or abs(float(finite.min())) < 2**14))
    counts, edges = histogram(finite, **options)
    assert counts.sum() == finite.size
    assert counts.dtype == np.int64
    if array.dtype.kind in "biu" and array.dtype.itemsize <= 2:
        assert np.array_equal(edges, np.arange(edges[0], edges[0] + len(counts) + 1))
        assert all(counts[int(value) - edges[0]] for value in finite.flat)


@given(volumes(("f2", "f4", "f8", "i4", "u8", "i1")), st.integers(1, 300))
def test_ends_of_bins_are_the_extremes(array: Array, bins: int) -> None:
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
    assume(finite.size)
    try:
        edges = np.histogram_bin_edges(binned(finite), bins)
    except ValueError:
        edges = np.zeros(2)
    # NumPy before 2 gives edges that are the same.
    if (edges[1:] <= edges[:-1]).any():
        with pytest.raises(PlanError, match="make no bins"):
            histogram(finite, bins, processes="serial")
        return
    expected, expected_edges = np.histogram(binned(finite), bins)
    counts, edges = histogram(finite, bins, processes="serial")
    assert np.array_equal(edges, expected_edges)
    assert np.array_equal(counts, expected)


@pytest.mark.parametrize("kind", ["f4", "f8", "i4"])
def test_voxels_on_edges_belong_to_the_bin_above(kind: str) -> None:
    array = (np.arange(300_000) % 1000 * (0.1 if kind != "i4" else 1)).astype(kind)
    for bins, limits in ((1000, None), (333, (0.1, 77.7)), (np.int64(10), (3, 5)), (7, (-9, -3))):
        counts, edges = histogram(array, bins, limits)
        expected, expected_edges = np.histogram(array, bins, limits)
        assert np.array_equal(counts, expected)
        assert np.array_equal(edges, expected_edges)


@pytest.mark.parametrize("kind", ["f4", "f8"])
@pytest.mark.parametrize("bins", [3, 255, 1000, 12_000_000])
def test_edges_say_where_a_voxel_belongs(kind: str, bins: int) -> None:
    for low, high in ((0.1, 0.9), (-7.7, 99.3), (0.0, 1e-30)):
        edges = np.linspace(low, high, bins + 1, dtype=kind)
        some = edges[np.linspace(0, bins, min(bins, 3000), dtype=int)]
        below, above = [np.nextafter(some, np.array(end, kind)) for end in (-np.inf, np.inf)]
        voxels = np.concatenate([some, below, above])
        found = np.searchsorted(edges, voxels, side="right") - 1
        expected = np.bincount(found[(found >= 0) & (found < bins)], minlength=bins)
        expected[-1] += (voxels == edges[-1]).sum()
        assert np.array_equal(BinCounts(edges, True)(voxels)[0], expected)


def test_bins_of_any_width() -> None:
    array = np.array([-3e38, -1, 0, 1e-45, 3e38], np.float32)
    assert histogram(array, 3, (-3e38, 3e38))[0].tolist() == [1, 3, 1]
    assert histogram(array, 4, (0, 1.5e-44))[0].tolist() == [2, 0, 0, 0]
    many = np.arange(1 << 20, dtype=np.float32)
    counts, edges = histogram(many, 1 << 20, (0, 1 << 20))
    assert (counts == 1).all()
    assert len(edges) == len(counts) + 1


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
    for kind in ("u1", "u2", "f4", "f8"):
        array = np.ones((120, 120, 120), kind)
        keys = Keys.of(array.dtype)
        last = KeyCounts(keys, (0, 5, int(keys.bits_of(array[:1, :1, :1])[0]) >> 16), 0)
        bins = BinCounts(np.linspace(0, 2, 9), True), BinCounts(np.array([0, 1, 5]), False)
        for count in (KeyCounts(keys, (0,), max(0, keys.bits - 16)), last, Extremes(), *bins):
            check_memory(count, array)
            check_memory(Inside(count), array, np.ones(array.shape, bool))
        check_memory(bins[0], np.ones((240, 120, 120), kind)[::2])


def check_memory(count: Any, array: Array, *more: Array) -> None:
    tracemalloc.start()
    count(array, *more)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Counts, and what a piece takes that is put into bins.
    assert taken <= count.memory(array.dtype) * array.size + 3 * 2**19 * 4


@given(volumes(tuple(kind for kind in TYPES if kind[0] != ">")))
def test_gpus_count_alike(array: Array) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fake_cupy.install(patch)
        on_device = fake_cupy.asarray(array)
        keys = Keys.of(array.dtype)
        shift = max(0, keys.bits - 16)
        even = np.linspace(0, 99, 6, dtype="f4" if array.dtype == np.float32 else "f8")
        for count in (
            KeyCounts(keys, (0,), shift),
            KeyCounts(keys, (0, 3) if shift else (0,), 0),
            BinCounts(even, True),
            BinCounts(np.array([-2, 0, 5]), False),
        ):
            found = count(on_device)
            assert isinstance(found, fake_cupy.ndarray)
            assert found.shape == count.shape
            assert np.array_equal(found.get(), count(array))
        extremes = [value.get() for value in Extremes()(on_device)]
        assert np.array_equal(extremes, Extremes()(array))


@st.composite
def masked(draw: st.DrawFn) -> tuple[Array, Array, Array]:
    """Return a volume, a mask that may be coarser, and that mask at the volume's resolution."""
    array = draw(volumes(("u1", "i2", "i4", "f4")))
    factors = [draw(st.integers(1, max(1, length))) for length in array.shape]
    # Of the fractions that give a mask of this length, the least one is meant.
    coarse = [-(-n // f) for n, f in zip(array.shape, factors, strict=True)]
    factors = [-(-n // m) for n, m in zip(array.shape, coarse, strict=True)]
    assume([-(-n // f) for n, f in zip(array.shape, factors, strict=True)] == coarse)
    bits = draw(st.lists(st.booleans(), min_size=1, max_size=20))
    mask = np.resize(np.array(bits), coarse)
    index = [np.arange(n) // f for n, f in zip(array.shape, factors, strict=True)]
    return array, mask, mask[np.ix_(*index)]


@given(masked(), st.integers(1, 9))
def test_voxels_outside_of_a_mask_do_not_count(
    case: tuple[Array, Array, Array], size_max: int
) -> None:
    array, mask, inside = case
    options = {"size_max": size_max, "axes": "all", "processes": "serial", "mask": mask}
    counted = array[inside]
    for bins, limits in BINS:
        counts, _ = histogram(array, bins, limits, **options)
        assert np.array_equal(counts, np.histogram(binned(counted), bins, limits)[0])
    if array.dtype.kind != "f":
        assert histogram(array, **options)[0].sum() == counted.size
    numbers = counted[~np.isnan(counted)]
    found = np.array([*minmax(array, **options), percentiles(array, 30, **options)])
    if not numbers.size:
        assert np.isnan(found).all()
        return
    assert tuple(found[:2]) == (numbers.min(), numbers.max())
    if np.isfinite(numbers).all():
        assert found[2] == np.percentile(wide(numbers), 30)


@pytest.mark.parametrize("order", ["C", "F"])
def test_any_executor_counts_inside_of_a_mask(executor: str, tmp_path: Path, order: str) -> None:
    array = np.random.default_rng(0).integers(0, 99, (40, 30, 21)).astype(np.int32, order=order)
    mask = np.zeros((10, 30, 11), bool)
    mask[2:4, 5:9, 3:] = mask[7, 22, 10] = True
    np.save(tmp_path / "mask.npy", mask)
    inside = mask.repeat(4, 0).repeat(2, 2)[:, :, :21]
    for source, size_max in ((mask, 7), (tmp_path / "mask.npy", 16), (mask, 64)):
        options = {"executor": executor, "size_max": size_max, "axes": "all", "mask": source}
        assert percentiles(array, 25, **options) == np.percentile(array[inside], 25)
        assert minmax(array, **options) == (array[inside].min(), array[inside].max())
        counts, edges = histogram(array, 9, **options)
        expected, expected_edges = np.histogram(array[inside], 9)
        assert np.array_equal(counts, expected)
        assert np.array_equal(edges, expected_edges)


def test_with_nothing_inside_of_a_mask_nothing_counts() -> None:
    array, mask = np.ones((8, 9), np.uint8), np.zeros((4, 3), bool)
    for volume in (array, array.astype(np.int64), array.astype(np.float32)):
        assert np.isnan(minmax(volume, mask=mask)).all()
        assert np.isnan(percentiles(volume, [0, 50], mask=mask)).all()
        counts, edges = histogram(volume, 5, mask=mask)
        assert counts.tolist() == [0] * 5
        assert np.array_equal(edges, np.histogram(volume[:0], 5)[1])
    assert histogram(array, mask=mask)[0].tolist() == [0] * 256


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
        (lambda: histogram(np.zeros(3), "auto"), ArgumentTypeError, "bins is 'auto'; give a num"),
        (lambda: histogram(np.zeros(3, "u1"), [1]), PlanError, "give at least two edges"),
        (lambda: histogram(np.zeros(3), [0, np.nan]), PlanError, "at least two edges that are r"),
        (lambda: histogram(np.zeros(3), ["a", "b"]), PlanError, r"bins=\['a', 'b'\]"),
        (lambda: histogram(np.zeros(3, "u1"), 5, ("a", "b")), PlanError, "make no bins"),
        (lambda: histogram(np.zeros(3), 5, 7), PlanError, "range=7 make no bins"),
        (lambda: histogram(np.zeros(3, "f4"), 5, (1e8, 1e8 + 9)), PlanError, "no bins"),
        (lambda: histogram(np.array([0, np.inf])), PlanError, "range=.* make no bins"),
        (lambda: percentiles(np.zeros(3), "50"), ArgumentTypeError, "q is '50'"),
        (lambda: minmax(np.zeros(3), memry="1GB"), ArgumentTypeError, "did you mean 'memory'"),
        (lambda: minmax(np.zeros(3), overlap=2), ArgumentTypeError, "minmax got 'overlap'.* axes"),
        (lambda: histogram(np.zeros(3), sink="x.npy"), ArgumentTypeError, "histogram got 'sink'"),
        (lambda: percentiles(np.zeros(3), 5, halo=1), ArgumentTypeError, "percentiles got 'halo'"),
        (lambda: minmax(np.zeros(3), mask=np.ones(3)), ArgumentTypeError, "give an array of bool"),
        (lambda: minmax(np.zeros(3), mask=np.ones(4, bool)), PlanError, "no integer fraction"),
    ],
)
def test_what_makes_no_sense(call: Callable[[], Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_bins_are_refused_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpublocks.filters.passes.process", lambda *_, **__: pytest.fail("read"))
    for bins in ("auto", 0, -3, [2, 1], [1], 2.5, {1, 2}):
        for kind in ("u1", "f4", "f8"):
            with pytest.raises((PlanError, ArgumentTypeError)):
                histogram(np.zeros(4, kind), bins)  # type: ignore[arg-type]


def test_volumes_without_numbers_have_none() -> None:
    nothing = np.full((4, 5), np.nan, np.float32)
    assert np.isnan(percentiles(nothing, [0, 50])).all()
    assert np.isnan(minmax(nothing)).all()
