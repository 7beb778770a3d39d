"""What every filter promises: a test class that those of each filter inherit.

A subclass draws filters of its kind, and says what their results are by a definition of its own:
a plain one, of the whole array.
"""

import functools
import pickle
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import fake_cupy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_executor import SimulatedExecutor, uneven

import gpublocks.block_processing as bp
from gpublocks.filters import Filter
from gpublocks.filters.engines import choice

Array = np.ndarray[Any, Any]

TYPES = ("uint8", "uint16", "int16", "float32", "float64")


@dataclass(frozen=True)
class Example:
    """A filter, the plain definition of what it gives, and where that jumps: rounding decides."""

    filter: Filter
    plain: Callable[[Array], Array]
    jumps: Callable[[Array], Array] | None = None

    def __repr__(self) -> str:
        return repr(self.filter)


def arrays(
    dtypes: tuple[str, ...] = TYPES,
    shapes: st.SearchStrategy[tuple[int, ...]] | None = None,
) -> st.SearchStrategy[Array]:
    """Return arrays of voxels: noise, few values, or single bright ones."""
    if shapes is None:
        shapes = st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple)
    return st.builds(
        _array,
        shapes,
        st.sampled_from(dtypes),
        st.sampled_from(["noise", "few values", "bright voxels"]),
        st.integers(0, 2**32 - 1),
        st.sampled_from("CF"),
    )


def _array(shape: tuple[int, ...], dtype: str, kind: str, seed: int, order: str) -> Array:
    rng = np.random.default_rng(seed)
    values = {
        "noise": lambda: rng.random(shape),
        "few values": lambda: rng.integers(0, 3, shape) / 2,
        "bright voxels": lambda: (rng.random(shape) < 0.1).astype(float),
    }[kind]()
    if np.dtype(dtype).kind == "f":
        return np.asarray(values * 2000 - 500, dtype, order)
    if dtype == "bool":
        return np.asarray(values > 0.5, order=order)
    info = np.iinfo(dtype)
    return np.asarray(info.min + values * (info.max - info.min), dtype, order)


class FilterContract:
    """Inherit, and define `examples`; the other attributes where a filter differs."""

    dtypes = TYPES
    axes = (1, 2, 3)
    """Numbers of axes that its arrays may have."""
    agreement = 0.0
    """Difference that is allowed from the plain definition, for voxels of the array and the result
    of at most 1. An integer may be the other neighbour of a value so close to the middle."""
    across = 0.0
    """The same between engines, and between blocks and the whole."""
    scale = staticmethod(lambda array: _scale(array))
    """What both are multiplied by, for some array: its largest voxel, or what results are like."""
    engines = ("numba", "scipy", "cuda")
    halo_dtype = "float64"

    def examples(self, ndim: int) -> st.SearchStrategy[Example]:
        """Return filters for arrays of so many axes."""
        raise NotImplementedError

    @functools.cached_property
    def _kinds(self) -> st.SearchStrategy[tuple[Example, int]]:
        """Filters, each with the number of axes of its arrays."""
        return st.sampled_from(self.axes).flatmap(
            lambda ndim: st.tuples(self.examples(ndim), st.just(ndim))
        )

    @functools.cached_property
    def _drawn(self) -> st.SearchStrategy[tuple[Example, Array]]:
        def both(ndim: int) -> st.SearchStrategy[tuple[Example, Array]]:
            shapes = st.lists(st.integers(1, 9), min_size=ndim, max_size=ndim).map(tuple)
            return st.tuples(self.examples(ndim), arrays(self.dtypes, shapes))

        return st.sampled_from(self.axes).flatmap(both)

    @pytest.fixture
    def use(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
        """Return what makes one of the engines compute."""
        fake_cupy.install(monkeypatch)

        def choose(engine: str) -> None:
            monkeypatch.setattr(choice, "_numba_works", lambda: engine != "scipy")

        return choose

    def test_gives_what_the_plain_definition_says(self) -> None:
        @given(self._drawn)
        @settings(max_examples=40)
        def check(drawn: tuple[Example, Array]) -> None:
            example, array = drawn
            before = array.copy("K")
            result = example.filter(array)
            assert np.array_equal(array, before, equal_nan=True), "changed its argument"
            assert not np.shares_memory(result, array)
            assert result.dtype == example.filter.result_dtype(array.dtype)
            assert result.shape == array.shape
            plain = example.plain(array)
            if example.jumps is not None:
                plain = np.where(example.jumps(array), result, plain)
            _agree(result, plain, self.agreement * max(self.scale(array), _scale(plain)))

        check()

    def test_engines_agree(self, use: Callable[[str], None]) -> None:
        import cupy

        @given(self._drawn)
        @settings(max_examples=25)
        def check(drawn: tuple[Example, Array]) -> None:
            example, array = drawn
            results = {}
            for engine in self.engines:
                use(engine)
                given_ = cupy.asarray(array) if engine == "cuda" else array
                results[engine] = example.filter(given_)
            if "cuda" in results:
                assert isinstance(results["cuda"], cupy.ndarray)
                results["cuda"] = results["cuda"].get()
            first = results[self.engines[0]]
            for result in results.values():
                assert result.dtype == first.dtype
                _agree(result, first, self.across * self.scale(array))

        check()

    @pytest.mark.parametrize("place", ["serial", "threads", "processes", "simulated"])
    def test_blocks_give_what_the_whole_gives(self, place: str) -> None:
        where: Any = SimulatedExecutor(uneven("lazy", 2)) if place == "simulated" else place

        @given(self._drawn, st.data())
        @settings(max_examples=15 if place in ("serial", "simulated") else 4)
        def check(drawn: tuple[Example, Array], data: st.DataObject) -> None:
            example, small = drawn
            array = np.concatenate([small, np.roll(small, 1)])
            halo = _listed(example.filter.halo, array.ndim)
            split = [axis for axis in range(array.ndim) if array.shape[axis] > 2 * halo[axis] + 1]
            if not split:
                return
            sizes = [
                data.draw(st.integers(2 * halo[axis] + 1, array.shape[axis])) for axis in split
            ]
            result = bp.process(
                example.filter,
                array,
                axes=split,
                size_max=sizes,
                executor=where,
                processes=2 if isinstance(where, str) and where != "serial" else None,
            )
            whole = example.filter(array)
            assert result.dtype == whole.dtype
            _agree(result, whole, self.across * self.scale(array))

        check()

    def test_looks_as_far_as_its_halo_and_no_further(self) -> None:
        seen: list[bool] = []

        @given(self._kinds, st.data())
        @settings(max_examples=12)
        def check(kind: tuple[Example, int], data: st.DataObject) -> None:
            example, ndim = kind
            halo = _listed(example.filter.halo, ndim)
            axis = data.draw(st.integers(0, ndim - 1))
            rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
            shape = tuple(2 * reach + 5 for reach in halo)
            centre = tuple(reach + 2 for reach in halo)
            changed = False
            for attempt in range(self.attempts):
                array = self._noise(rng, shape, attempt)
                value = example.filter(array)[centre]
                far = array.copy()
                for side in (slice(0, 2), slice(shape[axis] - 2, None)):
                    place = (slice(None),) * axis + (side,)
                    far[place] = self._noise(rng, far[place].shape, attempt + 1)
                again = example.filter(far)[centre]
                assert not self._differ(value, again), f"looks beyond {halo}"
                changed = changed or self._sees_the_end(example.filter, array, centre, axis, halo)
                if changed:
                    break
            seen.append(changed or halo[axis] == 0)
            assert seen[-1], f"never looks as far as {halo[axis]} on axis {axis}"

        check()
        assert any(seen)

    attempts = 200
    """So many random arrays are tried to find one where the farthest voxel matters."""

    def _noise(self, rng: np.random.Generator, shape: tuple[int, ...], attempt: int) -> Array:
        """Return noise for the test of the halo: of two values, and of many."""
        values = rng.integers(0, 2, shape) if attempt % 2 else rng.random(shape)
        return (values * 100).astype(self.halo_dtype)

    def _sees_the_end(
        self, filter_: Filter, array: Array, centre: tuple[int, ...], axis: int, halo: Any
    ) -> bool:
        """Tell whether a voxel at the end of the halo makes a difference at the centre."""
        value = filter_(array)[centre]
        for end in (-halo[axis], halo[axis]):
            place = (*centre[:axis], centre[axis] + end, *centre[axis + 1 :])
            for other in (0, 50, 100, 10_000, 1e9):
                changed = array.copy()
                # The whole plane at the end: its middle, or a corner of it, may not be seen.
                changed[(slice(None),) * axis + (place[axis],)] = other
                if self._differ(filter_(changed)[centre], value):
                    return True
        return False

    blindness = 0.0
    """Differences of voxels that are of no account in the test of halos."""

    def _differ(self, value: Any, other: Any) -> bool:
        if not self.blindness:
            return not np.array_equal(value, other, equal_nan=True)
        return not np.isclose(value, other, rtol=0, atol=self.blindness, equal_nan=True)

    def test_takes_no_more_memory_than_it_says(self) -> None:
        @given(self._kinds, st.sampled_from((*self.dtypes, "float16", ">u2")))
        @settings(max_examples=10)
        def check(kind: tuple[Example, int], dtype: str) -> None:
            example, ndim = kind
            if ndim == 1:
                return  # A row is of no account but where it is the array.
            array = _array(self.large[ndim], dtype, "noise", 1, "C")
            said = example.filter.memory(array.dtype)
            assert said is not None
            taken = bytes_per_voxel(example.filter, array)
            # Rows and tables are of no account for blocks of a real size.
            assert taken <= said + self.small_bytes / array.size
            assert said <= max(self.modesty * taken, taken + 12), f"takes {taken} only"

        check()

    large: Mapping[int, tuple[int, ...]] = {2: (250, 240), 3: (40, 39, 40)}
    """Shapes that are large beside what does not grow with the array."""
    small_bytes = 150_000
    """Memory that does not grow with the array, or with its faces only."""
    modesty = 2.0
    """So many times more than it takes a filter may say that it takes."""

    def test_pickles_and_shows_what_it_is(self) -> None:
        @given(self._drawn)
        @settings(max_examples=5)
        def check(drawn: tuple[Example, Array]) -> None:
            example, array = drawn
            again = pickle.loads(pickle.dumps(example.filter))
            assert repr(again) == repr(example.filter)
            assert again.halo == example.filter.halo
            assert np.array_equal(again(array), example.filter(array), equal_nan=True)

        check()

    def test_works_on_a_gpu_with_arrays_of_any_order(self, use: Callable[[str], None]) -> None:
        import cupy

        if "cuda" not in self.engines:
            pytest.skip("for CPUs only")

        @given(self._drawn)
        @settings(max_examples=5)
        def check(drawn: tuple[Example, Array]) -> None:
            example, array = drawn
            on_device = cupy.ndarray(array.shape, array.dtype, order="F")
            on_device._host[...] = array
            result = example.filter(on_device).get()
            _agree(result, example.filter(array), self.across * self.scale(array))

        check()


def _listed(halo: Any, ndim: int) -> tuple[int, ...]:
    return halo if isinstance(halo, tuple) else (halo,) * ndim


def _scale(array: Array) -> float:
    return float(np.abs(array.astype(np.float64)).max(initial=1.0, where=np.isfinite(array)))


def _agree(result: Array, expected: Array, allowed: float) -> None:
    """Check that results are equal, or as close as is allowed.

    Integers are to be the nearest of expected floats, within what their type holds.
    """
    wanted = expected.astype(np.float64)
    if result.dtype.kind in "iu" and expected.dtype.kind == "f":
        info = np.iinfo(result.dtype)
        allowed += 0.5
        wanted = wanted.clip(info.min, info.max)
    if not allowed:
        assert np.array_equal(result, expected, equal_nan=True)
        return
    found = result.astype(np.float64)
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(found - wanted) <= allowed) & (found != wanted)
    wrong &= ~(np.isnan(found) & np.isnan(wanted))
    assert not wrong.any(), f"{found[wrong][:5]} where {wanted[wrong][:5]} is expected"


def bytes_per_voxel(filter: Filter, array: Array) -> float:
    """Return what a call takes beside the array; the first one may take more."""
    filter(array)
    tracemalloc.start()
    try:
        kept = filter(array)
        assert kept.size
        return tracemalloc.get_traced_memory()[1] / array.size
    finally:
        tracemalloc.stop()
