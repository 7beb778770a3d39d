"""Blocks and slices: views that read what NumPy would, say where they lie, and cost nothing."""

import json
import pickle
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gpublocks import blocks as blk
from gpublocks import io
from gpublocks.blocks import Block, Blocks, Slice
from gpublocks.contracts import Array, Extent, Reach, Sink
from gpublocks.errors import PlanError, SinkError, SourceError
from gpublocks.geometry import Region
from gpublocks.grid import Grid
from gpublocks.splitting import split_axis


class Recording:
    """A source without a view of its voxels that notes what it was asked for."""

    name = "Recording-Source"
    writable = True
    order = "C"
    location = "/somewhere/else"
    reach = Reach.CLUSTER
    extent: Extent | None = None
    array: object = "no array of NumPy"

    def __init__(self, array: Array, *, absent: bool = False) -> None:
        self._array = array
        self.shape = array.shape
        self.dtype = array.dtype
        self.unit = (1,) * array.ndim
        self.absent = absent
        self.voxels_touched = 0
        self.outs: list[Array | None] = []

    def read(self, region: Region, out: Array | None = None) -> Array:
        self.outs.append(out)
        voxels = np.array(self[region.slices])
        if out is None:
            return voxels
        out[...] = voxels
        return out

    def __getitem__(self, slicing: Any) -> Any:
        assert not self.absent, "the source was read"
        voxels = self._array[slicing]
        self.voxels_touched += voxels.size
        return voxels.copy()

    def __setitem__(self, slicing: Any, value: Any) -> None:
        assert not self.absent, "the source was written"
        self.voxels_touched += self._array[slicing].size
        self._array[slicing] = value


def numbered(shape: tuple[int, ...], order: str = "C") -> Array:
    """Return an array in which no two voxels are equal."""
    return np.asarray(np.arange(np.prod(shape, dtype=int)).reshape(shape), order=order)


def example_grid() -> Grid:
    split = split_axis(200, processes=10, size_min=30, size_max=50, overlap=20)
    return Grid((50, 100, 200), (2,), (split,))


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=3)))
    axes = sorted(draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    splits = []
    for axis in axes:
        size_max = draw(st.integers((shape[axis] + 1) // 2, shape[axis]))
        splits.append(
            split_axis(
                shape[axis],
                size_max=size_max,
                size_min=draw(st.sampled_from([None, "fixed"])),
                overlap=draw(st.integers(0, size_max - 1)),
                processes=draw(st.integers(1, 4)),
                optimization_fix="decrease",
            )
        )
    return Grid(shape, tuple(axes), tuple(splits))


def viewed(array: Array, slicing: Any) -> Array:
    """Return a view even where NumPy returns a scalar."""
    full = slicing if isinstance(slicing, tuple) else (slicing,)
    return array[full if Ellipsis in full else (*full, ...)]


@st.composite
def slicings(draw: st.DrawFn, shape: tuple[int, ...], depth: int) -> list[Any]:
    """Return basic indices, each for what is left by the one before."""
    found = []
    array = np.empty(shape, "i1")
    for _ in range(depth):
        slicing = draw(hnp.basic_indices(array.shape, allow_newaxis=False))
        found.append(slicing)
        array = viewed(array, slicing)
    return found


orders = st.sampled_from(["C", "F"])
SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)


def test_the_documented_example() -> None:
    source = io.as_source(np.asarray(np.random.rand(50, 100, 200), order="F"))
    blocks = Blocks(source, example_grid())
    assert len(blocks) == 10
    assert repr(blocks[0]) == "Block-Numpy-Source(50, 100, 38)[float64]|F|"
    assert blocks[0].info() == "0/10<(0, 0, 0)/(1, 1, 10)> (50, 100, 38)@(50, 100, 200)[(:,:,0:38)]"
    assert blocks[0].iteration_info() == "0/10<(0, 0, 0)/(1, 1, 10)>"
    assert repr(blocks[0].valid) == "Sliced-Block-Numpy-Source(50, 100, 28)[float64]|F|"
    assert blocks[0].valid.name == "Sliced-Block-Numpy-Source"
    assert blocks[0].valid.base_shape == (50, 100, 200)
    assert blocks[0].valid.base_slicing == (slice(None), slice(None), slice(None, 28, None))
    assert blocks[0].iteration == 0
    assert blocks[-1].iteration == 9


def test_valid_slicing_is_written_from_both_ends() -> None:
    array = numbered((3, 4, 30))
    grid = Grid(array.shape, (2,), (split_axis(30, size_max=12, overlap=2),))
    first, second, last = Blocks(io.as_source(array), grid)
    assert first.valid.slicing == (slice(None), slice(None), slice(None, -1))
    assert second.valid.slicing == (slice(None), slice(None), slice(1, -1))
    assert last.valid.slicing == (slice(None), slice(None), slice(1, None))


def test_scripts_find_the_composition_of_slicings() -> None:
    composed = blk.slc.sliced_slicing((slice(1, -1),), (slice(10, 20),), (30,))
    assert list(range(30)[composed[0]]) == list(range(11, 19))


@given(grids(), orders)
def test_blocks_see_the_whole_through_their_slicings(grid: Grid, order: str) -> None:
    whole = numbered(grid.shape, order)
    blocks = Blocks(io.as_source(whole), grid)
    for block, cell in zip(blocks, grid, strict=True):
        assert block.cell == cell
        assert block.order == io.as_source(whole).order
        assert (block.iteration, block.n_iterations) == (cell.number, len(grid))
        assert (block.index, block.blocks_shape) == (cell.index, grid.counts)
        expected = whole[cell.read_in(whole.shape).slices]
        valid = whole[cell.valid_in(whole.shape).slices]
        for seen in (block[:], np.asarray(block), block.array, whole[block.base_slicing]):
            np.testing.assert_array_equal(seen, expected)
        for seen in (
            block.valid[:],
            np.asarray(block.valid),
            block.valid.array,
            block[block.valid.slicing],
            whole[block.valid.base_slicing],
        ):
            np.testing.assert_array_equal(seen, valid)
        assert block.shape == expected.shape
        assert (block.size, block.ndim, len(block)) == (
            expected.size,
            expected.ndim,
            len(expected),
        )
        assert block.valid.shape == valid.shape
        assert (block.lower, block.upper) == (block.base_lower, block.base_upper)
        assert Region(block.lower, block.upper) == cell.read_in(whole.shape)
        assert Region(block.valid.base_lower, block.valid.base_upper) == cell.valid_in(whole.shape)
        assert Region(block.valid.lower, block.valid.upper) == cell.valid_in(whole.shape).within(
            cell.read_in(whole.shape)
        )
        assert (block.position, block.base_position) == (block.lower, block.base_lower)
        assert block.valid.source is block
        assert block.valid.base is block.base is block.source


@given(grids(), orders)
def test_valid_slices_written_through_blocks_tile_the_whole(grid: Grid, order: str) -> None:
    whole, times = numbered(grid.shape, order), np.zeros(grid.shape, int)
    sink = np.full(grid.shape, -1, order=order)
    sources = Blocks(io.as_source(whole), grid)
    counts = Blocks(io.as_source(times), grid)
    sinks = Blocks(io.as_source(sink), grid)
    for n, (source, count, target) in enumerate(zip(sources, counts, sinks, strict=True)):
        count.valid[:] += 1
        if n % 2:
            target.valid[:] = source.valid
        else:
            target[source.valid.slicing] = source.valid[:]
    assert (times == 1).all()
    np.testing.assert_array_equal(sink, whole)


@given(st.data(), SHAPES, orders)
def test_slices_of_slices_compose_like_numpy(
    data: st.DataObject, shape: tuple[int, ...], order: str
) -> None:
    whole = numbered(shape, order)
    expected, view = whole, io.as_source(whole)
    *taken, last = data.draw(slicings(shape, 4))
    for slicing in taken:
        expected, view = viewed(expected, slicing), Slice(view, slicing)
        assert view.shape == expected.shape
        assert view.base_shape == shape
        np.testing.assert_array_equal(whole[view.base_slicing], expected)
        np.testing.assert_array_equal(view[...], expected)
        np.testing.assert_array_equal(view.array, expected)
        if expected.size:
            places = np.argwhere(np.isin(whole, expected))
            assert view.base_lower == tuple(places.min(0))
            assert view.base_upper == tuple(places.max(0) + 1)
    np.testing.assert_array_equal(view[last], expected[last])
    expected_whole = whole.copy()
    target = expected_whole
    for slicing in taken:
        target = viewed(target, slicing)
    target[last] = -1
    view[last] = -1
    np.testing.assert_array_equal(whole, expected_whole)


@given(st.data(), grids())
def test_indexing_a_block_touches_only_what_is_asked_for(data: st.DataObject, grid: Grid) -> None:
    source = Recording(numbered(grid.shape))
    block = Blocks(source, grid)[data.draw(st.integers(0, len(grid) - 1))]
    voxels = numbered(grid.shape)[block.slicing]
    slicing = data.draw(hnp.basic_indices(block.shape, allow_newaxis=False))
    np.testing.assert_array_equal(block[slicing], voxels[slicing])
    assert source.voxels_touched == voxels[slicing].size
    block[slicing] = 7
    assert source.voxels_touched == 2 * voxels[slicing].size
    assert block.array is None


def test_corners_of_slices_that_are_no_box() -> None:
    source = io.as_source(numbered((9, 8)))
    picked = Slice(source, np.s_[[5, 2, 7], ::-3])
    assert (picked.lower, picked.upper) == ((2, 1), (8, 8))
    assert (picked[0, 0], picked.shape, picked.array) == (47, (3, 3), None)
    np.testing.assert_array_equal(np.asarray(picked), picked[:])
    picked[:] = -1
    assert (source[:] == -1).sum() == 9
    json.dumps([picked.lower, picked.upper])
    empty = Slice(source, np.s_[4:4, 3])
    assert (empty.lower, empty.upper) == ((4, 3), (4, 4))


def test_indexing_a_block_keeps_to_the_block() -> None:
    block = Blocks(io.as_source(numbered((9,))), Grid((9,), (0,), (split_axis(9, size_max=3),)))[1]
    assert block[-1] == 5
    assert list(block[-100:100]) == [3, 4, 5]
    for outside in (3, -4):
        with pytest.raises(IndexError):
            block[outside]


def test_a_block_of_a_part_says_where_it_lies_in_the_whole() -> None:
    whole = numbered((20, 4))
    part = io.as_source(whole, slicing=np.s_[3:13, 1:])
    for block in Blocks(part, Grid(part.shape, (0,), (split_axis(10, size_max=6, overlap=2),))):
        assert (block.base_shape, block.source.shape) == ((20, 4), (10, 3))
        assert block.base_lower == (block.lower[0] + 3, 1)
        for view in (block, block.valid, Slice(block.valid, np.s_[::-2])):
            np.testing.assert_array_equal(view[:], whole[view.base_slicing])
            np.testing.assert_array_equal(view[:], view.base[view.base_slicing])


@pytest.mark.parametrize("shape", [(8, 1), (8, 2, 5)])
def test_a_block_of_an_array_with_other_axes(shape: tuple[int, ...]) -> None:
    grid = Grid((8, 3), (0,), (split_axis(8, size_max=4, overlap=2),))
    whole = numbered(shape)
    for block, cell in zip(Blocks(io.as_source(whole), grid), grid, strict=True):
        np.testing.assert_array_equal(block[:], whole[slice(*cell.read[0])])
        np.testing.assert_array_equal(block.valid[:], whole[slice(*cell.valid[0])])
        assert (block.index, block.blocks_shape) == (cell.index, (3, 1))
        assert block.base_shape == shape


@given(grids())
def test_neighbours_are_mutual_and_one_step_away(grid: Grid) -> None:
    blocks = Blocks(io.as_source(numbered(grid.shape)), grid, neighbours=True)
    for block in blocks:
        for index, other in block.neighbours.items():
            assert other.index == index
            steps = np.subtract(other.index, block.index)
            assert np.abs(steps).sum() == 1
            assert block.index in other.neighbours
    missing = sum(2 * len(grid) // count for count in grid.counts)
    assert (
        sum(len(block.neighbours) for block in blocks) == 2 * len(grid.shape) * len(grid) - missing
    )
    assert Blocks(io.as_source(numbered(grid.shape)), grid)[0].neighbours == {}


@given(grids(), orders)
def test_a_block_in_memory_is_private_and_says_where_it_lies(grid: Grid, order: str) -> None:
    whole = numbered(grid.shape, order)
    before = whole.copy()
    for block in Blocks(io.as_source(whole), grid):
        memory = block.as_memory()
        assert isinstance(memory, Block)
        for attribute in (
            *("base_shape", "base_slicing", "slicing", "lower", "upper", "base_lower", "index"),
            *("blocks_shape", "iteration", "n_iterations", "shape", "dtype", "order"),
        ):
            assert getattr(memory, attribute) == getattr(block, attribute)
        assert memory.valid.base_slicing == block.valid.base_slicing
        assert memory.info() == block.info()
        assert memory.location is None
        np.testing.assert_array_equal(memory[:], block[:])
        memory[:] = -1
        memory.valid[:] = -2
        assert (memory.array[block.valid.slicing] == -2).all()
        np.testing.assert_array_equal(whole, before)
        kept = block.valid.as_memory()
        assert kept.base_slicing == block.valid.base_slicing
        kept[:] = -3
        np.testing.assert_array_equal(whole, before)


def test_a_block_in_memory_never_touches_its_source() -> None:
    grid = Grid((10, 4), (0,), (split_axis(10, size_max=6, overlap=2),))
    absent = Recording(np.zeros(grid.shape), absent=True)
    voxels = numbered((6, 4))
    block = Blocks(absent, grid)[1].as_memory(voxels)
    assert block.array is voxels
    assert repr(block) == "Block-Numpy-Source(6, 4)[int64]|C|"
    np.testing.assert_array_equal(block.valid[:], voxels[1:])
    block.valid[0] = 5
    assert (voxels[1] == 5).all()
    assert (block.reach, block.valid.reach) == (Reach.PROCESS, Reach.PROCESS)
    with pytest.raises(SourceError, match=r"shape \(5, 4\); give one of \(6, 4\)"):
        Blocks(absent, grid)[1].as_memory(voxels[:5])


def test_a_read_only_block_protects_its_source() -> None:
    whole = numbered((10, 4))
    before = whole.copy()
    grid = Grid(whole.shape, (0,), (split_axis(10, size_max=4),))
    block = Blocks(io.as_source(whole), grid, writable=False, neighbours=True)[1]
    assert not block.writable
    for view in (block, block.valid, Slice(block.valid, np.s_[::2]), block.neighbours[0, 0]):
        with pytest.raises(SinkError, match=r"block [01] of the source is read-only; .* sink"):
            view[:] = 0
        for voxels in (view[:], view[1:, 1], np.asarray(view), view.read(Region((0, 0), (1, 1)))):
            voxels += 1
        with pytest.raises(ValueError, match="read-only"):
            view.array[:] = 0
    np.testing.assert_array_equal(whole, before)


def test_a_copy_in_memory_of_a_read_only_block_is_writable() -> None:
    whole = numbered((10, 4))
    before = whole.copy()
    grid = Grid(whole.shape, (0,), (split_axis(10, size_max=4),))
    block = Blocks(io.as_source(whole), grid, writable=False, neighbours=True)[1]
    memory = block.as_memory()
    for view in (memory, memory.valid, block.valid.as_memory()):
        assert view.writable
        view[0] = -1
        assert (np.asarray(view)[0] == -1).all()
        assert np.shares_memory(np.asarray(view), view.array)
    with pytest.raises(SinkError, match="block 0"):
        memory.neighbours[0, 0][:] = 0
    np.testing.assert_array_equal(whole, before)


def test_a_writable_block_of_memory_is_a_view() -> None:
    whole = numbered((10, 4))
    block = Blocks(io.as_source(whole), Grid(whole.shape, (0,), (split_axis(10, size_max=4),)))[1]
    assert block.writable
    assert block.valid.writable
    assert np.shares_memory(np.asarray(block), whole)
    assert np.shares_memory(np.asarray(block.valid), whole)
    block.array[:] = -1
    assert (block[:] == -1).all()


@pytest.mark.parametrize("writable", [True, False])
def test_arrays_of_blocks_follow_numpy(writable: bool) -> None:
    whole = numbered((10, 4))
    grid = Grid(whole.shape, (0,), (split_axis(10, size_max=4),))
    block = Blocks(io.as_source(whole), grid, writable=writable)[1]
    assert not np.shares_memory(np.array(block), whole)
    assert np.asarray(block, dtype="f4").dtype == np.float32
    assert np.array(block, dtype="i8", copy=True).flags.writeable
    assert np.add(block, 1).sum() == (np.asarray(block) + 1).sum()
    duck = Blocks(Recording(whole), grid)[1]
    np.testing.assert_array_equal(np.asarray(duck), whole[duck.slicing])
    assert np.shares_memory(block.__array__(copy=False), whole)
    for refused in (lambda: duck.__array__(copy=False), lambda: block.__array__("f4", copy=False)):
        with pytest.raises(ValueError, match="copy"):
            refused()


def test_reading_into_an_array_of_the_caller() -> None:
    whole = numbered((10, 4))
    grid = Grid(whole.shape, (0,), (split_axis(10, size_max=4, overlap=2),))
    block = Blocks(io.as_source(whole), grid)[1]
    region = Region((0, 1), (2, 3))
    for view in (block, block.valid, block.as_memory(), Slice(block, np.s_[::-1])):
        out = np.empty((2, 2), int)
        assert view.read(region, out) is out
        np.testing.assert_array_equal(out, view[0:2, 1:3])
        private = view.read(region)
        assert not np.shares_memory(private, whole)
        np.testing.assert_array_equal(private, out)


@pytest.mark.parametrize("writable", [True, False])
def test_a_block_is_read_straight_into_its_place(writable: bool) -> None:
    source = Recording(numbered((10, 4)))
    grid = Grid((10, 4), (0,), (split_axis(10, size_max=4),))
    block = Blocks(source, grid, writable=writable)[1]
    out = np.empty(block.shape, int)
    block.read(Region.whole(block.shape), out)
    assert source.outs[0] is out
    assert source.voxels_touched == out.size


def test_blocks_and_slices_are_sources_and_sinks() -> None:
    whole = numbered((10, 4))
    source = io.as_source(whole)
    block = Blocks(source, Grid((10, 4), (0,), (split_axis(10, size_max=4),)))[1]
    for view in (block, block.valid):
        assert isinstance(view, Sink)
        assert (view.reach, view.extent, view.unit) == (source.reach, source.extent, (1, 1))
        assert io.as_source(view) is io.as_sink(view) is view
        view.write(Region((1, 0), (2, 4)), np.full((1, 4), -1))
        view.sync()
        view.finish()
        assert (whole[view.base_lower[0] + 1] == -1).all()
        with pytest.raises(PlanError, match=r"shape \(4,\) does not fit a \(1, 4\) region"):
            view.write(Region((1, 0), (2, 4)), np.zeros(4))
        memory = view.as_memory()
        assert isinstance(memory, Sink)
        assert not memory.extent.overlaps(source.extent)
    with pytest.raises(SinkError, match="read-only"):
        io.as_sink(Block(source, block.grid, 1, writable=False))


@given(
    st.integers(1, 7),
    st.integers(-25, 24),
    st.integers(1, 25),
    st.sampled_from([None, 1, 2, -1, -2]),
)
@example(3, 19, 5, -1)
def test_units_of_a_view_never_share_one_of_the_source(
    unit: int, start: int, stop: int, step: int | None
) -> None:
    source = Recording(np.zeros((24, 2)))
    source.unit = (unit, 1)
    view = Slice(source, (slice(start, stop, step), 0))
    assert len(view.unit) == view.ndim == 1
    places = np.arange(24)[start:stop:step] // unit
    writers = np.arange(len(places)) // max(view.unit[0], 1)
    pairs = {(int(p), int(w)) for p, w in zip(places, writers, strict=True)}
    assert len(pairs) == len({p for p, _ in pairs})
    assert view.as_memory().unit == (1,)


def test_a_block_of_a_file_says_which() -> None:
    grid = Grid((10, 4), (0,), (split_axis(10, size_max=4),))
    block = Blocks(Recording(np.zeros((10, 4))), grid)[0]
    assert block.location == block.valid.location == "/somewhere/else"
    assert repr(block) == "Block-Recording-Source(3, 4)[float64]|C|"
    assert block.info(short=False).endswith(f"{block!r}{{/somewhere/else}}@(10, 4)[(0:3,:)]")
    assert block.valid.info(short=False).endswith("|C|{/somewhere/else}@(10, 4)[(:3,:)]")


def test_blocks_are_indexed_like_a_list() -> None:
    whole = numbered((10,))
    blocks = Blocks(io.as_source(whole), Grid((10,), (0,), (split_axis(10, size_max=2),)))
    as_list = list(blocks)
    assert [block.iteration for block in as_list] == list(range(len(blocks)))
    assert [block.iteration for block in blocks[::-2]] == [4, 2, 0]
    assert [block.iteration for block in reversed(blocks)] == [4, 3, 2, 1, 0]
    assert blocks[-1].iteration == 4
    assert "5" in repr(blocks)
    for outside in (5, -6):
        with pytest.raises(IndexError):
            blocks[outside]


def test_all_numbers_are_plain() -> None:
    whole = numbered((9, 7), "F")
    splits = (split_axis(9, size_max=4, overlap=1), split_axis(7, size_max=3, overlap=1))
    for block in Blocks(io.as_source(whole), Grid(whole.shape, (0, 1), splits), neighbours=True):
        for view in (block, block.valid, block.as_memory(), Slice(block.valid, (0, np.s_[::2]))):
            ends = [[s.start, s.stop, s.step] for s in view.slicing if isinstance(s, slice)]
            ends += [[s.start, s.stop, s.step] for s in view.base_slicing if isinstance(s, slice)]
            corners = [view.lower, view.upper, view.base_lower, view.base_upper]
            json.dumps([view.shape, view.ndim, view.size, len(view), view.base_shape])
            json.dumps([ends, corners, view.position, view.base_position])
        numbers = [block.index, block.blocks_shape, block.iteration, block.n_iterations]
        json.dumps([numbers, list(block.neighbours)])


def test_blocks_of_a_file_work_in_another_process(tmp_path: Any) -> None:
    path = tmp_path / "whole.npy"
    whole = numbered((12, 5), "F")
    np.save(path, whole)
    grid = Grid(whole.shape, (0,), (split_axis(12, size_max=5, overlap=2),))
    block = Blocks(io.as_source(str(path)), grid, neighbours=True)[1]
    sent = [block, block.valid, block.neighbours[0, 0], block.as_memory()]
    assert len(pickle.dumps(block)) < 2000
    code = (
        "import pickle, sys\n"
        "for view in pickle.load(sys.stdin.buffer):\n"
        "    print(view.base_lower, int(view[:].sum()), sep=';')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(sent), capture_output=True, check=True
    )
    expected = [f"{view.base_lower};{whole[view.base_slicing].sum()}" for view in sent]
    assert done.stdout.decode().split("\n")[:-1] == expected


def test_a_million_blocks_take_no_memory() -> None:
    size = 1_000_000
    source = Recording(np.broadcast_to(np.int8(0), (size,)), absent=True)
    tracemalloc.start()
    try:
        blocks = Blocks(source, Grid((size,), (0,), (split_axis(size, size_max=1),)))
        assert len(blocks) == size
        assert blocks[-1].base_lower == (size - 1,)
        for block in blocks:
            if block.iteration == size // 10:
                break
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000
