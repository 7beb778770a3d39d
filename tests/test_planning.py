"""Plans: bytes that add up, limits that are kept, advice that works, and a table to read."""

import ast
import json
import re
import tracemalloc
from dataclasses import replace
from html.parser import HTMLParser
from math import prod

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import gpublocks as gb
from gpublocks.budget import Budget, Need, parse_bytes
from gpublocks.errors import BudgetError, PlanError
from gpublocks.grid import Grid
from gpublocks.planning import Plan, Volume
from gpublocks.splitting import split_axis

some = settings(max_examples=100, deadline=None)


def identity(array):
    return array


class Chunked:
    """An array that is stored in pieces."""

    def __init__(self, shape, chunks, dtype="float32"):
        self.shape, self.chunks, self.dtype = shape, chunks, np.dtype(dtype)

    def __getitem__(self, slicing):
        raise AssertionError("planning reads nothing")

    def __setitem__(self, slicing, value):
        raise AssertionError("planning writes nothing")


@st.composite
def plans(draw):
    shape = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=3)))
    axes = tuple(sorted(draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    splits = []
    for axis in axes:
        overlap = draw(st.integers(0, shape[axis] - 1))
        size_max = draw(st.integers(overlap + 1, shape[axis]))
        splits.append(split_axis(shape[axis], size_max=size_max, overlap=overlap))

    def volume(like):
        lengths = [n if axis in axes else draw(st.integers(1, 5)) for axis, n in enumerate(shape)]
        more = draw(st.lists(st.integers(1, 3), max_size=0 if like else 1))
        dtype = draw(st.sampled_from([np.uint8, np.float32, np.complex128]))
        lengths = shape if like else (*lengths, *more)
        return Volume(tuple(lengths), np.dtype(dtype), "C", None, draw(st.booleans()))

    return Plan(
        grid=Grid(shape, axes, tuple(splits)),
        sources=(volume(True), *(volume(False) for _ in range(draw(st.integers(0, 2))))),
        sinks=tuple(volume(False) for _ in range(draw(st.integers(0, 2)))),
        executor="threads",
        executor_reason="<because> & so on",
        budget=Budget(1 << 30, draw(st.integers(1, 5))),
        need=Need(draw(st.sampled_from([0.0, 4.0, 32.5])), draw(st.sampled_from([0, 1000]))),
        sizing="as given",
    )


@some
@given(plans())
def test_bytes_add_up(plan):
    cells = list(plan.grid)
    sizes = [
        [cell.read_in(v.shape).size * v.dtype.itemsize for v in plan.sources] for cell in cells
    ]
    assert plan.read_bytes == sum(map(sum, sizes))
    assert plan.block_bytes == max(map(sum, sizes))
    assert plan.written_bytes == sum(
        cell.valid_in(v.shape).size * v.dtype.itemsize for cell in cells for v in plan.sinks
    )
    staged = [v for v in (*plan.sources, *plan.sinks) if v.staged]
    places = [[2 * c.read_in(v.shape).size * v.dtype.itemsize for v in staged] for c in cells]
    assert plan.staging_bytes == max(map(sum, places))
    voxels = [cell.read_in(plan.grid.shape).size for cell in cells]
    assert plan.over_read == sum(voxels) / prod(plan.grid.shape)
    worker = max(map(sum, sizes)) + plan.need.of(max(voxels)) + plan.staging_bytes
    assert plan.worker_bytes == worker
    assert plan.peak_bytes == worker * min(plan.budget.workers, len(cells))


@some
@given(plans())
def test_a_plan_as_numbers_is_json(plan):
    numbers = plan.to_dict()
    assert json.loads(json.dumps(numbers)) == numbers
    assert numbers["cells"] == len(plan.grid) == prod(numbers["grid"])
    assert numbers["peak_bytes"] == plan.peak_bytes
    assert numbers["block"] == list(plan.grid.largest)
    assert numbers["need_origin"] == "default"
    assert numbers["peak_origin"] == "estimated"
    assert replace(plan, need=Need(1, origin="measured")).to_dict()["peak_origin"] == "measured"


class Cells(HTMLParser):
    """Collects the texts of the cells of a table."""

    def __init__(self):
        super().__init__()
        self.texts = []

    def handle_starttag(self, tag, attributes):
        assert tag in ("table", "tr", "th", "td")
        if tag in ("th", "td"):
            self.texts.append("")

    def handle_data(self, data):
        self.texts[-1] += data


@some
@given(plans())
def test_a_plan_in_a_notebook_is_the_same_table(plan):
    parser = Cells()
    parser.feed(plan._repr_html_())
    assert parser.texts == [text for row in plan.rows() for text in row]
    assert "<because>" not in plan._repr_html_()


TITLES = (
    "source", "blocks", "block shape", "sizes", "overlap", "executor", "host peak", "host limit",
    "device peak", "reads", "writes", "write safety",
)  # fmt: skip


def test_a_plan_prints_itself():
    volume = np.zeros((64, 32, 16), np.float32)
    sink = np.zeros((64, 32, 16), np.float64)
    plan = gb.plan(
        identity, volume, sink, size_max=20, overlap=4, executor="threads", processes=2,
        memory="100MB", optimization=False,
    )  # fmt: skip
    text = str(plan)
    rows = dict(plan.rows())
    assert [name for name, _ in plan.rows() if name] == list(TITLES)
    assert all(line.startswith((*TITLES, " ")) for line in text.split("\n"))
    assert rows["source"] == "(64, 32, 16) float32, order C"
    assert rows["blocks"] == "4 (4 x 1 x 1)"
    assert rows["block shape"] == "19 x 32 x 16 voxels, 38.9 kB"
    assert rows["sizes"] == "as given"
    assert rows["overlap"] == "4 on axis 0; 1.19 voxels read for each voxel"
    assert rows["executor"] == "threads, 2 at once: executor='threads'"
    assert rows["host peak"] == "700 kB (estimated, not enforced)"
    assert rows[""] == "= 2 workers x (block 38.9 kB + function 32 B x 9728 voxels)"
    assert rows["host limit"] == "100 MB (memory=100MB)"
    assert rows["reads"] == "156 kB"
    assert rows["writes"] == "262 kB"
    assert rows["write safety"] == "valid regions do not overlap: no voxel has two writers"


def test_a_plan_says_what_it_does_not_know():
    rows = dict(gb.plan(identity, np.zeros((9, 9)), processes="serial").rows())
    assert rows["writes"] == "known after the first block"
    assert rows["sizes"].startswith("one block")
    assert "give overlap, halo or size_max" in rows["sizes"]
    rows = dict(gb.plan(identity, np.zeros((9, 9)), size_max="full", processes="serial").rows())
    assert rows["sizes"] == "one block"


def test_a_plan_says_that_units_have_one_writer():
    sink = Chunked((64, 64), (16, 8))
    plan = gb.plan(identity, np.zeros((64, 64)), sink, size_max=20, overlap=2, axes=[0, 1])
    assert "units of (16, 8)" in dict(plan.rows())["write safety"]
    for cell in plan.grid:
        assert [lo % unit for (lo, _), unit in zip(cell.valid, (16, 8), strict=True)] == [0, 0]


def test_automatic_sizes_are_aligned_to_all_sinks():
    source = np.zeros((128, 64), np.float32)
    sinks = [Chunked((128, 64), (8, 64)), Chunked((128, 64), (12, 64))]
    plan = gb.plan(identity, source, sinks, halo=1, memory="1MB")
    assert plan.sizing == "chosen for caches, workers and memory"
    assert {cell.valid[0][0] % 24 for cell in plan.grid} == {0}
    assert len(plan.grid) > 1


arrays = st.sampled_from([(40,), (12, 7), (20, 30, 10)]).map(np.zeros)
limits = st.sampled_from(["1kB", "10kB", "100kB", "1MB", "10MB", "100MB"])


@some
@given(
    arrays,
    limits,
    st.integers(1, 8),
    st.sampled_from([{"halo": 1}, {"overlap": 0}, {"size_max": 10}, {"size_max": 3}, {}]),
    st.sampled_from(["threads", "processes"]),
)
def test_no_plan_is_above_the_limit(volume, memory, processes, sizes, executor):
    def plan():
        return gb.plan(
            identity, volume, memory=memory, processes=processes, executor=executor, **sizes
        )

    try:
        found = plan()
    except BudgetError:
        return
    assert found.peak_bytes <= parse_bytes(memory)
    assert 1 <= found.budget.workers <= processes
    assert plan() == found
    if found.budget.workers < processes:
        more = replace(found, budget=replace(found.budget, workers=found.budget.workers + 1))
        assert more.peak_bytes > parse_bytes(memory) or len(found.grid) < processes


def test_fewer_workers_where_memory_is_tight():
    volume = np.zeros((100, 100), np.float32)
    given = {"size_max": 10, "optimization": False, "executor": "threads", "processes": 8}
    roomy = gb.plan(identity, volume, memory="1GB", **given)
    assert roomy.budget.workers == 8
    tight = gb.plan(identity, volume, memory=3 * roomy.worker_bytes + 1, **given)
    assert tight.grid == roomy.grid
    assert tight.budget.workers == 3
    assert "3 at once" in str(tight)


def test_the_budget_wins_over_optimising():
    volume = np.zeros((40, 50), np.float32)
    given = {"size_max": 10, "optimization_fix": "increase", "executor": "threads", "processes": 3}
    assert gb.plan(identity, volume, memory="1GB", **given).grid.counts == (3, 1)
    plan = gb.plan(identity, volume, memory=10 * 50 * 36, **given)
    assert plan.grid.counts == (4, 1)
    assert plan.budget.workers == 1


@some
@given(
    st.sampled_from([(40, 50, 60), (500, 3), (7, 9, 11, 5)]),
    st.integers(10_000, 2_000_000),
    st.sampled_from([None, 40, "full"]),
    st.sampled_from([None, 0, [1], "all"]),
    st.sampled_from(["threads", "processes"]),
    st.sampled_from([None, 2, 7]),
    st.integers(1, 5),
)
def test_the_size_that_is_advised_works(shape, memory, size_max, axes, executor, overlap, workers):
    volume = np.zeros(shape, np.float32)
    given = {"memory": memory, "executor": executor, "processes": workers, "axes": axes}
    context = {} if overlap is None or size_max is None else {"overlap": overlap}
    try:
        gb.plan(identity, volume, size_max=size_max, **given, **context)
    except BudgetError as error:
        message = str(error)
    else:
        assume(False)
    assert "needs" in message
    assert "memory=" in message
    advice = re.search(r"use size_max=(\S+|\[.*?\]) on ax[ei]s (\S+|\[.*?\])$", message)
    if advice is None:
        assert message.endswith("give overlap or halo without sizes, which are then chosen")
        smallest = {"size_max": context.get("overlap", 0) + 1, "optimization": False}
        if axes != "all":
            with pytest.raises(BudgetError):
                gb.plan(identity, volume, **smallest, **given, **context)
        return
    given["axes"] = ast.literal_eval(advice[2])
    plan = gb.plan(identity, volume, size_max=ast.literal_eval(advice[1]), **given, **context)
    assert plan.peak_bytes <= memory


def test_automatic_sizes_that_cannot_fit_are_refused_with_numbers():
    volume = np.zeros((50, 60, 70))
    with pytest.raises(
        BudgetError, match=r"memory=1kB leaves 1 kB; use a smaller overlap"
    ) as caught:
        gb.plan(identity, volume, overlap=40, memory="1kB")
    assert isinstance(caught.value, MemoryError)
    assert isinstance(caught.value, ValueError)


def test_planning_calls_and_reads_nothing():
    def function(array):
        raise AssertionError("planning calls nothing")

    source, sink = Chunked((64, 64), (16, 16)), Chunked((64, 64), (16, 16))
    assert len(gb.plan(function, source, sink, size_max=20, overlap=2).grid) == 4
    assert gb.plan(function, source, sink, halo=2).peak_origin == "estimated"


def test_axes_are_those_that_all_arrays_have():
    plan = gb.plan(identity, np.zeros((300, 3), np.uint8), np.zeros((300, 1)), overlap=0)
    assert plan.grid.axes == (0,)
    with pytest.raises(PlanError, match="split axis 1"):
        gb.plan(np.add, [np.zeros((8, 3)), np.zeros((8, 4))], axes=1, size_max=2)


@pytest.mark.parametrize("case", ["one axis", "three axes", "units"])
def test_a_million_blocks_are_planned_without_lists(case):
    if case == "three axes":
        source, sizes = np.zeros((200, 200, 100), np.uint8), {"size_max": 2, "axes": "all"}
        source = np.broadcast_to(source[:1, :1, :1], (200, 200, 200))
    else:
        source, sizes = np.zeros(16_000_000, np.uint8), {"size_max": 16}
    sink = Chunked((16_000_000,), (8,)) if case == "units" else None
    tracemalloc.start()
    try:
        plan = gb.plan(identity, source, sink, processes=2, memory="1GB", **sizes)
        assert len(plan.grid) == 1_000_000
        assert plan.to_dict()["cells"] == 1_000_000
        assert "1000000 (" in str(plan)
        assert plan.grid[-1].valid[0][1] == source.shape[0]
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        for _, cell in zip(range(3_000), plan.grid, strict=False):
            assert cell.valid
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
