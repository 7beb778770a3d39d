"""Write units of sinks: blocks are whole units of what was there, or of what is offered."""

import json
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from stored_pieces import Folder, NewFolder

import gpublocks as gb
from gpublocks import io
from gpublocks.budget import Budget, Need
from gpublocks.cutting import cut
from gpublocks.errors import BudgetError, PlanError, SinkError
from gpublocks.sizing import Sizes
from gpublocks.task import Choice, Task


def numbers(*shape):
    """Return an array of distinct numbers."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def smooth(array):
    return ndimage.uniform_filter(array, 3)


def only_one_writer(sink):
    """Check that each unit was written once, by nobody else at the same time."""
    written = sink.noted("written")
    assert len(written) == len(set(written)) > 0
    assert sink.noted("clashes") == []


class TestRuns:
    @pytest.mark.parametrize(
        "sizes", [{"memory": "300kB"}, {"size_max": 20}, {"size_max": 12, "axes": [0, 2]}]
    )
    def test_each_unit_has_one_writer(self, tmp_path, executor, sizes):
        source = numbers(24, 20, 18)
        new = NewFolder(str(tmp_path / "new"), [(8, 8, 8), (4, 8, 8), (4, 8, 4), (2, 8, 2)])
        gb.process(smooth, source, new, overlap=4, executor=executor, processes=2, **sizes)
        assert new.made.unit in new.offers
        assert np.array_equal(np.asarray(new.made), smooth(source))
        only_one_writer(new.made)

    def test_sinks_that_exist_and_new_ones_agree(self, tmp_path, executor):
        source = numbers(48, 30)
        (tmp_path / "old").mkdir()
        old = Folder(tmp_path / "old", source.shape, "f4", "C", (6, 30))
        new = NewFolder(str(tmp_path / "new"), [(4, 10), (3, 30)])
        gb.process(
            lambda x: (x + 1, -x), source, [old, new], size_max=15, executor=executor, processes=2
        )
        for sink, expected in ((old, source + 1), (new.made, -source)):
            assert np.array_equal(np.asarray(sink), expected)
            only_one_writer(sink)
        assert new.made.unit == (4, 10)

    def test_the_plan_says_the_unit_and_the_sink_has_it(self, tmp_path):
        source = numbers(40, 30)
        offers = [(16, 30), (5, 30), (4, 30), (2, 30)]
        new = NewFolder(str(tmp_path / "new"), offers)
        plan = gb.plan(np.negative, source, new, size_max=10)
        assert plan.units == ((5, 30),)
        assert json.loads(json.dumps(plan.to_dict()))["units"] == [[5, 30]]
        assert "whole units of (5, 30): no unit has two" in dict(plan.rows())["write safety"]
        assert new.made is None
        gb.process(np.negative, source, new, size_max=10)
        assert new.made.unit == (5, 30)

    def test_results_of_another_length(self, tmp_path):
        source = numbers(40, 30)
        for n, function in enumerate([lambda x: x[:, :3], lambda x: np.stack([x, -x], -1)]):
            new = NewFolder(str(tmp_path / f"new{n}"), [(16, 8), (4, 8)])
            gb.process(function, source, new, size_max=12, axes=0)
            assert np.array_equal(np.asarray(new.made), function(source))
            assert new.made.unit == [(4, 8), (4, 8, 2)][n]
            only_one_writer(new.made)

    def test_what_is_offered_for_the_result_does_not_matter_where_blocks_are_cut(self, tmp_path):
        class Moody(NewFolder):
            def units(self, shape, dtype):
                return [(4, 8)] if shape == (40, 30) and dtype == np.float32 else [(5, 7)]

        for n, function in enumerate([lambda x: x[:, :3], lambda x: x.astype("f8")]):
            new = Moody(str(tmp_path / f"new{n}"), [])
            gb.process(function, numbers(40, 30), new, size_max=12, axes=0)
            assert new.made.unit == [(4, 3), (4, 8)][n]
            only_one_writer(new.made)

    def test_whole_planes(self, tmp_path):
        class Planes(NewFolder):
            def units(self, shape, dtype):
                return [(1, *shape[1:])]

        new = Planes(str(tmp_path / "new"), [])
        gb.process(lambda x: x[:, ::2], numbers(12, 6, 5), new, size_max=5)
        assert new.made.unit == (1, 3, 5)
        only_one_writer(new.made)

    def test_a_sink_that_is_not_as_it_offered_is_refused(self, tmp_path):
        new = NewFolder(str(tmp_path / "new"), [(4,)], forced=(8,))
        with pytest.raises(SinkError, match=r"units of \(8,\), and blocks were planned for \(4,\)"):
            gb.process(np.negative, numbers(40), new, size_max=9)
        assert new.made.noted("written") == []

    def test_one_block_needs_no_units(self, tmp_path):
        new = NewFolder(str(tmp_path / "new"), [(64, 64), (7, 7)])
        gb.process(np.negative, numbers(40, 30), new, size_max="full")
        assert new.made.unit == (64, 64)


class TestOffers:
    """What is planned, with nothing created."""

    def test_none_fits_and_the_advice_does(self, tmp_path):
        source, offers = numbers(100, 20), [(64, 20), (32, 20)]
        new = NewFolder(str(tmp_path / "new"), offers)
        with pytest.raises(PlanError) as caught:
            gb.plan(np.negative, source, new, size_max=20, overlap=4)
        advised = int(re.search(r"use a size_max of (\d+)", str(caught.value))[1])
        assert gb.plan(np.negative, source, new, size_max=advised, overlap=4).units == ((32, 20),)
        with pytest.raises(PlanError):
            gb.plan(np.negative, source, new, size_max=advised - 1, overlap=4)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("length", "unit"), [(1000, 32), (100, 32), (1000, 1), (30, 30)])
    @pytest.mark.parametrize("overlap", [0, 2, 7])
    def test_sizes_of_whole_units_always_fit(self, tmp_path, length, unit, overlap):
        new = NewFolder(str(tmp_path / "new"), [(unit,)])
        for count in (1, 2, 4, 8):
            size_max = count * unit + overlap
            plan = gb.plan(
                np.negative, numbers(length), new, size_max=size_max, overlap=overlap, processes=2
            )
            assert plan.grid.largest[0] <= max(size_max, unit)
            assert len(plan.grid) <= -(-length // (count * unit)) + plan.budget.workers
            for cell in plan.grid:
                lo, hi = cell.valid[0]
                assert lo % unit == 0
                assert hi % unit == 0 or hi == length

    def test_two_new_sinks(self, tmp_path):
        offers = [(32, 8), (8, 8), (4, 8)], [(16, 8), (4, 8)]
        sinks = [NewFolder(str(tmp_path / name), o) for name, o in zip("ab", offers, strict=True)]
        plan = gb.plan(lambda x: (x, x), numbers(64, 8), sinks, size_max=16)
        assert plan.units == ((8, 8), (4, 8))
        assert all(split.unit == 8 for split in plan.grid.splits)

    def test_what_the_budget_cannot_hold_is_not_preferred(self):
        offers = [(64, 64), (16, 16), (4, 4)]
        for memory, unit in ((1 << 20, (64, 64)), (20_000, (16, 16)), (1500, (4, 4))):
            grid, units = cut(task((256, 256), [NewFolder("x", offers)]), budget(memory))
            assert units == (unit,)
            assert np.prod(grid.largest) * 8 <= memory
        with pytest.raises(BudgetError):
            cut(task((256, 256), [NewFolder("x", offers)]), budget(50))

    @given(st.data())
    def test_borders_are_on_units(self, data):
        shape = tuple(data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=3)))
        units = st.tuples(*[st.integers(1, 12) for _ in shape])
        given = data.draw(st.lists(st.lists(units, min_size=1, max_size=4), min_size=1, max_size=3))
        sizes = data.draw(
            st.none() | st.builds(Sizes, size_max=st.integers(6, 60), overlap=st.integers(0, 5))
        )
        asked = task(shape, [NewFolder(f"sink {n}", o) for n, o in enumerate(given)], sizes)
        try:
            grid, picked = cut(asked, budget(data.draw(st.sampled_from([2000, 100_000]))))
        except BudgetError:
            return
        except PlanError:
            assert sizes is not None
            return
        assert all(unit in o for unit, o in zip(picked, given, strict=True))
        for axis, split in zip(grid.axes, grid.splits, strict=True):
            borders = [split.border(k) for k in range(split.count)]
            assert all(b % unit[axis] == 0 for b in borders for unit in picked)
            assert all(a < b for a, b in pairwise([*borders, shape[axis]]))

    @given(
        st.lists(st.tuples(st.integers(1, 300), st.integers(1, 40)), min_size=1, max_size=3),
        st.integers(1, 3),
    )
    def test_single_units_are_blocks_where_memory_has_no_room_for_more(self, axes, workers):
        shape, unit = zip(*axes, strict=True)
        block = np.prod([min(n, u) for n, u in axes])
        grid, _ = cut(task(shape, [NewFolder("x", [unit])]), budget(int(block) * 8, workers))
        assert grid.counts == tuple(-(-n // u) for n, u in axes)


def task(shape, sinks, sizes=None):
    """Return a task on an array of a shape, without context unless there are sizes."""
    source = io.as_source(np.broadcast_to(np.zeros(1, np.float32), shape))
    return Task(
        function=np.negative,
        kwargs={},
        function_type="array",
        sources=(source,),
        sinks=tuple(sinks),
        choice=Choice("threads", 2, ""),
        axes="all",
        sizes=sizes or Sizes(overlap=0),
        overlap_known=True,
        need=Need(4.0),
    )


def budget(host_bytes, workers=1):
    return replace(Budget(host_bytes, workers), core_cache_bytes=1 << 16, cache_bytes=1 << 18)
